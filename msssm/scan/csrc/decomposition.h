// The multi-scale decomposition of some steps of a block of channels, forward and backward: nested dilated
// convolutions.
//
//   a^s[t] = sum_k low^s[k] a^{s-1}[t - 2^{s-1} k],   d^s likewise with high^s;   bands x, d^1 .. d^S, a^S
//
// From one tile of steps to the next a block carries the histories a^{s-1}[-(K - 1) 2^{s-1}] .. a^{s-1}[-1]; on the way
// back their gradients, and there the approximations are computed again, from as far back as those of a tile can see.
// Where nothing lies before the first step and nobody asks for what lies before the last, taps that reach further back
// than the sequence is long meet zeros alone: they are left out, and the histories are no longer than it.
#pragma once

#include <limits>
#include <type_traits>

#include "common.h"

namespace {

struct Decomposition {
  int64_t levels, taps, channels;
  Array x, history;         // history (B, rows of all levels, 1, D), or without data
  const float *low, *high;  // (S, K, D)
  int64_t reach = std::numeric_limits<int64_t>::max();  // steps whose values may differ from zero

  // For a row of so many steps; `last`: the histories at its end, or their gradients, null where nobody asks for them.
  Decomposition of_row(int64_t length, const float* last) const {
    Decomposition own = *this;
    if (!history.data && !last) own.reach = std::max<int64_t>(1, length);
    return own;
  }
  int64_t taps_of(int64_t level) const { return std::min(taps, ((reach - 1) >> level) + 1); }
  int64_t past(int64_t level) const { return (taps_of(level) - 1) << level; }  // rows of history of a level
  int64_t past_before(int64_t level) const {
    int64_t rows = 0;
    for (int64_t finer = 0; finer < level; ++finer) rows += past(finer);
    return rows;
  }
  int64_t rows() const { return past_before(levels); }
};

// One row, and a block of channels from d on.
struct Column {
  int64_t b, d;
  int width;
};

// Taps of all levels of one block, (S, K) each.
struct Taps {
  std::vector<Vec> low, high;
  explicit Taps(const Decomposition& c) : low(c.levels * c.taps), high(low) {}
  Taps(const Decomposition& c, const Column& at) : Taps(c) {
    for (size_t i = 0; i < low.size(); ++i) {
      low[i] = load(c.low + i * c.channels + at.d, at.width);
      high[i] = load(c.high + i * c.channels + at.d, at.width);
    }
  }
};

// Values of some steps at levels 0 .. S, behind those of the past that a convolution reads.
struct Levels {
  const Decomposition& c;
  int64_t steps;
  std::vector<Vec> values;
  std::vector<int64_t> first;  // of the steps of a level
  Levels(const Decomposition& c, int64_t steps) : c(c), steps(steps), values(c.rows() + (c.levels + 1) * steps) {
    for (int64_t level = 0; level <= c.levels; ++level)
      first.push_back(c.past_before(std::min(level + 1, c.levels)) + level * steps);
  }

  Vec* at(int64_t level) { return &values[first[level]]; }

  // use(value, row of a history of all levels)
  template <typename Use>
  void for_each_past(const Use& use) {
    for (int64_t level = 0; level < c.levels; ++level)
      for (int64_t i = 0; i < c.past(level); ++i) use(at(level)[i - c.past(level)], c.past_before(level) + i);
  }
  // Histories (rows, D) of one row of the batch.
  void read_past(const float* history, const Column& at) {
    for_each_past([&](Vec& value, int64_t row) { value = load(history + row * c.channels + at.d, at.width); });
  }
  void write_past(float* history, const Column& at) {
    for_each_past([&](Vec& value, int64_t row) { store(history + row * c.channels + at.d, value, at.width); });
  }
  // So many steps forward: the latest values become the past.
  void forward(int64_t count) {
    for (int64_t level = 0; level < c.levels; ++level) {
      Vec* first = at(level) - c.past(level);
      std::copy(first + count, first + count + c.past(level), first);
    }
  }
  // So many steps back: the past becomes the latest values, what lies before it is zero.
  void back(int64_t count) {
    for (int64_t level = 0; level < c.levels; ++level) {
      Vec* first = at(level) - c.past(level);
      std::copy_backward(first, first + c.past(level), first + c.past(level) + count);
      std::fill_n(first, count, Vec{});
    }
  }
};

// In place of what takes or gives the bands: nobody asks for them.
struct NoBands {};

// K taps at once for the common lengths, so that they stay in registers. detail(t, value) takes d^s, where it is wanted.
template <int64_t TAPS, typename Detail>
void convolve(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation, int64_t length,
              Vec* approximation, const Detail& detail) {
  constexpr bool HIGH = !std::is_same_v<Detail, NoBands>;
  if (TAPS) taps = TAPS;
  for (int64_t t = 0; t < length; ++t) {
    Vec sum_low{}, sum_high{};
    for (int64_t k = 0; k < taps; ++k) {
      const Vec value = source[t - k * dilation];
      sum_low += low[k] * value;
      if (HIGH) sum_high += high[k] * value;
    }
    approximation[t] = sum_low;
    if constexpr (HIGH) detail(t, sum_high);
  }
}

template <typename Detail>
void convolve_any(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation, int64_t length,
                  Vec* approximation, const Detail& detail) {
  const auto run = taps == 2   ? convolve<2, Detail>
                   : taps == 3 ? convolve<3, Detail>
                   : taps == 4 ? convolve<4, Detail>
                               : convolve<0, Detail>;
  run(source, low, high, taps, dilation, length, approximation, detail);
}

void load_history(const Decomposition& c, const Column& at, Levels& values) {
  values.for_each_past([&](Vec& value, int64_t row) {
    value = c.history.data ? load(c.history.at(at.b, row, 0) + at.d, at.width) : Vec{};
  });
}

// The values of `steps` steps from start on, at all levels, behind those of `halo` steps before them; and, where they
// are asked for, the bands of the steps: take(m) is what takes band m, a function of (t, value).
template <typename Take>
void split(const Decomposition& c, const Column& at, const Taps& taps, int64_t start, int64_t halo, int64_t steps,
           Levels& values, const Take& take) {
  constexpr bool BANDS = !std::is_same_v<Take, NoBands>;
  for (int64_t t = 0; t < halo + steps; ++t)
    values.at(0)[t] = load(c.x.at(at.b, start - halo + t, 0) + at.d, at.width);
  for (int64_t level = 0; level < c.levels - !BANDS; ++level) {  // without bands nobody asks for a^S
    const Vec *source = values.at(level), *low = &taps.low[level * c.taps], *high = &taps.high[level * c.taps];
    const int64_t dilation = int64_t{1} << level, count = c.taps_of(level);
    Vec* next = values.at(level + 1);
    convolve_any(source, low, high, count, dilation, BANDS ? halo : halo + steps, next, NoBands{});
    if constexpr (BANDS) convolve_any(source + halo, low, high, count, dilation, steps, next + halo, take(level + 1));
  }
  if constexpr (BANDS) {
    const auto first = take(0), last = take(c.levels + 1);
    for (int64_t t = 0; t < steps; ++t) first(t, values.at(0)[halo + t]), last(t, values.at(c.levels)[halo + t]);
  }
}

// For `split`: bands (B, L, S + 2, D) in memory.
INLINE auto stored_at(const Array& bands, const Column& at, int64_t start) {
  return [=](int64_t band) {
    return [out = bands.at(at.b, start, band) + at.d, step = bands.step, width = at.width](int64_t t, Vec value) {
      store(out + t * step, value, width);
    };
  };
}

// Of one level: adds to the gradients of its input (histories at negative t included) and of its taps.
template <int64_t TAPS, typename GradDetail>
void convolve_backward(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation,
                       int64_t length, const Vec* grad_approximation, const GradDetail& grad_detail, Vec* grad_source,
                       Vec* grad_low, Vec* grad_high) {
  if (TAPS) taps = TAPS;
  Vec sums_low[TAPS ? TAPS : 1], sums_high[TAPS ? TAPS : 1];
  if (TAPS) std::copy(grad_low, grad_low + taps, sums_low), std::copy(grad_high, grad_high + taps, sums_high);
  Vec *low_sums = TAPS ? sums_low : grad_low, *high_sums = TAPS ? sums_high : grad_high;
  for (int64_t t = 0; t < length; ++t) {
    const Vec approximation = grad_approximation[t], detail = grad_detail(t);
    for (int64_t k = 0; k < taps; ++k) {
      const Vec value = source[t - k * dilation];
      low_sums[k] += approximation * value;
      high_sums[k] += detail * value;
      grad_source[t - k * dilation] += low[k] * approximation + high[k] * detail;
    }
  }
  if (TAPS) std::copy(sums_low, sums_low + taps, grad_low), std::copy(sums_high, sums_high + taps, grad_high);
}

template <typename GradDetail>
void convolve_any_backward(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation,
                           int64_t length, const Vec* grad_approximation, const GradDetail& grad_detail,
                           Vec* grad_source, Vec* grad_low, Vec* grad_high) {
  const auto run = taps == 2   ? convolve_backward<2, GradDetail>
                   : taps == 3 ? convolve_backward<3, GradDetail>
                   : taps == 4 ? convolve_backward<4, GradDetail>
                               : convolve_backward<0, GradDetail>;
  run(source, low, high, taps, dilation, length, grad_approximation, grad_detail, grad_source, grad_low, grad_high);
}

// From the gradients of the bands of the steps that `split` computed last, to those of x and, added up, of the taps:
// give(m) is what gives those of band m, a function of t.
template <typename Give>
void join(const Decomposition& c, const Column& at, const Taps& taps, int64_t start, int64_t halo, int64_t steps,
          Levels& values, const Give& give, Levels& grads, Taps& grad_taps, const Array& grad_x) {
  const auto first = give(0), last = give(c.levels + 1);
  grads.back(steps);
  for (int64_t t = 0; t < steps; ++t) grads.at(c.levels)[t] = last(t);
  for (int64_t level = c.levels - 1; level >= 0; --level)
    convolve_any_backward(values.at(level) + halo, &taps.low[level * c.taps], &taps.high[level * c.taps],
                          c.taps_of(level), int64_t{1} << level, steps, grads.at(level + 1), give(level + 1),
                          grads.at(level), &grad_taps.low[level * c.taps], &grad_taps.high[level * c.taps]);
  for (int64_t t = 0; t < steps; ++t)
    store(grad_x.at(at.b, start + t, 0) + at.d, grads.at(0)[t] + first(t), at.width);
}

// For `join`: gradients of bands (B, L, S + 2, D) in memory.
INLINE auto loaded_from(const Array& grad_bands, const Column& at, int64_t start) {
  return [=](int64_t band) {
    return [in = grad_bands.at(at.b, start, band) + at.d, step = grad_bands.step, width = at.width](int64_t t) {
      return load(in + t * step, width);
    };
  };
}

// Gradients, those of the taps per row of the batch, (B, S, K, D).
struct DecompositionGradients {
  float *low, *high, *history;  // history (B, rows, D), or null

  void write(const Decomposition& c, const Column& at, const Taps& taps, Levels& grads) const {
    const int64_t count = c.levels * c.taps;
    for (int64_t i = 0; i < count; ++i) {
      store(low + (at.b * count + i) * c.channels + at.d, taps.low[i], at.width);
      store(high + (at.b * count + i) * c.channels + at.d, taps.high[i], at.width);
    }
    if (history) grads.write_past(history + at.b * c.rows() * c.channels, at);
  }
};

}  // namespace
