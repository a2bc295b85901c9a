// Selective scans over M bands, forward and backward. Time runs sequentially; nothing of size (B, L, M, D, N) is
// written. The forward keeps the states before every segment of steps; the backward recomputes the states of a segment,
// a few of the N at a time so that they stay in the nearest cache, and walks back over them.

#include "exponential.h"

namespace {

// States at a time: as many as keep the loops of a step free of spills.
#if defined(__AVX512F__)
constexpr int FORWARD_STATES = 8, BACKWARD_STATES = 4;
#else
constexpr int FORWARD_STATES = 4, BACKWARD_STATES = 2;
#endif
constexpr int TILE = 64, MOST_TILES = 4;

// The states before a segment are what the backward keeps: longer segments for more bands, so that memory hardly grows.
int64_t segment_of(int64_t bands) { return TILE * std::min<int64_t>(bands, MOST_TILES); }

// Whether some product of the lanes, or a NaN, needs the limit.
INLINE bool needs_limit(Vec delta, Vec rate) {
  const Int within = delta * rate >= LOWEST;
  int32_t all = -1;
  for (int i = 0; i < LANES; ++i) all &= within[i];
  return !all;
}

struct Call {
  int64_t batch, length, bands, channels, states, heads, zoh, threads;
  // Channels last in A (M, N, D) and the states (B, M, N, D); what is absent is null.
  Array u, delta, B, C, mix;
  const float *A, *skip, *delta_bias, *initial;
  const int64_t* lengths;
  float lowest_delta, highest_delta;

  int64_t length_of(int64_t b) const { return lengths ? std::clamp<int64_t>(lengths[b], 0, length) : length; }
  double operations() const { return (double)batch * length * bands * channels * states; }
};

// Step sizes and inputs of some steps of one band and block; returns the longest step of each lane.
INLINE Vec load_steps(const Call& c, int64_t b, int64_t start, int steps, int64_t m, int64_t d, int width, Vec* delta,
                      Vec* u) {
  Vec longest{};
  const Vec bias = c.delta_bias ? load(c.delta_bias + m * c.channels + d, width) : Vec{};
  for (int t = 0; t < steps; ++t) {
    u[t] = load(c.u.at(b, start + t, m) + d, width);
    Vec step = load(c.delta.at(b, start + t, m) + d, width);
    if (c.delta_bias) {
      step = softplus(step + bias);
      step = step < c.lowest_delta ? splat(c.lowest_delta) : step;
      step = step > c.highest_delta ? splat(c.highest_delta) : step;
    }
    delta[t] = step;
    longest = step <= longest ? longest : step;  // in this order a NaN is kept
  }
  return longest;
}

// Runs F<count> on COUNT states at a time, then on halves of that, until all are done.
template <template <int> class F, int COUNT, typename Args>
INLINE void by_chunks(int64_t states, const Args& args, int64_t n = 0) {
  for (; n + COUNT <= states; n += COUNT) F<COUNT>::run(n, args);
  if constexpr (COUNT > 1) by_chunks<F, COUNT / 2>(states, args, n);
}

// The most negative rate of some states, in each lane.
template <int COUNT, typename Tile>
INLINE Vec fastest_rate(const Tile& f, int64_t first) {
  Vec fastest{};
  for (int n = 0; n < COUNT; ++n) {
    const Vec rate = load(f.A + (first + n) * f.c.channels, f.width, -1.0f) * LOG2E;
    fastest = fastest < rate ? fastest : rate;
  }
  return fastest;
}

struct ForwardTile {
  const Call& c;
  Vec longest;  // step
  const Vec *delta, *u;
  const float *B, *C, *A;
  int steps, width;
  Vec *h, *y;
};

// Advances COUNT states of one band over a tile, and adds <C, h> to y.
template <int COUNT, bool ZOH, bool LIMIT>
void forward_tile(const ForwardTile& f, int64_t first) {
  const float *B = f.B + first, *C = f.C + first;
  const int64_t B_step = f.c.B.step, C_step = f.c.C.step;
  Vec h[COUNT], rate[COUNT], inverse[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    const Vec a = load(f.A + (first + n) * f.c.channels, f.width, -1.0f);  // lanes without a channel stay finite
    h[n] = f.h[first + n];
    rate[n] = a * LOG2E;
    inverse[n] = 1.0f / a;
  }
  for (int t = 0; t < f.steps; ++t, B += B_step, C += C_step) {
    const Vec delta = f.delta[t], u = f.u[t], euler = delta * u;
    Vec sum = f.y[t];
    for (int n = 0; n < COUNT; ++n) {
      Vec decay, expm1;
      exponentials<LIMIT>(delta, rate[n], decay, expm1);
      const Vec drive = ZOH ? expm1 * (inverse[n] * u) : euler;
      h[n] = decay * h[n] + drive * B[n];
      sum += h[n] * C[n];
    }
    f.y[t] = sum;
  }
  for (int n = 0; n < COUNT; ++n) f.h[first + n] = h[n];
}

template <int COUNT>
struct ForwardChunk {
  static void run(int64_t n, const ForwardTile& f) {
    const bool limit = needs_limit(f.longest, fastest_rate<COUNT>(f, n));
    if (f.c.zoh) (limit ? forward_tile<COUNT, true, true> : forward_tile<COUNT, true, false>)(f, n);
    else (limit ? forward_tile<COUNT, false, true> : forward_tile<COUNT, false, false>)(f, n);
  }
};

void forward_block(const Call& c, int64_t b, int64_t d, int width, float* y, float* last, float* checkpoints) {
  const int64_t all = c.bands * c.states, length = c.length_of(b), segment = segment_of(c.bands);
  const int64_t segments = (c.length + segment - 1) / segment;
  std::vector<Vec> h(all);
  for (int64_t i = 0; i < all; ++i)
    h[i] = c.initial ? load(c.initial + (b * all + i) * c.channels + d, width) : Vec{};
  for (int64_t start = 0; start < length; start += TILE) {
    const int steps = (int)std::min<int64_t>(TILE, length - start);
    if (checkpoints && start % segment == 0)
      for (int64_t i = 0; i < all; ++i)
        store(checkpoints + ((b * segments + start / segment) * all + i) * c.channels + d, h[i], width);
    Vec total[TILE] = {}, delta[TILE], u[TILE];
    for (int64_t m = 0; m < c.bands; ++m) {
      const Vec longest = load_steps(c, b, start, steps, m, d, width, delta, u);
      const Vec skip = c.skip ? load(c.skip + m * c.channels + d, width) : Vec{};
      Vec band[TILE];
      for (int t = 0; t < steps; ++t) band[t] = c.skip ? skip * u[t] : Vec{};
      const ForwardTile f{c, longest, delta, u, c.B.at(b, start, m), c.C.at(b, start, m), c.A + m * c.states * c.channels + d,
                          steps, width, &h[m * c.states], band};
      by_chunks<ForwardChunk, FORWARD_STATES>(c.states, f);
      const float* mix = c.mix.at(b, start, m);
      for (int t = 0; t < steps; ++t) total[t] += mix_at(mix + t * c.mix.step, c.heads, c.channels, d, width) * band[t];
    }
    for (int t = 0; t < steps; ++t) store(y + (b * c.length + start + t) * c.channels + d, total[t], width);
  }
  for (int64_t t = length; t < c.length; ++t) store(y + (b * c.length + t) * c.channels + d, Vec{}, width);
  for (int64_t i = 0; i < all; ++i) store(last + (b * all + i) * c.channels + d, h[i], width);
}

// Buffers of a thread for one segment.
struct Scratch {
  std::vector<Vec> delta, u, grad_band, y, grad_u, grad_delta, states, decays, gains;
  explicit Scratch(int64_t steps)
      : delta(steps), u(steps), grad_band(steps), y(steps), grad_u(steps), grad_delta(steps),
        states((steps + 1) * BACKWARD_STATES), decays(steps * BACKWARD_STATES), gains(steps * BACKWARD_STATES) {}
};

struct BackwardTile {
  const Call& c;
  Vec longest;  // step
  Scratch& s;
  const float *B, *C, *A;
  int steps, width;
  const Vec* start;  // states before the segment
  Vec *carry, *grad_A;
  float *grad_B, *grad_C;
  int64_t grad_step;
};

template <int COUNT, bool ZOH, bool LIMIT>
void backward_tile(const BackwardTile& f, int64_t first) {
  const int64_t B_step = f.c.B.step, C_step = f.c.C.step;
  Vec A[COUNT], inverse[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    A[n] = load(f.A + (first + n) * f.c.channels, f.width, -1.0f);
    inverse[n] = 1.0f / A[n];
  }
  {
    Vec rate[COUNT], h[COUNT];
    for (int n = 0; n < COUNT; ++n) {
      rate[n] = A[n] * LOG2E;
      h[n] = f.s.states[n] = f.start[first + n];
    }
    const float *B = f.B + first, *C = f.C + first;
    Vec *decays = f.s.decays.data(), *gains = f.s.gains.data(), *states = f.s.states.data() + COUNT;
    for (int t = 0; t < f.steps; ++t, B += B_step, C += C_step) {
      const Vec delta = f.s.delta[t], u = f.s.u[t], euler = delta * u;
      Vec sum = f.s.y[t];
      for (int n = 0; n < COUNT; ++n) {
        Vec decay, expm1;
        exponentials<LIMIT>(delta, rate[n], decay, expm1);
        const Vec gain = ZOH ? expm1 * inverse[n] : delta;
        decays[t * COUNT + n] = decay;
        if (ZOH) gains[t * COUNT + n] = gain;
        h[n] = decay * h[n] + (ZOH ? gain * u : euler) * B[n];
        states[t * COUNT + n] = h[n];
        sum += h[n] * C[n];
      }
      f.s.y[t] = sum;
    }
  }
  Vec grad_h[COUNT], grad_A[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    grad_h[n] = f.carry[first + n];
    grad_A[n] = Vec{};
  }
  // As many steps at a time as fill the lanes of one sum.
  constexpr int GROUP = LANES / COUNT;
  for (int end = f.steps; end > 0; end -= GROUP) {
    const int begin = std::max(0, end - GROUP);
    Vec sums_B[LANES], sums_C[LANES];
    for (int i = (end - begin) * COUNT; i < LANES; ++i) sums_B[i] = sums_C[i] = Vec{};
    for (int t = end - 1; t >= begin; --t) {
      const float *B = f.B + first + t * B_step, *C = f.C + first + t * C_step;
      const Vec delta = f.s.delta[t], u = f.s.u[t], grad = f.s.grad_band[t];
      const Vec *decays = &f.s.decays[t * COUNT], *gains = &f.s.gains[t * COUNT], *states = &f.s.states[t * COUNT];
      Vec grad_u = f.s.grad_u[t], grad_delta = f.s.grad_delta[t];
      for (int n = 0; n < COUNT; ++n) {
        const Vec h = grad_h[n] + grad * C[n];
        sums_C[(t - begin) * COUNT + n] = grad * states[COUNT + n];
        const Vec drive = u * B[n], carried = h * decays[n];
        Vec grad_drive;
        if (ZOH) {
          // dh/ddelta = a (B u + A h_{t-1}); dh/dA has, besides delta / A times that, the derivative of 1 / A.
          const Vec slope = carried * (drive + A[n] * states[n]);
          grad_drive = h * gains[n];
          grad_delta += slope;
          grad_A[n] += slope * delta - grad_drive * drive;
        } else {
          const Vec slope = carried * states[n];
          grad_drive = h * delta;
          grad_delta += slope * A[n] + h * drive;
          grad_A[n] += slope * delta;
        }
        grad_u += grad_drive * B[n];
        sums_B[(t - begin) * COUNT + n] = grad_drive * u;
        grad_h[n] = carried;
      }
      f.s.grad_u[t] = grad_u;
      f.s.grad_delta[t] = grad_delta;
    }
    const Vec sum_B = lane_sums(sums_B), sum_C = lane_sums(sums_C);
    for (int t = begin; t < end; ++t)
      for (int n = 0; n < COUNT; ++n) {
        f.grad_B[t * f.grad_step + first + n] += sum_B[(t - begin) * COUNT + n];
        f.grad_C[t * f.grad_step + first + n] += sum_C[(t - begin) * COUNT + n];
      }
  }
  for (int n = 0; n < COUNT; ++n) {
    f.carry[first + n] = grad_h[n];
    f.grad_A[first + n] += ZOH ? grad_A[n] * inverse[n] : grad_A[n];
  }
}

template <int COUNT>
struct BackwardChunk {
  static void run(int64_t n, const BackwardTile& f) {
    const bool limit = needs_limit(f.longest, fastest_rate<COUNT>(f, n));
    if (f.c.zoh) (limit ? backward_tile<COUNT, true, true> : backward_tile<COUNT, true, false>)(f, n);
    else (limit ? backward_tile<COUNT, false, true> : backward_tile<COUNT, false, false>)(f, n);
  }
};

// A, skip and delta_bias per row of the batch; B, C and mix (groups, B, L, M, ...), zeroed, per group of channels.
struct Gradients {
  Array u, delta;
  float *A, *B, *C, *mix, *skip, *delta_bias, *initial;
};

void backward_block(const Call& c, const float* checkpoints, const Array& grad_y, const float* grad_last, int64_t b,
                    int64_t group, int64_t d, int width, const Gradients& g, Scratch& s) {
  const int64_t all = c.bands * c.states, length = c.length_of(b), segment = segment_of(c.bands);
  const int64_t segments = (c.length + segment - 1) / segment;
  std::vector<Vec> carry(all), start_states(all), grad_A(all), grad_skip(c.bands), grad_bias(c.bands);
  for (int64_t i = 0; i < all; ++i) carry[i] = load(grad_last + (b * all + i) * c.channels + d, width);
  for (int64_t t = length; t < c.length; ++t)
    for (int64_t m = 0; m < c.bands; ++m) {
      store(g.u.at(b, t, m) + d, Vec{}, width);
      store(g.delta.at(b, t, m) + d, Vec{}, width);
    }
  for (int64_t index = (length + segment - 1) / segment - 1; index >= 0; --index) {
    const int64_t start = index * segment;
    const int steps = (int)std::min<int64_t>(segment, length - start);
    for (int64_t i = 0; i < all; ++i)
      start_states[i] = load(checkpoints + ((b * segments + index) * all + i) * c.channels + d, width);
    for (int64_t m = 0; m < c.bands; ++m) {
      const int64_t own = ((group * c.batch + b) * c.length + start) * c.bands + m;  // row of the group's buffers
      const Vec longest = load_steps(c, b, start, steps, m, d, width, s.delta.data(), s.u.data());
      const Vec skip = c.skip ? load(c.skip + m * c.channels + d, width) : Vec{};
      const float* mix = c.mix.at(b, start, m);
      for (int t = 0; t < steps; ++t) {
        const Vec grad = load(grad_y.at(b, start + t, 0) + d, width);
        s.grad_band[t] = grad * mix_at(mix + t * c.mix.step, c.heads, c.channels, d, width);
        s.y[t] = skip * s.u[t];
        s.grad_u[t] = skip * s.grad_band[t];
        s.grad_delta[t] = Vec{};
        grad_skip[m] += s.grad_band[t] * s.u[t];
      }
      const BackwardTile f{c, longest, s, c.B.at(b, start, m), c.C.at(b, start, m), c.A + m * c.states * c.channels + d, steps,
                           width, &start_states[m * c.states], &carry[m * c.states], &grad_A[m * c.states],
                           g.B + own * c.states, g.C + own * c.states, c.bands * c.states};
      by_chunks<BackwardChunk, BACKWARD_STATES>(c.states, f);
      for (int t = 0; t < steps; ++t) {
        store(g.u.at(b, start + t, m) + d, s.grad_u[t], width);
        Vec grad = s.grad_delta[t];
        if (c.delta_bias) {  // the derivative of softplus is 1 - exp(-softplus)
          Vec decay, expm1;
          exponentials<true>(s.delta[t], splat(-LOG2E), decay, expm1);
          const Int inside = (s.delta[t] > c.lowest_delta) & (s.delta[t] < c.highest_delta);
          grad = inside ? -expm1 * grad : Vec{};
          grad_bias[m] += grad;
        }
        store(g.delta.at(b, start + t, m) + d, grad, width);
        s.y[t] *= load(grad_y.at(b, start + t, 0) + d, width);
      }
      if (g.mix)
        add_mix_gradient(g.mix + own * c.heads, c.bands * c.heads, c.heads, c.channels, d, width, s.y.data(), steps);
    }
  }
  for (int64_t i = 0; i < all; ++i) {
    store(g.initial + (b * all + i) * c.channels + d, carry[i], width);
    store(g.A + (b * all + i) * c.channels + d, grad_A[i], width);
  }
  for (int64_t m = 0; m < c.bands; ++m) {
    store(g.skip + (b * c.bands + m) * c.channels + d, grad_skip[m], width);
    store(g.delta_bias + (b * c.bands + m) * c.channels + d, grad_bias[m], width);
  }
}

// sizes: B, L, M, D, N, heads, zoh, threads. strides: (row, step, band) of u, delta, B, C, mix.
// inputs: u, delta, B, C, mix, A, D, delta_bias, initial state.
Call make_call(const int64_t* sizes, const int64_t* strides, const float* const* in, const int64_t* lengths,
               const float* limits) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7],
          array(in[0], strides), array(in[1], strides + 3), array(in[2], strides + 6), array(in[3], strides + 9),
          array(in[4], strides + 12), in[5], in[6], in[7], in[8], lengths, limits[0], limits[1]};
}

}  // namespace

extern "C" {

int64_t msssm_lanes() { return LANES; }

int64_t msssm_segment(int64_t bands) { return segment_of(bands); }

int64_t msssm_groups(int64_t batch, int64_t channels) { return groups_of(batch, channels); }

// limits: least and greatest step size after the softplus. y (B, L, D), last (B, M, N, D), checkpoints
// (B, segments, M, N, D) or null.
void msssm_selective_forward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                             const int64_t* lengths, const float* limits, float* y, float* last, float* checkpoints) {
  const Call c = make_call(sizes, strides, in, lengths, limits);
  for_each_block(c.batch, c.channels, c.threads, c.operations(), [&](int64_t b, int64_t, int64_t d, int width) {
    forward_block(c, b, d, width, y, last, checkpoints);
  });
}

// grad_strides: (row, step, band) of grad_y (band 0), grad_u, grad_delta.
// out: grad_u, grad_delta, A, B, C, mix (or null), skip, delta_bias, initial.
void msssm_selective_backward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                              const int64_t* lengths, const float* limits, const float* checkpoints,
                              const float* grad_y, const float* grad_last, const int64_t* grad_strides,
                              float* const* out) {
  const Call c = make_call(sizes, strides, in, lengths, limits);
  const Array incoming = array(grad_y, grad_strides);
  const Gradients g{array(out[0], grad_strides + 3), array(out[1], grad_strides + 6),
                    out[2], out[3], out[4], out[5], out[6], out[7], out[8]};
  for_each_block(c.batch, c.channels, c.threads, c.operations(), [&](int64_t b, int64_t group, int64_t d, int width) {
    thread_local Scratch scratch(TILE * MOST_TILES);
    backward_block(c, checkpoints, incoming, grad_last, b, group, d, width, g, scratch);
  });
}
}
