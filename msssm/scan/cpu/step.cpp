// One time step of multi-scale S6 layers, for streaming. `msssm_step` is one layer with the parameters of its module
// and new states; `msssm_stream` is a whole stack of residual blocks, whose weights lie packed in the order in which
// they are read and whose states change in place. Nothing is allocated once a thread has its workspace. The lanes are
// channels; the work of a step is too small for threads.

#include <cmath>

#include "exponential.h"

namespace {

struct Layer {
  int64_t levels, taps, channels, states, rank, heads;
  bool zoh, softmax, normed;
  const float *low, *high;                     // (S, K, D)
  const float *projection;                     // (M (R + 2 N), D): per band the step size's R rows, B's, C's
  const float *delta_weight, *delta_bias;      // (M, R, D), (M, D)
  const float *rate, *skip;                    // -A (M, N, D); (M, D) or null
  const float *mix_weight, *mix_bias, *fixed;  // (M H, D), (M H); or fixed weights (M, H); or all null for ones
  float lowest_delta, highest_delta;

  int64_t bands() const { return levels + 2; }
  int64_t width() const { return rank + 2 * states; }
  int64_t past() const { return (taps - 1) * ((int64_t{1} << levels) - 1); }
};

// block(first channel, channels in it)
template <typename Block>
INLINE void by_blocks(int64_t channels, const Block& block) {
  const int64_t whole = channels / LANES * LANES;
  for (int64_t d = 0; d < whole; d += LANES) block(d, LANES);
  if (whole < channels) block(whole, (int)(channels - whole));
}

// out (rows,) = weights (rows, D) x, and the bias where there is one.
void product(const float* weights, const float* bias, int64_t rows, const float* x, int64_t channels, float* out) {
  for (int64_t row = 0; row < rows; row += LANES) {
    const int count = (int)std::min<int64_t>(LANES, rows - row);
    Vec sums[LANES] = {};
    // Four rows share x, and hide each other's latency.
    for (int i = 0; i < count; i += 4) {
      const float* w = weights + (row + i) * channels;
      const int own = std::min(4, count - i);
      Vec parts[4] = {};
      by_blocks(channels, [&](int64_t d, int width) {
        const Vec v = load(x + d, width);
        for (int k = 0; k < 4; ++k)
          if (k < own) parts[k] += load(w + k * channels + d, width) * v;
      });
      for (int k = 0; k < own; ++k) sums[i + k] = parts[k];
    }
    const Vec whole = lane_sums(sums);
    store(out + row, bias ? whole + load(bias + row, count) : whole, count);
  }
}

// Bands (M, D); the histories of the levels, each ((K - 1) 2^level, D) behind the other, move on by one step.
void decompose(const Layer& l, const float* x, float* history, float* bands) {
  const int64_t D = l.channels;
  std::memcpy(bands, x, D * sizeof(float));
  float* approximation = bands + (l.levels + 1) * D;
  std::memcpy(approximation, x, D * sizeof(float));
  for (int64_t level = 0; level < l.levels; ++level) {
    const int64_t dilation = int64_t{1} << level, past = (l.taps - 1) * dilation;
    const float *low = l.low + level * l.taps * D, *high = l.high + level * l.taps * D;
    float* detail = bands + (level + 1) * D;
    by_blocks(D, [&](int64_t d, int width) {
      const Vec newest = load(approximation + d, width);
      Vec fine = load(high + d, width) * newest, coarse = load(low + d, width) * newest;
      for (int64_t k = 1; k < l.taps; ++k) {
        const Vec old = load(history + (past - k * dilation) * D + d, width);
        fine += load(high + k * D + d, width) * old;
        coarse += load(low + k * D + d, width) * old;
      }
      for (int64_t t = 1; t < past; ++t) store(history + (t - 1) * D + d, load(history + t * D + d, width), width);
      if (past) store(history + (past - 1) * D + d, newest, width);
      store(detail + d, fine, width);
      store(approximation + d, coarse, width);
    });
    history += past * D;
  }
}

// Weights (M, H) of the bands.
void mix(const Layer& l, const float* x, float* weights) {
  const int64_t bands = l.bands(), count = bands * l.heads;
  if (!l.mix_weight) {
    for (int64_t i = 0; i < count; ++i) weights[i] = l.fixed ? l.fixed[i] : 1.0f;
    return;
  }
  product(l.mix_weight, l.mix_bias, count, x, l.channels, weights);
  if (!l.softmax) return;
  for (int64_t h = 0; h < l.heads; ++h) {
    float most = weights[h], sum = 0;
    for (int64_t m = 1; m < bands; ++m) most = std::max(most, weights[m * l.heads + h]);
    for (int64_t m = 0; m < bands; ++m) sum += weights[m * l.heads + h] = std::exp(weights[m * l.heads + h] - most);
    for (int64_t m = 0; m < bands; ++m) weights[m * l.heads + h] /= sum;
  }
}

int64_t workspace_of(const Layer& l) { return l.bands() * (l.channels + l.heads + l.width()) + 3 * l.channels; }

// Pointers of one band's states, of which those of one state are (D,), with the B and C of each.
struct Band {
  const float *rate, *states, *B, *C, *ahead;
  float* next;
};

// Some states of one band, from `first`, and what they add to its output (D); they share what does not depend on the
// state. `scaled` is -delta log2(e); `drive` is -u for the zero-order hold, else delta u. Exponentials keep the
// processor busy and leave the memory idle: meanwhile the weights behind the rates come nearer, two lines per line.
template <bool ZOH, int COUNT>
void recur(const Band& band, int64_t first, const float* scaled, const float* drive, int64_t channels, float* out) {
  by_blocks(channels, [&](int64_t d, int width) {
    const Vec step = load(scaled + d, width), driven = load(drive + d, width);
    Vec sum = load(out + d, width);
    for (int64_t n = first; n < first + COUNT; ++n) {
      const int64_t at = n * channels + d;
      __builtin_prefetch(band.ahead + 2 * at, 0, 2);
      __builtin_prefetch(band.ahead + 2 * at + 16, 0, 2);
      const Vec rate = load(band.rate + at, width, 1.0f);
      Vec decay, expm1;
      exponentials<true>(step, rate, decay, expm1);
      const Vec gained = ZOH ? expm1 / rate * driven : driven;
      const Vec h = decay * load(band.states + at, width) + gained * band.B[n];
      store(band.next + at, h, width);
      sum += h * band.C[n];
    }
    store(out + d, sum, width);
  });
}

template <bool ZOH>
void recur_all(const Band& band, int64_t states, const float* scaled, const float* drive, int64_t channels, float* out) {
  int64_t n = 0;
  for (; n + 4 <= states; n += 4) recur<ZOH, 4>(band, n, scaled, drive, channels, out);
  for (; n < states; ++n) recur<ZOH, 1>(band, n, scaled, drive, channels, out);
}

constexpr float SELECTION_EPSILON = 1e-5f;

// Divides `count` numbers by their root mean square.
void rms_norm(int64_t count, float* x) {
  float squares = 0;
  for (int64_t i = 0; i < count; ++i) squares += x[i] * x[i];
  const float root = 1 / std::sqrt(squares / count + SELECTION_EPSILON);
  for (int64_t i = 0; i < count; ++i) x[i] *= root;
}

// x (D) -> y (D), which is another array. States and the new ones, which may be the same array, are (M, N, D).
void layer_step(const Layer& l, const float* x, float* history, const float* states, float* next, float* y,
                float* workspace) {
  const int64_t D = l.channels, N = l.states, M = l.bands();
  float *bands = workspace, *weights = bands + M * D, *projected = weights + M * l.heads;
  float *delta = projected + M * l.width(), *drive = delta + D, *out = drive + D;
  decompose(l, x, history, bands);
  mix(l, x, weights);
  product(l.projection, nullptr, M * l.width(), x, D, projected);
  std::fill(y, y + D, 0.0f);
  for (int64_t m = 0; m < M; ++m) {
    const float* u = bands + m * D;
    float *low_rank = projected + m * l.width(), *B = low_rank + l.rank, *C = B + N;
    if (l.normed) rms_norm(l.rank, low_rank), rms_norm(N, B), rms_norm(N, C);
    by_blocks(D, [&](int64_t d, int width) {
      Vec step = load(l.delta_bias + m * D + d, width);
      for (int64_t r = 0; r < l.rank; ++r) step += low_rank[r] * load(l.delta_weight + (m * l.rank + r) * D + d, width);
      step = softplus(step);
      step = step < l.lowest_delta ? splat(l.lowest_delta) : step;
      step = step > l.highest_delta ? splat(l.highest_delta) : step;
      const Vec input = load(u + d, width);
      store(delta + d, step * -LOG2E, width);
      store(drive + d, l.zoh ? -input : step * input, width);
      store(out + d, l.skip ? load(l.skip + m * D + d, width) * input : Vec{}, width);
    });
    const int64_t at = m * N * D;
    const Band band{l.rate + at, states + at, B, C, l.rate + M * N * D + 2 * at, next + at};
    (l.zoh ? recur_all<true> : recur_all<false>)(band, N, delta, drive, D, out);
    by_blocks(D, [&](int64_t d, int width) {
      store(y + d, load(y + d, width) + mix_at(weights + m * l.heads, l.heads, D, d, width) * load(out + d, width), width);
    });
  }
}

// Layer norm (epsilon above 0), or a scale and a shift, in place.
void normalise(const float* scale, const float* shift, float epsilon, int64_t channels, float* x) {
  float mean = 0, variance = 0;
  if (epsilon > 0) {
#pragma omp simd reduction(+ : mean)
    for (int64_t d = 0; d < channels; ++d) mean += x[d];
    mean /= channels;
#pragma omp simd reduction(+ : variance)
    for (int64_t d = 0; d < channels; ++d) variance += (x[d] - mean) * (x[d] - mean);
  }
  const float root = epsilon > 0 ? 1 / std::sqrt(variance / channels + epsilon) : 1.0f;
  for (int64_t d = 0; d < channels; ++d) x[d] = (x[d] - mean) * root * scale[d] + shift[d];
}

// Arrays behind each other, each from a multiple of 16 floats.
struct Tape {
  const float* at;
  const float* take(int64_t count) {
    const float* start = at;
    at += (count + 15) / 16 * 16;
    return start;
  }
};

float* workspace(int64_t floats) {
  thread_local std::vector<float> memory;
  if ((int64_t)memory.size() < floats) memory.resize(floats);
  return memory.data();
}

enum Mixing { SUM, FIXED, INPUT, SOFTMAX };

}  // namespace

extern "C" {

// sizes: B, S, K, D, N, R, H, zoh, softmax, normed, distance of the rows of x. limits: least and greatest step size, and
// logarithm of the rate. in: x (B, D), states (B, M, N, D), low, high, projection, delta_weight, delta_bias, log_rate
// (M, D, N), skip, mix_weight, mix_bias, fixed. histories: of each level, strides: between its rows of the batch.
// out: y (B, D), histories, states.
void msssm_step(const int64_t* sizes, const float* limits, const float* const* in, const float* const* histories,
                const int64_t* strides, float* const* out) {
  Layer l{sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7] != 0, sizes[8] != 0, sizes[9] != 0,
          in[2],    in[3],    in[4],    in[5],    in[6],    nullptr,  in[8],         in[9],
          in[10],   in[11],   limits[0], limits[1]};
  const int64_t D = l.channels, all = l.bands() * l.states * D;
  float* memory = workspace(all + workspace_of(l));
  for (int64_t m = 0; m < l.bands(); ++m)
    for (int64_t d = 0; d < D; ++d)
      for (int64_t n = 0; n < l.states; ++n)
        memory[(m * l.states + n) * D + d] = in[7][(m * D + d) * l.states + n];
  by_blocks(all, [&](int64_t i, int width) {
    Vec x = load(memory + i, width), rate, unused;
    x = x < limits[2] ? splat(limits[2]) : x;
    x = x > limits[3] ? splat(limits[3]) : x;
    exponentials<true>(x, splat(LOG2E), rate, unused);
    store(memory + i, rate, width);
  });
  l.rate = memory;
  for (int64_t b = 0; b < sizes[0]; ++b) {
    float* moved = out[1] + b * l.past() * D;
    for (int64_t level = 0, rows = l.taps - 1; level < l.levels; ++level, rows *= 2, moved += rows / 2 * D)
      if (rows) std::memcpy(moved, histories[level] + b * strides[level], rows * D * sizeof(float));
    layer_step(l, in[0] + b * sizes[10], out[1] + b * l.past() * D, in[1] + b * all, out[2] + b * all, out[0] + b * D,
               memory + all);
  }
}

// x (B, D) through all blocks, in place, and the head on the mean of what has come out of them so far: logits (B, K).
// Also in place: states (B, blocks, (past + M N) D), of each block the histories, then the SSMs'; total (B, D) and
// count (B) of the mean. sizes: B, blocks, S, K, D, N, R, H, zoh, mixing, skip, glu, prenorm, classes, normed. values: least and
// greatest step size, epsilon of a layer norm, or 0 for a scale and a shift. weights: for each block the scale and shift
// of a norm in front; low, high, mixer, projection, delta_weight, delta_bias, rate, skip; weight and bias of the gated
// unit; scale and shift of a norm behind; then, with norms in front, those of one behind the last block; and the head's.
void msssm_stream(const int64_t* sizes, const float* values, const float* weights, float* states, double* total,
                  int64_t* count, float* x, float* logits) {
  const int64_t batch = sizes[0], blocks = sizes[1], mixing = sizes[9];
  const bool skip = sizes[10], glu = sizes[11], prenorm = sizes[12];
  Layer l{sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8] != 0, mixing == SOFTMAX, sizes[14] != 0};
  l.lowest_delta = values[0], l.highest_delta = values[1];
  const int64_t D = l.channels, M = l.bands(), held = (l.past() + M * l.states) * D;
  float *inner = workspace(workspace_of(l) + 4 * D), *y = inner + D, *gated = y + D, *memory = gated + 2 * D;
  Tape tape{weights};
  for (int64_t block = 0; block < blocks; ++block) {
    const float *scale = nullptr, *shift = nullptr, *channel_weight = nullptr, *channel_bias = nullptr;
    if (prenorm) scale = tape.take(D), shift = tape.take(D);
    l.low = tape.take(l.levels * l.taps * D), l.high = tape.take(l.levels * l.taps * D);
    if (mixing >= INPUT) l.mix_weight = tape.take(M * l.heads * D), l.mix_bias = tape.take(M * l.heads);
    if (mixing == FIXED) l.fixed = tape.take(M * l.heads);
    l.projection = tape.take(M * l.width() * D);
    l.delta_weight = tape.take(M * l.rank * D), l.delta_bias = tape.take(M * D);
    l.rate = tape.take(M * l.states * D);
    if (skip) l.skip = tape.take(M * D);
    if (glu) channel_weight = tape.take(2 * D * D), channel_bias = tape.take(2 * D);
    if (!prenorm) scale = tape.take(D), shift = tape.take(D);
    for (int64_t b = 0; b < batch; ++b) {
      float *row = x + b * D, *history = states + (b * blocks + block) * held, *h = history + l.past() * D;
      std::memcpy(inner, row, D * sizeof(float));
      if (prenorm) normalise(scale, shift, values[2], D, inner);
      layer_step(l, inner, history, h, h, y, memory);
      if (glu) {
        by_blocks(D, [&](int64_t d, int width) { store(y + d, gelu(load(y + d, width)), width); });
        product(channel_weight, channel_bias, 2 * D, y, D, gated);
        by_blocks(D, [&](int64_t d, int width) {
          store(y + d, load(gated + d, width) * sigmoid(load(gated + D + d, width)), width);
        });
      }
      for (int64_t d = 0; d < D; ++d) row[d] += y[d];
      if (!prenorm) normalise(scale, shift, values[2], D, row);
    }
  }
  const float *scale = prenorm ? tape.take(D) : nullptr, *shift = prenorm ? tape.take(D) : nullptr;
  const float *head = tape.take(sizes[13] * D), *bias = tape.take(sizes[13]);
  for (int64_t b = 0; b < batch; ++b) {
    float* row = x + b * D;
    if (prenorm) normalise(scale, shift, values[2], D, row);
    ++count[b];
    for (int64_t d = 0; d < D; ++d) row[d] = (float)((total[b * D + d] += row[d]) / count[b]);
    product(head, bias, sizes[13], row, D, logits + b * sizes[13]);
  }
}
}
