// The multi-scale decomposition, forward and backward: nested dilated convolutions of each channel.
//
//   a^s[t] = sum_k low^s[k] a^{s-1}[t - 2^{s-1} k],   d^s likewise with high^s;   bands x, d^1 .. d^S, a^S
//
// Tile by tile, all channels of a row in turn, so that memory is read and written line after line. From one tile to
// the next a block of channels carries the histories a^{s-1}[-(K - 1) 2^{s-1}] .. a^{s-1}[-1]; on the way back their
// gradients, and there the approximations are computed again, from as far back as those of a tile can see.

#include "common.h"

namespace {

constexpr int64_t TILE = 32;

struct Call {
  int64_t batch, length, levels, taps, channels, threads;
  Array x, bands, history;  // history (B, rows of all levels, 1, D), or without data
  const float *low, *high;  // (S, K, D)
  const int64_t* lengths;

  int64_t past(int64_t level) const { return (taps - 1) << level; }  // rows of history of a level
  int64_t past_before(int64_t level) const { return (taps - 1) * ((int64_t{1} << level) - 1); }
  int64_t length_of(int64_t b) const { return lengths ? std::clamp<int64_t>(lengths[b], 0, length) : length; }
  double operations() const { return (double)batch * length * channels * levels * taps; }
};

// One row, and a block of channels from d on.
struct Lane {
  int64_t b, d;
  int width;
};

// Taps of all levels of one block, (S, K).
std::vector<Vec> load_taps(const Call& c, const float* taps, const Lane& at) {
  std::vector<Vec> result(c.levels * c.taps);
  for (size_t i = 0; i < result.size(); ++i) result[i] = load(taps + i * c.channels + at.d, at.width);
  return result;
}

// Values of some steps at levels 0 .. S, behind those of the past that a convolution reads.
struct Levels {
  const Call& c;
  int64_t steps;
  std::vector<Vec> values;
  Levels(const Call& c, int64_t steps)
      : c(c), steps(steps), values(c.past_before(c.levels) + (c.levels + 1) * steps) {}

  Vec* at(int64_t level) { return &values[c.past_before(std::min(level + 1, c.levels)) + level * steps]; }

  // use(value, row of a history of all levels)
  template <typename Use>
  void for_each_past(const Use& use) {
    for (int64_t level = 0; level < c.levels; ++level)
      for (int64_t i = 0; i < c.past(level); ++i) use(at(level)[i - c.past(level)], c.past_before(level) + i);
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

// K taps at once for the common lengths, so that they stay in registers.
template <int64_t TAPS, bool HIGH>
void convolve(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation, int64_t length,
              Vec* approximation, float* detail, int64_t step, int width) {
  if (TAPS) taps = TAPS;
  for (int64_t t = 0; t < length; ++t) {
    Vec sum_low{}, sum_high{};
    for (int64_t k = 0; k < taps; ++k) {
      const Vec value = source[t - k * dilation];
      sum_low += low[k] * value;
      if (HIGH) sum_high += high[k] * value;
    }
    approximation[t] = sum_low;
    if (HIGH) store(detail + t * step, sum_high, width);
  }
}

template <bool HIGH>
void convolve_any(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation, int64_t length,
                  Vec* approximation, float* detail, int64_t step, int width) {
  const auto run = taps == 2   ? convolve<2, HIGH>
                   : taps == 3 ? convolve<3, HIGH>
                   : taps == 4 ? convolve<4, HIGH>
                               : convolve<0, HIGH>;
  run(source, low, high, taps, dilation, length, approximation, detail, step, width);
}

void load_history(const Call& c, const Lane& at, Levels& levels) {
  levels.for_each_past([&](Vec& value, int64_t row) {
    value = c.history.data ? load(c.history.at(at.b, row, 0) + at.d, at.width) : Vec{};
  });
}

void forward_group(const Call& c, int64_t b, int64_t group, float* last) {
  struct Own {
    Lane at;
    std::vector<Vec> low, high;
    Levels levels;
  };
  const int64_t length = c.length_of(b), rows = c.past_before(c.levels);
  std::vector<Own> blocks;
  for (Block block : blocks_of_group(c.batch, c.channels, group)) {
    const Lane at{b, block.d, block.width};
    blocks.push_back({at, load_taps(c, c.low, at), load_taps(c, c.high, at), Levels(c, std::min(TILE, length))});
    load_history(c, at, blocks.back().levels);
  }
  for (int64_t start = 0; start < length; start += TILE) {
    const int64_t steps = std::min(TILE, length - start);
    for (int64_t t = 0; t < steps; ++t)  // line after line: block by block the memory would lag behind
      for (int64_t m = 0; m < c.levels + 2; ++m)
        for (const Own& own : blocks) __builtin_prefetch(c.bands.at(b, start + t, m) + own.at.d, 1);
    for (Own& own : blocks) {
      const Lane at = own.at;
      for (int64_t t = 0; t < steps; ++t) {
        own.levels.at(0)[t] = load(c.x.at(b, start + t, 0) + at.d, at.width);
        store(c.bands.at(b, start + t, 0) + at.d, own.levels.at(0)[t], at.width);
      }
      for (int64_t level = 0; level < c.levels; ++level)
        convolve_any<true>(own.levels.at(level), &own.low[level * c.taps], &own.high[level * c.taps], c.taps,
                           int64_t{1} << level, steps, own.levels.at(level + 1),
                           c.bands.at(b, start, level + 1) + at.d, c.bands.step, at.width);
      for (int64_t t = 0; t < steps; ++t)
        store(c.bands.at(b, start + t, c.levels + 1) + at.d, own.levels.at(c.levels)[t], at.width);
      own.levels.forward(steps);
    }
  }
  for (int64_t t = length; t < c.length; ++t)
    for (int64_t m = 0; m < c.levels + 2; ++m)
      for (Own& own : blocks) store(c.bands.at(b, t, m) + own.at.d, Vec{}, own.at.width);
  for (Own& own : blocks)
    own.levels.for_each_past([&](Vec& value, int64_t row) {
      store(last + (b * rows + row) * c.channels + own.at.d, value, own.at.width);
    });
}

// Of one level: adds to the gradients of its input (histories at negative t included) and of its taps.
template <int64_t TAPS>
void convolve_backward(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation,
                       int64_t length, const Vec* grad_approximation, const float* grad_detail, int64_t step, int width,
                       Vec* grad_source, Vec* grad_low, Vec* grad_high) {
  if (TAPS) taps = TAPS;
  Vec sums_low[TAPS ? TAPS : 1], sums_high[TAPS ? TAPS : 1];
  if (TAPS) std::copy(grad_low, grad_low + taps, sums_low), std::copy(grad_high, grad_high + taps, sums_high);
  Vec *low_sums = TAPS ? sums_low : grad_low, *high_sums = TAPS ? sums_high : grad_high;
  for (int64_t t = 0; t < length; ++t) {
    const Vec approximation = grad_approximation[t], detail = load(grad_detail + t * step, width);
    for (int64_t k = 0; k < taps; ++k) {
      const Vec value = source[t - k * dilation];
      low_sums[k] += approximation * value;
      high_sums[k] += detail * value;
      grad_source[t - k * dilation] += low[k] * approximation + high[k] * detail;
    }
  }
  if (TAPS) std::copy(sums_low, sums_low + taps, grad_low), std::copy(sums_high, sums_high + taps, grad_high);
}

// Taps per row of the batch, (B, S, K, D).
struct Gradients {
  Array x;
  float *low, *high, *history;  // history (B, rows, D)
};

void backward_group(const Call& c, const float* grad_last, int64_t b, int64_t group, const Gradients& g) {
  struct Own {
    Lane at;
    std::vector<Vec> low, high, grad_low, grad_high;
    Levels grads;
  };
  const int64_t length = c.length_of(b), rows = c.past_before(c.levels);
  const int64_t tile = std::max(TILE, rows);  // so that less than half of what is computed again lies before it
  std::vector<Own> blocks;
  for (Block block : blocks_of_group(c.batch, c.channels, group)) {
    const Lane at{b, block.d, block.width};
    const std::vector<Vec> none(c.levels * c.taps);
    blocks.push_back({at, load_taps(c, c.low, at), load_taps(c, c.high, at), none, none, Levels(c, tile)});
    blocks.back().grads.for_each_past([&](Vec& grad, int64_t row) {
      grad = load(grad_last + (b * rows + row) * c.channels + at.d, at.width);
    });
  }
  Levels values(c, std::min(tile + rows, length));
  const auto run = c.taps == 2   ? convolve_backward<2>
                   : c.taps == 3 ? convolve_backward<3>
                   : c.taps == 4 ? convolve_backward<4>
                                 : convolve_backward<0>;
  for (int64_t end = length, steps; end > 0; end -= steps) {
    steps = (end - 1) % tile + 1;
    const int64_t start = end - steps, begin = std::max<int64_t>(0, start - rows);
    for (Own& own : blocks) {
      const Lane at = own.at;
      if (begin == 0) load_history(c, at, values);
      for (int64_t t = begin; t < end; ++t) values.at(0)[t - begin] = load(c.x.at(b, t, 0) + at.d, at.width);
      for (int64_t level = 0; level + 1 < c.levels; ++level)
        convolve_any<false>(values.at(level), &own.low[level * c.taps], nullptr, c.taps, int64_t{1} << level,
                            end - begin, values.at(level + 1), nullptr, 0, at.width);
      own.grads.back(steps);
      for (int64_t t = 0; t < steps; ++t)
        own.grads.at(c.levels)[t] = load(c.bands.at(b, start + t, c.levels + 1) + at.d, at.width);
      for (int64_t level = c.levels - 1; level >= 0; --level)
        run(values.at(level) + start - begin, &own.low[level * c.taps], &own.high[level * c.taps], c.taps,
            int64_t{1} << level, steps, own.grads.at(level + 1), c.bands.at(b, start, level + 1) + at.d, c.bands.step,
            at.width, own.grads.at(level), &own.grad_low[level * c.taps], &own.grad_high[level * c.taps]);
      for (int64_t t = 0; t < steps; ++t)
        store(g.x.at(b, start + t, 0) + at.d,
              own.grads.at(0)[t] + load(c.bands.at(b, start + t, 0) + at.d, at.width), at.width);
    }
  }
  for (Own& own : blocks) {
    const Lane at = own.at;
    for (int64_t t = length; t < c.length; ++t) store(g.x.at(b, t, 0) + at.d, Vec{}, at.width);
    for (int64_t i = 0; i < c.levels * c.taps; ++i) {
      store(g.low + (b * c.levels * c.taps + i) * c.channels + at.d, own.grad_low[i], at.width);
      store(g.high + (b * c.levels * c.taps + i) * c.channels + at.d, own.grad_high[i], at.width);
    }
    own.grads.for_each_past([&](Vec& grad, int64_t row) {
      store(g.history + (b * rows + row) * c.channels + at.d, grad, at.width);
    });
  }
}

// sizes: B, L, S, K, D, threads. strides: (row, step, band) of x, bands, history.
Call make_call(const int64_t* sizes, const int64_t* strides, const float* const* in, const float* bands,
               const int64_t* lengths) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], array(in[0], strides),
          array(bands, strides + 3), array(in[3], strides + 6), in[1], in[2], lengths};
}

}  // namespace

extern "C" {

// in: x, low, high, history or null. bands (B, L, S + 2, D), last (B, rows of history, D).
void msssm_decomposition_forward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                                 const int64_t* lengths, float* bands, float* last) {
  const Call c = make_call(sizes, strides, in, bands, lengths);
  for_each_group(c.batch, c.channels, c.threads, c.operations(),
                 [&](int64_t b, int64_t group) { forward_group(c, b, group, last); });
}

// The strides of bands are those of grad_bands. out: grad_x, low and high per row of the batch, history.
void msssm_decomposition_backward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                                  const int64_t* lengths, const float* grad_bands, const float* grad_last,
                                  const int64_t* grad_x_strides, float* const* out) {
  const Call c = make_call(sizes, strides, in, grad_bands, lengths);
  const Gradients g{array(out[0], grad_x_strides), out[1], out[2], out[3]};
  for_each_group(c.batch, c.channels, c.threads, c.operations(),
                 [&](int64_t b, int64_t group) { backward_group(c, grad_last, b, group, g); });
}
}
