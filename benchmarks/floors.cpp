// The least work of a selective scan (see floors.py), on data that stays in the first-level cache: no method that
// does the same operations can be faster on this processor. One vector of channels, 16 states, 16 steps.

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int STATES = 16, STEPS = 16;

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Int __attribute__((vector_size(LANES * sizeof(int32_t))));

// 2^(x y): two fused multiply-adds and a subtraction for the reduction, five fused multiply-adds, and the scaling.
static inline Vec exp2_of(Vec x, Vec y) {
  const Vec magic = Vec{} + 12582912.0f;
  const Vec shifted = x * y + magic;
  const Vec r = x * y - (shifted - magic);
  Vec p = Vec{} + 0x1.5bba13e56ebfep-10f;
  p = p * r + 0x1.3cea878f12bcbp-7f;
  p = p * r + 0x1.c6b752e06b0ffp-5f;
  p = p * r + 0x1.ebf9bb89e2839p-3f;
  p = p * r + 0x1.62e4292034e05p-1f;
  p = p * r + 1.0f;
  return (Vec)((Int)p + ((Int)shifted << 23));
}

struct Data {
  Vec dt[STEPS], x[STEPS], grad_y[STEPS], A[STATES], rate[STATES], h[STATES], carry[STATES];
  float B[STEPS][STATES], C[STEPS][STATES];
  Vec y[STEPS], grad_x[STEPS], grad_dt[STEPS], grad_A[STATES], grad_B[STEPS][STATES], grad_C[STEPS][STATES];
  Vec decays[STEPS][STATES], states[STEPS + 1][STATES];
};

static void forward(Data& d) {
  Vec h[STATES];
  std::memcpy(h, d.h, sizeof h);
  for (int t = 0; t < STEPS; ++t) {
    Vec sum[4] = {};
    for (int n = 0; n < STATES; ++n) {
      h[n] = exp2_of(d.dt[t], d.rate[n]) * h[n] + d.x[t] * d.B[t][n];
      sum[n % 4] += h[n] * d.C[t][n];
    }
    d.y[t] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  std::memcpy(d.h, h, sizeof h);
}

static void backward(Data& d) {
  std::memcpy(d.states[0], d.h, sizeof d.h);
  for (int t = 0; t < STEPS; ++t)
    for (int n = 0; n < STATES; ++n) {
      d.decays[t][n] = exp2_of(d.dt[t], d.rate[n]);
      d.states[t + 1][n] = d.decays[t][n] * d.states[t][n] + d.x[t] * d.B[t][n];
    }
  for (int t = STEPS - 1; t >= 0; --t) {
    Vec grad_x = {}, grad_dt = {};
    for (int n = 0; n < STATES; ++n) {
      const Vec g = d.carry[n] + d.grad_y[t] * d.C[t][n];
      const Vec carried = g * d.decays[t][n];
      const Vec slope = carried * d.states[t][n];
      d.grad_C[t][n] += d.grad_y[t] * d.states[t + 1][n];
      d.grad_B[t][n] += g * d.x[t];
      grad_x += g * d.B[t][n];
      grad_dt += slope * d.A[n];
      d.grad_A[n] += slope * d.dt[t];
      d.carry[n] = carried;
    }
    d.grad_x[t] = grad_x;
    d.grad_dt[t] = grad_dt;
  }
}

// dt, x, grad_y (STEPS); A (STATES); B, C (STEPS, STATES); every lane the same.
static void fill(Data& d, const float* dt, const float* x, const float* grad_y, const float* A, const float* B,
                 const float* C) {
  std::memset(&d, 0, sizeof d);
  for (int t = 0; t < STEPS; ++t) {
    d.dt[t] = Vec{} + dt[t];
    d.x[t] = Vec{} + x[t];
    d.grad_y[t] = Vec{} + grad_y[t];
  }
  for (int n = 0; n < STATES; ++n) {
    d.A[n] = Vec{} + A[n];
    d.rate[n] = Vec{} + A[n] * 1.4426950408889634f;
  }
  std::memcpy(d.B, B, sizeof d.B);
  std::memcpy(d.C, C, sizeof d.C);
}

extern "C" {

int floor_lanes() { return LANES; }

// One pass from a state of zero, so that a caller can see that the work is the real one.
// out: y, grad_x, grad_dt (STEPS each), grad_A (STATES), grad_B, grad_C (STEPS x STATES).
void floor_results(const float* dt, const float* x, const float* grad_y, const float* A, const float* B,
                   const float* C, float* out) {
  static Data d;
  fill(d, dt, x, grad_y, A, B, C);
  backward(d);
  forward(d);
  for (int t = 0; t < STEPS; ++t) {
    out[t] = d.y[t][0];
    out[STEPS + t] = d.grad_x[t][0];
    out[2 * STEPS + t] = d.grad_dt[t][0];
  }
  float* rest = out + 3 * STEPS;
  for (int n = 0; n < STATES; ++n) rest[n] = d.grad_A[n][0];
  for (int i = 0; i < STEPS * STATES; ++i) {
    rest[STATES + i] = d.grad_B[i / STATES][i % STATES][0];
    rest[STATES + STEPS * STATES + i] = d.grad_C[i / STATES][i % STATES][0];
  }
}

// `passes` over the same data on each thread.
void floor_work(int64_t passes, int threads, int with_backward, const float* dt, const float* x, const float* grad_y,
                const float* A, const float* B, const float* C) {
  auto work = [&] {
    std::vector<Data> data(1);
    Data& d = data[0];
    fill(d, dt, x, grad_y, A, B, C);
    for (int64_t i = 0; i < passes; ++i) {
      if (with_backward) backward(d);
      else forward(d);
    }
    volatile float keep = d.y[0][0] + d.grad_x[0][0];
    (void)keep;
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < threads; ++i) helpers.emplace_back(work);
  work();
  for (auto& helper : helpers) helper.join();
}
}
