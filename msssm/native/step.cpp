// One time step of a whole multi-scale S6 layer: projections, decomposition, recurrence and mix in one call, for
// streaming. Nothing is allocated once a thread has its workspace. Here the lanes are states or channels as the
// compiler finds them; the work of a step is too small for threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// As in selective.cpp, one number at a time.
inline void exponentials(float x, float& decay, float& expm1) {
  x = x < -126.0f ? -126.0f : x;
  const float shifted = x + 12583039.0f, r = x - (shifted - 12583039.0f);
  float p = 0x1.5bba13e56ebfep-10f;
  p = p * r + 0x1.3cea878f12bcbp-7f;
  p = p * r + 0x1.c6b752e06b0ffp-5f;
  p = p * r + 0x1.ebf9bb89e2839p-3f;
  p = p * r + 0x1.62e4292034e05p-1f;
  p = p * r;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (int32_t)((uint32_t)bits << 23);
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  decay = scale * p + scale;
  expm1 = scale * p + (scale - 1.0f);
}

inline float softplus(float x) {
  float z, unused;
  exponentials((x < 0 ? x : -x) * 1.4426950408889634f, z, unused);
  const float s = z / (z + 2.0f), q = s * s;
  float p = 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return (x > 0 ? x : 0.0f) + 2.0f * s * p;
}

float dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

struct Layer {
  int64_t batch, levels, taps, channels, states, rank, heads, zoh, softmax;
  const float *low, *high;                     // (S, K, D)
  const float *projection;                     // (M (R + 2 N), D): per band the step size's R rows, B's, C's
  const float *delta_weight, *delta_bias;      // (M, R, D), (M, D)
  const float *log_rate, *skip;                // (M, D, N); (M, D) or null
  const float *mix_weight, *mix_bias, *fixed;  // (M H, D), (M H); or fixed weights (M, H); or all null for ones
  float lowest_delta, highest_delta, lowest_rate, highest_rate;  // rates as logarithms
};

// The histories of the levels, each (B, (K - 1) 2^level, D), with the distance of their rows of the batch.
struct Histories {
  const float* const* levels;
  const int64_t* strides;
};

// Bands (M, D) of one row, and its histories moved on by one step.
void decompose(const Layer& l, const float* x, const Histories& histories, int64_t b, float* moved, float* bands) {
  const int64_t D = l.channels;
  std::memcpy(bands, x, D * sizeof(float));
  float* approximation = bands + (l.levels + 1) * D;
  std::memcpy(approximation, x, D * sizeof(float));
  for (int64_t level = 0; level < l.levels; ++level) {
    const int64_t dilation = int64_t{1} << level, past = (l.taps - 1) * dilation;
    const float* history = histories.levels[level] + b * histories.strides[level];
    if (past) {
      std::memcpy(moved, history + D, (past - 1) * D * sizeof(float));
      std::memcpy(moved + (past - 1) * D, approximation, D * sizeof(float));
    }
    float* detail = bands + (level + 1) * D;
    const float *low = l.low + level * l.taps * D, *high = l.high + level * l.taps * D;
    for (int64_t d = 0; d < D; ++d) {
      detail[d] = high[d] * approximation[d];
      approximation[d] = low[d] * approximation[d];
    }
    for (int64_t k = 1; k < l.taps; ++k) {
      const float* old = history + (past - k * dilation) * D;
      for (int64_t d = 0; d < D; ++d) {
        detail[d] += high[k * D + d] * old[d];
        approximation[d] += low[k * D + d] * old[d];
      }
    }
    moved += past * D;
  }
}

// Weights (M, H) of the bands.
void mix(const Layer& l, const float* x, float* weights) {
  const int64_t bands = l.levels + 2, count = bands * l.heads;
  for (int64_t i = 0; i < count; ++i)
    weights[i] = l.mix_weight ? dot(l.mix_weight + i * l.channels, x, l.channels) + l.mix_bias[i]
                 : l.fixed    ? l.fixed[i]
                              : 1.0f;
  if (!l.softmax) return;
  for (int64_t h = 0; h < l.heads; ++h) {
    float most = weights[h], sum = 0;
    for (int64_t m = 1; m < bands; ++m) most = std::max(most, weights[m * l.heads + h]);
    for (int64_t m = 0; m < bands; ++m) sum += weights[m * l.heads + h] = std::exp(weights[m * l.heads + h] - most);
    for (int64_t m = 0; m < bands; ++m) weights[m * l.heads + h] /= sum;
  }
}

// states and the new ones (M, N, D), as the scan leaves them.
void step_row(const Layer& l, const float* x, const Histories& histories, int64_t b, const float* states, float* y,
              float* moved, float* next, std::vector<float>& workspace) {
  const int64_t D = l.channels, N = l.states, M = l.levels + 2, width = l.rank + 2 * N;
  workspace.resize(std::max<size_t>(workspace.size(), M * D + M * l.heads + M * width + 4 * D));
  float *bands = workspace.data(), *weights = bands + M * D, *projected = weights + M * l.heads;
  float *delta = projected + M * width, *out = delta + D, *mixed = out + D, *drive = mixed + D;
  decompose(l, x, histories, b, moved, bands);
  mix(l, x, weights);
  for (int64_t i = 0; i < M * width; ++i) projected[i] = dot(l.projection + i * D, x, D);
  std::fill(mixed, mixed + D, 0.0f);
  for (int64_t m = 0; m < M; ++m) {
    const float *u = bands + m * D, *B = projected + m * width + l.rank, *C = B + N;
    std::memcpy(delta, l.delta_bias + m * D, D * sizeof(float));
    for (int64_t r = 0; r < l.rank; ++r)
      for (int64_t d = 0; d < D; ++d) delta[d] += projected[m * width + r] * l.delta_weight[(m * l.rank + r) * D + d];
    for (int64_t d = 0; d < D; ++d) {
      const float step = softplus(delta[d]);
      delta[d] = step < l.lowest_delta ? l.lowest_delta : step > l.highest_delta ? l.highest_delta : step;
      drive[d] = delta[d] * u[d];
      out[d] = l.skip ? l.skip[m * D + d] * u[d] : 0.0f;
    }
    for (int64_t n = 0; n < N; ++n) {
      const float *log_rate = l.log_rate + m * D * N + n, *h = states + (m * N + n) * D;
      float* h_next = next + (m * N + n) * D;
      for (int64_t d = 0; d < D; ++d) {
        float limited = log_rate[d * N], rate, unused, decay, expm1;
        limited = limited < l.lowest_rate ? l.lowest_rate : limited > l.highest_rate ? l.highest_rate : limited;
        exponentials(limited * 1.4426950408889634f, rate, unused);
        exponentials(delta[d] * rate * -1.4426950408889634f, decay, expm1);
        const float gained = l.zoh ? -expm1 / rate * u[d] : drive[d];
        h_next[d] = decay * h[d] + gained * B[n];
        out[d] += h_next[d] * C[n];
      }
    }
    for (int64_t d = 0; d < D; ++d) mixed[d] += weights[m * l.heads + d * l.heads / D] * out[d];
  }
  std::memcpy(y, mixed, D * sizeof(float));
}

}  // namespace

extern "C" {

// sizes: B, S, K, D, N, R, H, zoh, softmax, distance of the rows of x. limits: least and greatest step size, and logarithm of the rate.
// in: x (B, D), states (B, M, N, D), then the pointers of Layer in their order. strides: of the histories, per level.
// out: y (B, D), histories, states.
void msssm_step(const int64_t* sizes, const float* limits, const float* const* in, const float* const* histories,
                const int64_t* strides, float* const* out) {
  const Layer l{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8],
                in[2],    in[3],    in[4],    in[5],    in[6],    in[7],    in[8],    in[9],    in[10],
                in[11],   limits[0], limits[1], limits[2], limits[3]};
  const int64_t rows = (l.taps - 1) * ((int64_t{1} << l.levels) - 1) * l.channels;
  const int64_t all = (l.levels + 2) * l.states * l.channels;
  thread_local std::vector<float> workspace;
  for (int64_t b = 0; b < l.batch; ++b)
    step_row(l, in[0] + b * sizes[9], {histories, strides}, b, in[1] + b * all, out[0] + b * l.channels,
             out[1] + b * rows, out[2] + b * all, workspace);
}
}
