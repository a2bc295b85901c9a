// The multi-scale decomposition, forward and backward: nested dilated convolutions of each channel.
//
//   a^s[t] = sum_k low^s[k] a^{s-1}[t - 2^{s-1} k],   d^s likewise with high^s;   bands x, d^1 .. d^S, a^S
//
// A block of channels keeps its approximations a^0 .. a^{S-1} in a buffer of its own, each behind its history
// a^{s-1}[-(K - 1) 2^{s-1}] .. a^{s-1}[-1].

#include "common.h"

namespace {

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

// Taps of all levels of one block, (S, K).
std::vector<Vec> load_taps(const Call& c, const float* taps, int64_t d, int width) {
  std::vector<Vec> result(c.levels * c.taps);
  for (size_t i = 0; i < result.size(); ++i) result[i] = load(taps + i * c.channels + d, width);
  return result;
}

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

// Where the approximation a^level begins in a buffer that holds those before it with their histories.
int64_t offset_of(const Call& c, int64_t level) { return level * c.length + c.past_before(level + 1); }

void fill_history(const Call& c, int64_t b, int64_t d, int width, int64_t level, Vec* approximation) {
  const int64_t past = c.past(level);
  for (int64_t i = 0; i < past; ++i)
    approximation[i - past] =
        c.history.data ? load(c.history.at(b, c.past_before(level) + i, 0) + d, width) : Vec{};
}

// Fills the buffer with a^0 .. a^{S-1}, and with `HIGH` writes the bands.
template <bool HIGH>
void approximations(const Call& c, int64_t b, int64_t d, int width, const std::vector<Vec>& low,
                    const std::vector<Vec>& high, std::vector<Vec>& buffer) {
  const int64_t length = c.length_of(b);
  Vec* source = buffer.data() + offset_of(c, 0);
  for (int64_t t = 0; t < length; ++t) source[t] = load(c.x.at(b, t, 0) + d, width);
  for (int64_t level = 0; level < c.levels; ++level) {
    source = buffer.data() + offset_of(c, level);
    fill_history(c, b, d, width, level, source);
    if (!HIGH && level + 1 == c.levels) return;
    Vec* next = buffer.data() + offset_of(c, level + 1);
    convolve_any<HIGH>(source, &low[level * c.taps], &high[level * c.taps], c.taps, int64_t{1} << level, length, next,
                       HIGH ? c.bands.at(b, 0, level + 1) + d : nullptr, c.bands.step, width);
  }
}

int64_t buffer_size(const Call& c) { return offset_of(c, c.levels) + c.length; }

void forward_block(const Call& c, int64_t b, int64_t d, int width, float* last, std::vector<Vec>& buffer) {
  buffer.resize(std::max<int64_t>(buffer.size(), buffer_size(c)));
  const std::vector<Vec> low = load_taps(c, c.low, d, width), high = load_taps(c, c.high, d, width);
  approximations<true>(c, b, d, width, low, high, buffer);
  const int64_t length = c.length_of(b), rows = c.past_before(c.levels);
  const Vec *first = buffer.data() + offset_of(c, 0), *coarsest = buffer.data() + offset_of(c, c.levels);
  for (int64_t t = 0; t < length; ++t) {
    store(c.bands.at(b, t, 0) + d, first[t], width);
    store(c.bands.at(b, t, c.levels + 1) + d, coarsest[t], width);
  }
  for (int64_t t = length; t < c.length; ++t)
    for (int64_t m = 0; m < c.levels + 2; ++m) store(c.bands.at(b, t, m) + d, Vec{}, width);
  for (int64_t level = 0; level < c.levels; ++level) {
    const Vec* recent = buffer.data() + offset_of(c, level) + length - c.past(level);
    for (int64_t i = 0; i < c.past(level); ++i)
      store(last + (b * rows + c.past_before(level) + i) * c.channels + d, recent[i], width);
  }
}

// Of one level: adds to the gradients of its input (histories at negative t included) and of its taps.
template <int64_t TAPS>
void convolve_backward(const Vec* source, const Vec* low, const Vec* high, int64_t taps, int64_t dilation,
                       int64_t length, const Vec* grad_approximation, const float* grad_detail, int64_t step, int width,
                       Vec* grad_source, Vec* grad_low, Vec* grad_high) {
  if (TAPS) taps = TAPS;
  Vec sums_low[TAPS ? TAPS : 1] = {}, sums_high[TAPS ? TAPS : 1] = {};
  if (!TAPS) std::fill(grad_low, grad_low + taps, Vec{}), std::fill(grad_high, grad_high + taps, Vec{});
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

void backward_block(const Call& c, const float* grad_last, int64_t b, int64_t d, int width, const Gradients& g,
                    std::vector<Vec>& buffer, std::vector<Vec>& grads) {
  buffer.resize(std::max<int64_t>(buffer.size(), buffer_size(c)));
  grads.assign(std::max<int64_t>(grads.size(), buffer_size(c)), Vec{});
  const std::vector<Vec> low = load_taps(c, c.low, d, width), high = load_taps(c, c.high, d, width);
  approximations<false>(c, b, d, width, low, high, buffer);
  const int64_t length = c.length_of(b), rows = c.past_before(c.levels);
  Vec *first = grads.data() + offset_of(c, 0), *coarsest = grads.data() + offset_of(c, c.levels);
  for (int64_t t = 0; t < length; ++t) {
    first[t] += load(c.bands.at(b, t, 0) + d, width);
    coarsest[t] += load(c.bands.at(b, t, c.levels + 1) + d, width);
  }
  for (int64_t level = c.levels - 1; level >= 0; --level) {
    const int64_t past = c.past(level);
    Vec* grad_source = grads.data() + offset_of(c, level);
    for (int64_t i = 0; i < past; ++i)
      grad_source[length - past + i] += load(grad_last + (b * rows + c.past_before(level) + i) * c.channels + d, width);
    std::vector<Vec> grad_low(c.taps), grad_high(c.taps);
    const auto run = c.taps == 2   ? convolve_backward<2>
                     : c.taps == 3 ? convolve_backward<3>
                     : c.taps == 4 ? convolve_backward<4>
                                   : convolve_backward<0>;
    run(buffer.data() + offset_of(c, level), &low[level * c.taps], &high[level * c.taps], c.taps, int64_t{1} << level,
        length, grads.data() + offset_of(c, level + 1), c.bands.at(b, 0, level + 1) + d, c.bands.step, width,
        grad_source, grad_low.data(), grad_high.data());
    for (int64_t k = 0; k < c.taps; ++k) {
      const int64_t at = ((b * c.levels + level) * c.taps + k) * c.channels + d;
      store(g.low + at, grad_low[k], width);
      store(g.high + at, grad_high[k], width);
    }
    for (int64_t i = 0; i < past; ++i)
      store(g.history + (b * rows + c.past_before(level) + i) * c.channels + d, grad_source[i - past], width);
  }
  for (int64_t t = 0; t < c.length; ++t) store(g.x.at(b, t, 0) + d, t < length ? first[t] : Vec{}, width);
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
  for_each_block(c.batch, c.channels, c.threads, c.operations(), [&](int64_t b, int64_t, int64_t d, int width) {
    thread_local std::vector<Vec> buffer;
    forward_block(c, b, d, width, last, buffer);
  });
}

// The strides of bands are those of grad_bands. out: grad_x, low and high per row of the batch, history.
void msssm_decomposition_backward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                                  const int64_t* lengths, const float* grad_bands, const float* grad_last,
                                  const int64_t* grad_x_strides, float* const* out) {
  const Call c = make_call(sizes, strides, in, grad_bands, lengths);
  const Gradients g{array(out[0], grad_x_strides), out[1], out[2], out[3]};
  for_each_block(c.batch, c.channels, c.threads, c.operations(), [&](int64_t b, int64_t, int64_t d, int width) {
    thread_local std::vector<Vec> buffer, grads;
    backward_block(c, grad_last, b, d, width, g, buffer, grads);
  });
}
}
