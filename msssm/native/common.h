// What the kernels share: hardware vectors from the compiler's vector types, arrays with strides, tasks on threads.
//
// A lane is a channel. A task is one row of the batch and some blocks of LANES channels; nothing is shared between
// tasks, and sums over channels go to buffers of a task's own that are added up in a fixed order, so results do not
// depend on the number of threads.
#pragma once

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

// Runs task(0..count - 1), on no more threads than the work of each is worth the start of a thread.
template <typename Task>
void run_tasks(int64_t count, int64_t threads, double operations, const Task& task) {
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i);
  };
  threads = std::min({threads, count, (int64_t)(operations / 3e5) + 1});
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < threads; ++i) helpers.emplace_back(work);
  work();
  for (auto& helper : helpers) helper.join();
}

INLINE int64_t blocks_of(int64_t channels) { return (channels + LANES - 1) / LANES; }

// Few rows leave cores idle: then a row's blocks of channels are dealt to several tasks. Not by the number of threads,
// so that sums do not depend on it.
INLINE int64_t groups_of(int64_t batch, int64_t channels) {
  return batch >= 8 ? 1 : std::min(blocks_of(channels), (8 + batch - 1) / std::max<int64_t>(batch, 1));
}

// block(row, group, first channel, channels in it)
template <typename Block>
void for_each_block(int64_t batch, int64_t channels, int64_t threads, double operations, const Block& block) {
  const int64_t groups = groups_of(batch, channels), blocks = blocks_of(channels);
  run_tasks(batch * groups, threads, operations, [&](int64_t task) {
    for (int64_t i = task % groups; i < blocks; i += groups)
      block(task / groups, task % groups, i * LANES, (int)std::min<int64_t>(LANES, channels - i * LANES));
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

// Adds dLoss/dmix of `steps` steps of one band, which is product[t] summed over the channels of a head.
INLINE void add_mix_gradient(float* grad, int64_t stride, int64_t heads, int64_t channels, int64_t d, int width,
                             const Vec* product, int steps) {
  if (heads == 1) {
    for (int t = 0; t < steps; t += LANES) {
      Vec group[LANES] = {};
      const int count = std::min(LANES, steps - t);
      for (int i = 0; i < count; ++i) group[i] = product[t + i];
      const Vec sums = lane_sums(group);
      for (int i = 0; i < count; ++i) grad[(t + i) * stride] += sums[i];
    }
    return;
  }
  for (int t = 0; t < steps; ++t)
    for (int i = 0; i < width; ++i) grad[t * stride + (d + i) * heads / channels] += product[t][i];
}

}  // namespace
