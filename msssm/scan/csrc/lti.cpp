// Time-invariant diagonal recurrences over M bands, forward and backward, real or complex:
//
//   h_t = a h_{t-1} + u_t,   y_t = sum_m mix_t[m] (Re sum_n w h_t + D u_t)
//
// The backward stores no states. With s_t = dh_t / da = a s_{t-1} + h_{t-1}, one pass forward in time gives the
// gradients of w and a, and one pass back in time that of u.

#include "common.h"

namespace {

#if defined(__AVX512F__)
constexpr int STATES = 4;  // at a time, so that the loops of a step are free of spills
#else
constexpr int STATES = 2;
#endif
constexpr int TILE = 64;

// A number per lane: real, or the two parts of a complex one.
template <bool COMPLEX>
struct Number {
  Vec re{}, im{};
};

// a x + b
template <bool COMPLEX>
INLINE Number<COMPLEX> multiply_add(const Number<COMPLEX>& a, const Number<COMPLEX>& x, const Number<COMPLEX>& b) {
  if constexpr (COMPLEX) return {a.re * x.re - a.im * x.im + b.re, a.re * x.im + a.im * x.re + b.im};
  else return {a.re * x.re + b.re, Vec{}};
}

template <bool COMPLEX>
INLINE Number<COMPLEX> conjugate(const Number<COMPLEX>& x) {
  return {x.re, -x.im};
}

// Real and imaginary planes of (..., N, D), the latter null if real.
struct Planes {
  float *re, *im;

  template <bool COMPLEX>
  INLINE Number<COMPLEX> get(int64_t at, int width) const {
    Number<COMPLEX> x{re ? load(re + at, width) : Vec{}, Vec{}};
    if constexpr (COMPLEX) x.im = re ? load(im + at, width) : Vec{};
    return x;
  }

  template <bool COMPLEX>
  INLINE void put(int64_t at, const Number<COMPLEX>& x, int width) const {
    store(re + at, x.re, width);
    if constexpr (COMPLEX) store(im + at, x.im, width);
  }
};

Planes planes(float* const* pair) { return {pair[0], pair[1]}; }

struct Call {
  int64_t batch, length, bands, channels, states, heads, threads;
  Array u, mix;
  Planes decay, weight, initial;  // (M, N, D), (M, N, D), (B, M, N, D) or null
  const float* skip;              // (M, D) or null
  const int64_t* lengths;

  int64_t length_of(int64_t b) const { return lengths ? std::clamp<int64_t>(lengths[b], 0, length) : length; }
  double operations(bool complex) const { return (double)batch * length * bands * channels * states * (complex + 1); }
};

// COUNT states of one band, from the first of them on; `at` is where their parameters are.
template <int COUNT, bool COMPLEX>
void forward_states(const Call& c, int64_t at, int steps, int width, const Vec* u, Number<COMPLEX>* h_memory, Vec* y) {
  Number<COMPLEX> a[COUNT], w[COUNT], h[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    a[n] = c.decay.get<COMPLEX>(at + n * c.channels, width);
    w[n] = c.weight.get<COMPLEX>(at + n * c.channels, width);
    h[n] = h_memory[n];
  }
  for (int t = 0; t < steps; ++t) {
    Vec sum = y[t];
    for (int n = 0; n < COUNT; ++n) {
      h[n] = multiply_add(a[n], h[n], Number<COMPLEX>{u[t], Vec{}});
      sum += w[n].re * h[n].re;
      if constexpr (COMPLEX) sum -= w[n].im * h[n].im;
    }
    y[t] = sum;
  }
  for (int n = 0; n < COUNT; ++n) h_memory[n] = h[n];
}

template <bool COMPLEX>
struct Memory {
  std::vector<Number<COMPLEX>> h, s, grad_weight, grad_decay;
  explicit Memory(int64_t states) : h(states), s(states), grad_weight(states), grad_decay(states) {}
};

// Forward in time: recomputes h and y, and adds up sum_t grad_t h_t and sum_t grad_t s_t.
template <int COUNT, bool COMPLEX>
void sensitivities(const Call& c, int64_t at, int steps, int width, const Vec* u, const Vec* grad, int64_t first,
                   Memory<COMPLEX>& memory, Vec* y) {
  Number<COMPLEX> a[COUNT], w[COUNT], h[COUNT], s[COUNT], grad_weight[COUNT], grad_decay[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    a[n] = c.decay.get<COMPLEX>(at + n * c.channels, width);
    w[n] = c.weight.get<COMPLEX>(at + n * c.channels, width);
    h[n] = memory.h[first + n];
    s[n] = memory.s[first + n];
    grad_weight[n] = memory.grad_weight[first + n];
    grad_decay[n] = memory.grad_decay[first + n];
  }
  for (int t = 0; t < steps; ++t) {
    Vec sum = y[t];
    for (int n = 0; n < COUNT; ++n) {
      s[n] = multiply_add(a[n], s[n], h[n]);
      h[n] = multiply_add(a[n], h[n], Number<COMPLEX>{u[t], Vec{}});
      grad_weight[n].re += grad[t] * h[n].re;
      grad_decay[n].re += grad[t] * s[n].re;
      sum += w[n].re * h[n].re;
      if constexpr (COMPLEX) {
        grad_weight[n].im += grad[t] * h[n].im;
        grad_decay[n].im += grad[t] * s[n].im;
        sum -= w[n].im * h[n].im;
      }
    }
    y[t] = sum;
  }
  for (int n = 0; n < COUNT; ++n) {
    memory.h[first + n] = h[n];
    memory.s[first + n] = s[n];
    memory.grad_weight[first + n] = grad_weight[n];
    memory.grad_decay[first + n] = grad_decay[n];
  }
}

// Back in time: grad_h_t = conj(w) grad_t + conj(a) grad_h_{t+1}, and grad_u_t = Re sum_n grad_h_t. The carry holds
// conj(a) grad_h of the step after.
template <int COUNT, bool COMPLEX>
void adjoint_states(const Call& c, int64_t at, int steps, int width, const Vec* grad, Number<COMPLEX>* carry,
                    Vec* grad_u) {
  Number<COMPLEX> a[COUNT], w[COUNT], grad_h[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    a[n] = conjugate(c.decay.get<COMPLEX>(at + n * c.channels, width));
    w[n] = conjugate(c.weight.get<COMPLEX>(at + n * c.channels, width));
    grad_h[n] = carry[n];
  }
  for (int t = steps - 1; t >= 0; --t) {
    Vec sum = grad_u[t];
    for (int n = 0; n < COUNT; ++n) {
      grad_h[n].re += w[n].re * grad[t];
      if constexpr (COMPLEX) grad_h[n].im += w[n].im * grad[t];
      sum += grad_h[n].re;
      grad_h[n] = multiply_add(a[n], grad_h[n], Number<COMPLEX>{});
    }
    grad_u[t] = sum;
  }
  for (int n = 0; n < COUNT; ++n) carry[n] = grad_h[n];
}

// f(number of states as a constant, first of them): STATES at a time, then halves of that.
template <int COUNT = STATES, typename F>
INLINE void by_chunks(int64_t states, const F& f, int64_t n = 0) {
  for (; n + COUNT <= states; n += COUNT) f(std::integral_constant<int, COUNT>(), n);
  if constexpr (COUNT > 1) by_chunks<COUNT / 2>(states, f, n);
}

template <bool COMPLEX>
void forward_block(const Call& c, int64_t b, int64_t d, int width, float* y, const Planes& last) {
  const int64_t all = c.bands * c.states, length = c.length_of(b);
  std::vector<Number<COMPLEX>> h(all);
  for (int64_t i = 0; i < all; ++i) h[i] = c.initial.get<COMPLEX>((b * all + i) * c.channels + d, width);
  for (int64_t start = 0; start < length; start += TILE) {
    const int steps = (int)std::min<int64_t>(TILE, length - start);
    Vec total[TILE] = {}, u[TILE], band[TILE];
    for (int64_t m = 0; m < c.bands; ++m) {
      const Vec skip = c.skip ? load(c.skip + m * c.channels + d, width) : Vec{};
      for (int t = 0; t < steps; ++t) {
        u[t] = load(c.u.at(b, start + t, m) + d, width);
        band[t] = c.skip ? skip * u[t] : Vec{};
      }
      by_chunks(c.states, [&](auto count, int64_t n) {
        const int64_t state = m * c.states + n;
        forward_states<count(), COMPLEX>(c, state * c.channels + d, steps, width, u, &h[state], band);
      });
      const float* mix = c.mix.at(b, start, m);
      for (int t = 0; t < steps; ++t) total[t] += mix_at(mix + t * c.mix.step, c.heads, c.channels, d, width) * band[t];
    }
    for (int t = 0; t < steps; ++t) store(y + (b * c.length + start + t) * c.channels + d, total[t], width);
  }
  for (int64_t t = length; t < c.length; ++t) store(y + (b * c.length + t) * c.channels + d, Vec{}, width);
  for (int64_t i = 0; i < all; ++i) last.put((b * all + i) * c.channels + d, h[i], width);
}

// decay, weight and skip per row of the batch; mix (groups, B, L, M, heads), zeroed, or null; initial (B, M, N, D).
struct Gradients {
  Array u;
  Planes decay, weight, initial;
  float *mix, *skip;
};

template <bool COMPLEX>
void backward_block(const Call& c, const Array& grad_y, const Planes& grad_last, int64_t b, int64_t group, int64_t d,
                    int width, const Gradients& g) {
  const int64_t all = c.bands * c.states, length = c.length_of(b);
  Vec u[TILE], grad_band[TILE], y[TILE], grad_u[TILE];
  for (int64_t t = length; t < c.length; ++t)
    for (int64_t m = 0; m < c.bands; ++m) store(g.u.at(b, t, m) + d, Vec{}, width);
  for (int64_t m = 0; m < c.bands; ++m) {
    const Vec skip = c.skip ? load(c.skip + m * c.channels + d, width) : Vec{};
    const int64_t parameters = m * c.states * c.channels + d, states = (b * all + m * c.states) * c.channels + d;
    Memory<COMPLEX> memory(c.states);
    std::vector<Number<COMPLEX>> carry(c.states);
    for (int64_t n = 0; n < c.states; ++n) {
      memory.h[n] = c.initial.get<COMPLEX>(states + n * c.channels, width);
      carry[n] = grad_last.get<COMPLEX>(states + n * c.channels, width);
    }
    const auto incoming = [&](int64_t start, int steps) {
      const float* mix = c.mix.at(b, start, m);
      for (int t = 0; t < steps; ++t)
        grad_band[t] = load(grad_y.at(b, start + t, 0) + d, width) *
                       mix_at(mix + t * c.mix.step, c.heads, c.channels, d, width);
    };
    Vec grad_skip{};
    for (int64_t start = 0; start < length; start += TILE) {
      const int steps = (int)std::min<int64_t>(TILE, length - start);
      incoming(start, steps);
      for (int t = 0; t < steps; ++t) {
        u[t] = load(c.u.at(b, start + t, m) + d, width);
        y[t] = skip * u[t];
        grad_skip += grad_band[t] * u[t];
      }
      by_chunks(c.states, [&](auto count, int64_t n) {
        sensitivities<count(), COMPLEX>(c, parameters + n * c.channels, steps, width, u, grad_band, n, memory, y);
      });
      if (!g.mix) continue;
      for (int t = 0; t < steps; ++t) y[t] *= load(grad_y.at(b, start + t, 0) + d, width);
      const int64_t own = ((group * c.batch + b) * c.length + start) * c.bands + m;
      add_mix_gradient(g.mix + own * c.heads, c.bands * c.heads, c.heads, c.channels, d, width, y, steps);
    }
    store(g.skip + (b * c.bands + m) * c.channels + d, grad_skip, width);
    for (int64_t n = 0; n < c.states; ++n) {
      // Through the outputs, w sum_t grad_t s_t; through the last state, grad_last s.
      const auto w = c.weight.get<COMPLEX>(parameters + n * c.channels, width);
      const auto through_last = multiply_add(conjugate(carry[n]), memory.s[n], Number<COMPLEX>{});
      const auto grad_decay = multiply_add(w, memory.grad_decay[n], through_last);
      g.decay.put(states + n * c.channels, conjugate(grad_decay), width);
      g.weight.put(states + n * c.channels, conjugate(memory.grad_weight[n]), width);
    }
    // The last state has its gradient itself, not times a.
    const int64_t tiles = (length + TILE - 1) / TILE;
    for (int64_t tile = tiles - 1; tile >= 0; --tile) {
      const int64_t start = tile * TILE;
      const int steps = (int)std::min<int64_t>(TILE, length - start);
      incoming(start, steps);
      for (int t = 0; t < steps; ++t) grad_u[t] = skip * grad_band[t];
      by_chunks(c.states, [&](auto count, int64_t n) {
        adjoint_states<count(), COMPLEX>(c, parameters + n * c.channels, steps, width, grad_band, &carry[n], grad_u);
      });
      for (int t = 0; t < steps; ++t) store(g.u.at(b, start + t, m) + d, grad_u[t], width);
    }
    for (int64_t n = 0; n < c.states; ++n) g.initial.put(states + n * c.channels, carry[n], width);
  }
}

Call make_call(const int64_t* sizes, const int64_t* strides, float* const* in, const int64_t* lengths) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[7], array(in[0], strides),
          array(in[1], strides + 3), planes(in + 2), planes(in + 4), planes(in + 6), in[8], lengths};
}

}  // namespace

extern "C" {

// sizes: B, L, M, D, N, heads, complex, threads. strides: (row, step, band) of u, mix.
// in: u, mix, then real and imaginary planes of decay, weight and the initial state, then D.
// y (B, L, D); last: planes (B, M, N, D).
void msssm_lti_forward(const int64_t* sizes, const int64_t* strides, float* const* in, const int64_t* lengths, float* y,
                       float* const* last) {
  const Call c = make_call(sizes, strides, in, lengths);
  const auto block = sizes[6] ? forward_block<true> : forward_block<false>;
  for_each_block(c.batch, c.channels, c.threads, c.operations(sizes[6]),
                 [&](int64_t b, int64_t, int64_t d, int width) { block(c, b, d, width, y, planes(last)); });
}

// grad_strides: (row, step, band) of grad_y (band 0), grad_u.
// out: grad_u, mix (or null), planes of decay, weight and initial, skip.
void msssm_lti_backward(const int64_t* sizes, const int64_t* strides, float* const* in, const int64_t* lengths,
                        const float* grad_y, float* const* grad_last, const int64_t* grad_strides, float* const* out) {
  const Call c = make_call(sizes, strides, in, lengths);
  const Array incoming = array(grad_y, grad_strides);
  const Gradients g{array(out[0], grad_strides + 3), planes(out + 2), planes(out + 4), planes(out + 6), out[1], out[8]};
  const auto block = sizes[6] ? backward_block<true> : backward_block<false>;
  for_each_block(c.batch, c.channels, c.threads, c.operations(sizes[6]),
                 [&](int64_t b, int64_t group, int64_t d, int width) {
                   block(c, incoming, planes(grad_last), b, group, d, width, g);
                 });
}
}
