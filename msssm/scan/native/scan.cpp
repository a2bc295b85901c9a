// Selective scans over M bands, forward and backward, for CPUs. Plain C interface, no torch, one source for every
// vector width: a lane is a channel, time runs sequentially, the states of one band stay in registers.
//
// A task is one row of the batch and some blocks of LANES channels. Nothing of size (B, L, M, D, N) is written: the
// forward keeps the states every TILE steps, the backward recomputes a tile of them into a small buffer and walks back.
// Sums over channels go to buffers of the task's own and are added in a fixed order, so two runs are bit-equal, whatever
// the number of threads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

// One hardware vector, and as many states at a time as its registers hold.
#if defined(__AVX512F__)
constexpr int LANES = 16, MOST_STATES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8, MOST_STATES = 4;
#else
constexpr int LANES = 4, MOST_STATES = 4;
#endif
constexpr int TILE = 16;

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Int __attribute__((vector_size(LANES * sizeof(int32_t))));

#define INLINE inline __attribute__((always_inline))

INLINE Vec splat(float x) { return x - Vec{}; }

INLINE Vec load(const float* p, int width, float beyond = 0.0f) {
  Vec v = splat(beyond);
  if (width == LANES) std::memcpy(&v, p, sizeof v);
  else std::memcpy(&v, p, width * sizeof(float));
  return v;
}

INLINE void store(float* p, Vec v, int width) {
  if (width == LANES) std::memcpy(p, &v, sizeof v);
  else std::memcpy(p, &v, width * sizeof(float));
}

// decay = 2^x and expm1 = 2^x - 1 for x <= 0, relative error 2e-7, exact at 0; x = delta A log2(e).
// 2^x = 2^n 2^r with n the nearest integer: adding 1.5 * 2^23 leaves n in the low bits of the sum.
INLINE void exponentials(Vec x, Vec& decay, Vec& expm1) {
  const Vec lowest = splat(-126.0f), magic = splat(12582912.0f);
  x = x < lowest ? lowest : x;  // in this order a NaN stays a NaN
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec p = splat(0x1.5bba13e56ebfep-10f);
  p = p * r + splat(0x1.3cea878f12bcbp-7f);
  p = p * r + splat(0x1.c6b752e06b0ffp-5f);
  p = p * r + splat(0x1.ebf9bb89e2839p-3f);
  p = p * r + splat(0x1.62e4292034e05p-1f);
  const Vec tail = p * r;  // 2^r - 1
  const Vec scale = (Vec)(((Int)shifted << 23) + 0x3f800000);
  decay = scale * tail + scale;
  expm1 = scale * tail + (scale - 1.0f);
}

// Lane i of the result is the sum of the lanes of in[i], for LANES vectors.
INLINE Vec lane_sums(const Vec* in) {
#if defined(__clang__)  // has no shuffle by a vector
  Vec sums{};
  for (int i = 0; i < LANES; ++i)
    for (int k = 0; k < LANES; ++k) sums[i] += in[i][k];
  return sums;
#else  // a tree of lane exchanges
  Vec v[LANES];
  std::memcpy(v, in, sizeof v);
  for (int half = LANES / 2; half; half /= 2) {
    Int low, high;
    for (int i = 0; i < LANES; ++i) {
      low[i] = (i & ~(2 * half - 1)) + (i & (half - 1)) + ((i & half) ? LANES : 0);
      high[i] = low[i] + half;
    }
    for (int i = 0; i < half; ++i)
      v[i] = __builtin_shuffle(v[i], v[i + half], low) + __builtin_shuffle(v[i], v[i + half], high);
  }
  return v[0];
#endif
}

struct Sizes {
  int64_t batch, length, bands, channels, states, heads;
  int zoh, threads;
};

// Arrays of the call. Time-varying ones are (B, L, M, ...); A, initial and final states have channels last,
// (M, N, D) and (B, M, N, D).
struct Inputs {
  const float *u, *delta, *A, *B, *C, *mix, *skip, *initial;
};

template <typename Task>
void run_tasks(int64_t count, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i);
  };
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) helpers.emplace_back(work);
  work();
  for (auto& helper : helpers) helper.join();
}

INLINE Vec mix_at(const float* mix, const Sizes& s, int64_t d, int width) {
  if (s.heads == 1) return splat(*mix);
  Vec v{};
  for (int i = 0; i < width; ++i) v[i] = mix[(d + i) * s.heads / s.channels];
  return v;
}

constexpr float LOG2E = 1.4426950408889634f;

// One tile of one band and COUNT states: advances `h`, adds <C, h> to y.
template <int COUNT, bool ZOH>
void forward_tile(const Sizes& s, const float* delta, const float* u, const float* B, const float* C, const float* A,
                  int steps, int width, Vec* h_memory, Vec* y) {
  const int64_t stride = s.bands * s.channels, states_stride = s.bands * s.states;
  Vec h[COUNT], rate[COUNT], inverse[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    const Vec a = load(A + n * s.channels, width, -1.0f);  // lanes without a channel must stay finite
    h[n] = h_memory[n];
    rate[n] = a * LOG2E;
    inverse[n] = 1.0f / a;
  }
  for (int t = 0; t < steps; ++t) {
    const Vec dt = load(delta + t * stride, width), in = load(u + t * stride, width);
    const Vec euler = dt * in;
    Vec sum = y[t];
    for (int n = 0; n < COUNT; ++n) {
      Vec decay, expm1;
      exponentials(dt * rate[n], decay, expm1);
      const Vec drive = ZOH ? expm1 * inverse[n] * in : euler;
      h[n] = decay * h[n] + drive * B[t * states_stride + n];
      sum += h[n] * C[t * states_stride + n];
    }
    y[t] = sum;
  }
  for (int n = 0; n < COUNT; ++n) h_memory[n] = h[n];
}

// Runs F<count> on MOST_STATES states at a time, then on halves of that, until all are done.
template <template <int> class F, int COUNT = MOST_STATES, typename Args>
INLINE void by_chunks(int64_t states, const Args& args, int64_t n = 0) {
  for (; n + COUNT <= states; n += COUNT) F<COUNT>::run(n, args);
  if constexpr (COUNT > 1) by_chunks<F, COUNT / 2>(states, args, n);
}

struct ForwardTile {
  const Sizes& s;
  const float *delta, *u, *B, *C, *A;
  int steps, width;
  Vec *h, *y;
};

template <int COUNT>
struct ForwardChunk {
  static void run(int64_t n, const ForwardTile& f) {
    auto tile = f.s.zoh ? forward_tile<COUNT, true> : forward_tile<COUNT, false>;
    tile(f.s, f.delta, f.u, f.B + n, f.C + n, f.A + n * f.s.channels, f.steps, f.width, f.h + n, f.y);
  }
};

int64_t blocks_of(const Sizes& s) { return (s.channels + LANES - 1) / LANES; }

// Few rows leave cores idle: then a row's channel blocks are dealt to several tasks. Not by the number of threads, so
// that sums do not depend on it.
int64_t groups_of(const Sizes& s) {
  return s.batch >= 8 ? 1 : std::min(blocks_of(s), (8 + s.batch - 1) / s.batch);
}

void forward_block(const Sizes& s, const Inputs& in, int64_t b, int64_t d, float* y, float* last, float* checkpoints) {
  const int width = (int)std::min<int64_t>(LANES, s.channels - d);
  const int64_t tiles = (s.length + TILE - 1) / TILE;
  std::vector<Vec> h(s.bands * s.states);
  for (int64_t i = 0; i < s.bands * s.states; ++i)
    h[i] = in.initial ? load(in.initial + (b * s.bands * s.states + i) * s.channels + d, width) : Vec{};
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t start = tile * TILE;
    const int steps = (int)std::min<int64_t>(TILE, s.length - start);
    if (checkpoints)
      for (int64_t i = 0; i < s.bands * s.states; ++i)
        store(checkpoints + ((b * tiles + tile) * s.bands * s.states + i) * s.channels + d, h[i], width);
    Vec total[TILE] = {};
    for (int64_t m = 0; m < s.bands; ++m) {
      const int64_t row = (b * s.length + start) * s.bands + m;
      Vec band[TILE] = {};
      ForwardTile f{s, in.delta + row * s.channels + d, in.u + row * s.channels + d, in.B + row * s.states,
                    in.C + row * s.states, in.A + m * s.states * s.channels + d, steps, width, &h[m * s.states], band};
      by_chunks<ForwardChunk>(s.states, f);
      const Vec skip = in.skip ? load(in.skip + m * s.channels + d, width) : Vec{};
      for (int t = 0; t < steps; ++t) {
        const int64_t at = row + t * s.bands;
        if (in.skip) band[t] += skip * load(in.u + at * s.channels + d, width);
        total[t] += mix_at(in.mix + at * s.heads, s, d, width) * band[t];
      }
    }
    for (int t = 0; t < steps; ++t) store(y + (b * s.length + start + t) * s.channels + d, total[t], width);
  }
  for (int64_t i = 0; i < s.bands * s.states; ++i)
    store(last + (b * s.bands * s.states + i) * s.channels + d, h[i], width);
}

struct BackwardTile {
  const Sizes& s;
  const float *delta, *u, *B, *C, *A;
  int steps, width;
  const Vec *checkpoint, *grad_band;  // states before the tile; dLoss/dy of the band, per step
  Vec *carry, *y, *grad_u, *grad_delta, *grad_A;
  float *grad_B, *grad_C;  // of the task, (L, M, N)
};

template <int COUNT, bool ZOH>
void backward_tile(const BackwardTile& f, int64_t first) {
  const Sizes& s = f.s;
  const int64_t stride = s.bands * s.channels, states_stride = s.bands * s.states;
  const float *B = f.B + first, *C = f.C + first;
  Vec states[TILE + 1][COUNT], decays[TILE][COUNT], gains[TILE][COUNT], A[COUNT], rate[COUNT], inverse[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    A[n] = load(f.A + (first + n) * s.channels, f.width, -1.0f);
    rate[n] = A[n] * LOG2E;
    inverse[n] = 1.0f / A[n];
    states[0][n] = f.checkpoint[first + n];
  }
  for (int t = 0; t < f.steps; ++t) {
    const Vec dt = load(f.delta + t * stride, f.width), in = load(f.u + t * stride, f.width);
    Vec sum = f.y[t];
    for (int n = 0; n < COUNT; ++n) {
      Vec decay, expm1;
      exponentials(dt * rate[n], decay, expm1);
      const Vec gain = ZOH ? expm1 * inverse[n] : dt;
      decays[t][n] = decay;
      if (ZOH) gains[t][n] = gain;
      states[t + 1][n] = decay * states[t][n] + gain * in * B[t * states_stride + n];
      sum += states[t + 1][n] * C[t * states_stride + n];
    }
    f.y[t] = sum;
  }
  Vec grad_h[COUNT], grad_A[COUNT], sums_B[TILE * COUNT], sums_C[TILE * COUNT];
  for (int n = 0; n < COUNT; ++n) {
    grad_h[n] = f.carry[first + n];
    grad_A[n] = Vec{};
  }
  for (int t = f.steps - 1; t >= 0; --t) {
    const Vec dt = load(f.delta + t * stride, f.width), in = load(f.u + t * stride, f.width), grad = f.grad_band[t];
    Vec grad_u = f.grad_u[t], grad_delta = f.grad_delta[t];
    for (int n = 0; n < COUNT; ++n) {
      const float b = B[t * states_stride + n], c = C[t * states_stride + n];
      const Vec h = grad_h[n] + grad * c;
      sums_C[t * COUNT + n] = grad * states[t + 1][n];
      const Vec drive = in * b, previous = states[t][n];
      const Vec carried = h * decays[t][n];
      Vec grad_drive;
      if (ZOH) {
        // dh/ddelta = a (B u + A h_{t-1}); dh/dA has, besides delta / A times that, the derivative of 1 / A.
        const Vec slope = carried * (drive + A[n] * previous);
        grad_drive = h * gains[t][n];
        grad_delta += slope;
        grad_A[n] += slope * dt - grad_drive * drive;
      } else {
        const Vec slope = carried * previous;
        grad_drive = h * dt;
        grad_delta += slope * A[n] + h * drive;
        grad_A[n] += slope * dt;
      }
      grad_u += grad_drive * b;
      sums_B[t * COUNT + n] = grad_drive * in;
      grad_h[n] = carried;
    }
    f.grad_u[t] = grad_u;
    f.grad_delta[t] = grad_delta;
  }
  for (int n = 0; n < COUNT; ++n) {
    f.carry[first + n] = grad_h[n];
    f.grad_A[first + n] += ZOH ? grad_A[n] * inverse[n] : grad_A[n];
  }
  const int sums = f.steps * COUNT;
  for (int i = sums; i % LANES; ++i) sums_B[i] = sums_C[i] = Vec{};
  for (int i = 0; i < sums; i += LANES) {
    const Vec sum_B = lane_sums(sums_B + i), sum_C = lane_sums(sums_C + i);
    for (int k = 0; k < std::min(LANES, sums - i); ++k) {
      const int64_t at = (i + k) / COUNT * states_stride + first + (i + k) % COUNT;
      f.grad_B[at] += sum_B[k];
      f.grad_C[at] += sum_C[k];
    }
  }
}

template <int COUNT>
struct BackwardChunk {
  static void run(int64_t n, const BackwardTile& f) {
    if (f.s.zoh) backward_tile<COUNT, true>(f, n);
    else backward_tile<COUNT, false>(f, n);
  }
};

struct Gradients {
  float *u, *delta, *A, *B, *C, *mix, *skip, *initial;  // A and skip per row of the batch; B, C, mix per group
};

void backward_block(const Sizes& s, const Inputs& in, const float* checkpoints, const float* grad_y,
                    const float* grad_last, int64_t b, int64_t group, int64_t d, const Gradients& g) {
  const int width = (int)std::min<int64_t>(LANES, s.channels - d);
  const int64_t tiles = (s.length + TILE - 1) / TILE, all = s.bands * s.states;
  std::vector<Vec> carry(all), start_states(all), grad_A(all), grad_skip(s.bands);
  for (int64_t i = 0; i < all; ++i) carry[i] = load(grad_last + (b * all + i) * s.channels + d, width);
  for (int64_t tile = tiles - 1; tile >= 0; --tile) {
    const int64_t start = tile * TILE;
    const int steps = (int)std::min<int64_t>(TILE, s.length - start);
    for (int64_t i = 0; i < all; ++i)
      start_states[i] = load(checkpoints + ((b * tiles + tile) * all + i) * s.channels + d, width);
    for (int64_t m = 0; m < s.bands; ++m) {
      const int64_t row = (b * s.length + start) * s.bands + m;
      const int64_t own = ((group * s.batch + b) * s.length + start) * s.bands + m;  // row of the task's buffers
      const Vec skip = in.skip ? load(in.skip + m * s.channels + d, width) : Vec{};
      Vec grad_band[TILE], y[TILE] = {}, grad_u[TILE] = {}, grad_delta[TILE] = {};
      for (int t = 0; t < steps; ++t) {
        const Vec grad = load(grad_y + (b * s.length + start + t) * s.channels + d, width);
        grad_band[t] = grad * mix_at(in.mix + (row + t * s.bands) * s.heads, s, d, width);
        if (in.skip) {
          const Vec u = load(in.u + (row + t * s.bands) * s.channels + d, width);
          y[t] = skip * u;
          grad_u[t] = skip * grad_band[t];
          grad_skip[m] += grad_band[t] * u;
        }
      }
      BackwardTile f{s, in.delta + row * s.channels + d, in.u + row * s.channels + d, in.B + row * s.states,
                     in.C + row * s.states, in.A + m * s.states * s.channels + d, steps, width,
                     &start_states[m * s.states], grad_band, &carry[m * s.states], y, grad_u, grad_delta,
                     &grad_A[m * s.states], g.B + own * s.states, g.C + own * s.states};
      by_chunks<BackwardChunk>(s.states, f);
      for (int t = 0; t < steps; ++t) {
        const int64_t at = row + t * s.bands;
        store(g.u + at * s.channels + d, grad_u[t], width);
        store(g.delta + at * s.channels + d, grad_delta[t], width);
        const Vec product = load(grad_y + (b * s.length + start + t) * s.channels + d, width) * y[t];
        for (int i = 0; i < width; ++i)
          g.mix[(own + t * s.bands) * s.heads + (s.heads == 1 ? 0 : (d + i) * s.heads / s.channels)] += product[i];
      }
    }
  }
  for (int64_t i = 0; i < all; ++i) {
    store(g.initial + (b * all + i) * s.channels + d, carry[i], width);
    store(g.A + (b * all + i) * s.channels + d, grad_A[i], width);
  }
  if (in.skip)
    for (int64_t m = 0; m < s.bands; ++m) store(g.skip + (b * s.bands + m) * s.channels + d, grad_skip[m], width);
}

template <typename Block>
void for_each_block(const Sizes& s, const Block& block) {
  const int64_t groups = groups_of(s), blocks = blocks_of(s);
  run_tasks(s.batch * groups, s.threads, [&](int64_t task) {
    const int64_t b = task / groups, group = task % groups;
    for (int64_t i = group; i < blocks; i += groups) block(b, group, i * LANES);
  });
}

}  // namespace

extern "C" {

int64_t msssm_tile() { return TILE; }

int64_t msssm_groups(int64_t batch, int64_t channels) {
  return groups_of(Sizes{batch, 0, 0, channels, 0, 1, 0, 1});
}

void msssm_scan_forward(const int64_t* sizes, const float* const* in, float* y, float* last, float* checkpoints) {
  const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], (int)sizes[6], (int)sizes[7]};
  const Inputs inputs{in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]};
  for_each_block(s, [&](int64_t b, int64_t, int64_t d) { forward_block(s, inputs, b, d, y, last, checkpoints); });
}

// Buffers that are summed (B, C, mix) must come zeroed.
void msssm_scan_backward(const int64_t* sizes, const float* const* in, const float* checkpoints, const float* grad_y,
                         const float* grad_last, float* const* out) {
  const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], (int)sizes[6], (int)sizes[7]};
  const Inputs inputs{in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]};
  const Gradients g{out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7]};
  for_each_block(s, [&](int64_t b, int64_t group, int64_t d) {
    backward_block(s, inputs, checkpoints, grad_y, grad_last, b, group, d, g);
  });
}
}
