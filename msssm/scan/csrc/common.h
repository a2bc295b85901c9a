// What the kernels share: hardware vectors from the compiler's vector types, arrays with strides, tasks on threads.
//
// A lane is a channel. A task is one row of the batch and some blocks of LANES channels; nothing is shared between
// tasks, and sums over channels go to buffers of a task's own that are added up in a fixed order, so results do not
// depend on the number of threads.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Int __attribute__((vector_size(LANES * sizeof(int32_t))));

INLINE Vec splat(float x) { return x - Vec{}; }

// Of the last block, where there are fewer channels than lanes. Apart, so that whole vectors stay in registers.
__attribute__((noinline)) Vec load_part(const float* p, int width, float beyond) {
  Vec v = splat(beyond);
  std::memcpy(&v, p, width * sizeof(float));
  return v;
}

__attribute__((noinline)) void store_part(float* p, Vec v, int width) { std::memcpy(p, &v, width * sizeof(float)); }

INLINE Vec load(const float* p, int width, float beyond = 0.0f) {
  if (__builtin_expect(width != LANES, 0)) return load_part(p, width, beyond);
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

INLINE void store(float* p, Vec v, int width) {
  if (__builtin_expect(width != LANES, 0)) store_part(p, v, width);
  else std::memcpy(p, &v, sizeof v);
}

template <int... I>
INLINE Vec shuffle(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Int{I...});
#endif
}

// Of two vectors, the lanes whose number has (or has not) the bit HALF: from the first where the result's own number
// has not that bit, else from the second.
template <int HALF, bool WITH, int... I>
INLINE auto lanes_by_bit(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, (I & ~(2 * HALF - 1)) + (I & (HALF - 1)) + (I & HALF ? LANES : 0) +
                                        (WITH ? HALF : 0)...>();
}

// Lane i of the result is the sum of the lanes of v[i], for LANES vectors, which are overwritten.
template <int HALF = LANES / 2>
INLINE Vec lane_sums(Vec* v) {
  if constexpr (HALF == 0) return v[0];
  else {
    const std::make_integer_sequence<int, LANES> lanes;
    for (int i = 0; i < HALF; ++i)
      v[i] = shuffle(v[i], v[i + HALF], lanes_by_bit<HALF, false>(lanes)) +
             shuffle(v[i], v[i + HALF], lanes_by_bit<HALF, true>(lanes));
    return lane_sums<HALF / 2>(v);
  }
}

// A float array (batch, length, bands, inner) whose innermost dimension is contiguous.
struct Array {
  float* data;
  int64_t row, step, band;
  INLINE float* at(int64_t b, int64_t t, int64_t m) const { return data + b * row + t * step + m * band; }
};

INLINE Array array(const float* data, const int64_t* strides) {
  return {const_cast<float*>(data), strides[0], strides[1], strides[2]};
}

// GNU OpenMP's parallel region, where the process has one: torch's. Its idle threads spin for a while, and would take
// the cores from threads of our own.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
INLINE Parallel team() {
  static const Parallel found = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
  return found;
}

// Runs task(0..count - 1) on so many threads, or on this one where the work is worth no other.
template <typename Task>
void run_tasks(int64_t count, int64_t threads, double operations, const Task& task) {
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i);
  };
  using Work = decltype(work);
  if (threads < 2 || count < 2 || operations < 3e5) return work();
  // Always the whole team: OpenMP would end the threads that a smaller one leaves out.
  if (team()) return team()([](void* shared) { (*(Work*)shared)(); }, &work, (unsigned)threads, 0);
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < std::min(threads, count); ++i) helpers.emplace_back(work);
  work();
  for (auto& helper : helpers) helper.join();
}

// The channels of one vector, from d on.
struct Block {
  int64_t d;
  int width;
};

// A cache line has so many channels. Two tasks do not write to one.
constexpr int64_t LINE = 16;

INLINE int64_t lines_of(int64_t channels) { return (channels + LINE - 1) / LINE; }

// Few rows leave cores idle: then the lines of a row are dealt to several tasks. Not by the number of threads, so that sums
// do not depend on it.
INLINE int64_t groups_of(int64_t batch, int64_t channels) {
  return batch >= 8 ? 1 : std::min(lines_of(channels), (8 + batch - 1) / std::max<int64_t>(batch, 1));
}

inline std::vector<Block> blocks_of_group(int64_t batch, int64_t channels, int64_t group) {
  const int64_t groups = groups_of(batch, channels), lines = lines_of(channels);
  const int64_t end = std::min(channels, (group + 1) * lines / groups * LINE);
  std::vector<Block> result;
  for (int64_t d = group * lines / groups * LINE; d < end; d += LANES)
    result.push_back({d, (int)std::min<int64_t>(LANES, end - d)});
  return result;
}

// task(row, group)
template <typename Task>
void for_each_group(int64_t batch, int64_t channels, int64_t threads, double operations, const Task& task) {
  const int64_t groups = groups_of(batch, channels);
  run_tasks(batch * groups, threads, operations, [&](int64_t i) { task(i / groups, i % groups); });
}

// task(row, group, first channel, channels in the block)
template <typename Task>
void for_each_block(int64_t batch, int64_t channels, int64_t threads, double operations, const Task& task) {
  for_each_group(batch, channels, threads, operations, [&](int64_t row, int64_t group) {
    for (Block block : blocks_of_group(batch, channels, group)) task(row, group, block.d, block.width);
  });
}

// Weights of one step and band for a block of channels: one per head of channels / heads neighbours.
INLINE Vec mix_at(const float* mix, int64_t heads, int64_t channels, int64_t d, int width) {
  if (heads == 1) return splat(*mix);
  if (heads == channels) return load(mix + d, width);
  Vec v{};
  for (int i = 0; i < width; ++i) v[i] = mix[(d + i) * heads / channels];
  return v;
}

// Adds the sums over the lanes of v, which has COUNT vectors per step and zeros behind, to COUNT floats of each step.
template <int COUNT>
INLINE void add_sums(Vec* v, float* out, int64_t stride, int steps) {
  typedef float Part __attribute__((vector_size(COUNT * sizeof(float))));
  const Vec sums = lane_sums(v);
  float parts[LANES];
  std::memcpy(parts, &sums, sizeof sums);
  for (int t = 0; t < steps; ++t, out += stride) {
    Part sum, part;
    std::memcpy(&sum, out, sizeof sum);
    std::memcpy(&part, parts + t * COUNT, sizeof part);
    sum += part;
    std::memcpy(out, &sum, sizeof sum);
  }
}

// Adds the sum over the lanes of value(t) to one float of each step.
template <typename Value>
INLINE void add_sums_of(int steps, float* out, int64_t stride, const Value& value) {
  for (int t = 0; t < steps; t += LANES) {
    Vec v[LANES];
    const int count = std::min(LANES, steps - t);
    for (int i = 0; i < LANES; ++i) v[i] = i < count ? value(t + i) : Vec{};
    add_sums<1>(v, out + t * stride, stride, count);
  }
}

// Adds dLoss/dmix of `steps` steps of one band, which is product[t] summed over the channels of a head.
INLINE void add_mix_gradient(float* grad, int64_t stride, int64_t heads, int64_t channels, int64_t d, int width,
                             const Vec* product, int steps) {
  if (heads == 1) return add_sums_of(steps, grad, stride, [&](int t) { return product[t]; });
  for (int t = 0; t < steps; ++t)
    for (int i = 0; i < width; ++i) grad[t * stride + (d + i) * heads / channels] += product[t][i];
}

}  // namespace
