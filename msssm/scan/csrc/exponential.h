// Exponentials of vectors, and what is made of them. Relative errors in comments.
#pragma once

#include "common.h"

namespace {

constexpr float LOG2E = 1.4426950408889634f;

// decay = 2^x and expm1 = 2^x - 1 for x = a b <= 0, relative error 2e-7, exact at 0; x = delta A log2(e).
// 2^x = 2^n 2^r with n the nearest integer: adding 1.5 * 2^23 + 127 leaves n + 127 in the low bits of the sum.
// Where every x is known to be at least LOWEST there is nothing to limit, and the product joins the additions.
constexpr float LOWEST = -126.0f;

template <bool LIMIT>
INLINE void exponentials(Vec a, Vec b, Vec& decay, Vec& expm1) {
  const Vec lowest = splat(LOWEST), magic = splat(12583039.0f);
  Vec shifted, r;
  if (LIMIT) {
    const Vec product = a * b, x = product < lowest ? lowest : product;  // in this order a NaN stays a NaN
    shifted = x + magic;
    r = x - (shifted - magic);
  } else {
    shifted = a * b + magic;
    r = a * b - (shifted - magic);
  }
  Vec p = splat(0x1.5bba13e56ebfep-10f);
  p = p * r + splat(0x1.3cea878f12bcbp-7f);
  p = p * r + splat(0x1.c6b752e06b0ffp-5f);
  p = p * r + splat(0x1.ebf9bb89e2839p-3f);
  p = p * r + splat(0x1.62e4292034e05p-1f);
  const Vec tail = p * r;  // 2^r - 1
  const Vec scale = (Vec)((Int)shifted << 23);
  decay = scale * tail + scale;
  expm1 = scale * tail + (scale - 1.0f);
}

// log(1 + e^x), relative error 2e-7: max(x, 0) + z p(z) with z = e^-|x|, p the minimax polynomial of log(1 + z) / z.
INLINE Vec softplus(Vec x) {
  Vec z, unused;
  exponentials<true>(x < 0.0f ? x : -x, splat(LOG2E), z, unused);
  const Vec z2 = z * z, z4 = z2 * z2;  // in pairs: one sum need not wait for all others
  const Vec low = (0x1.fffffep-1f - 0x1.fffeacp-2f * z) + z2 * (0x1.553004p-2f - 0x1.fcc8c6p-3f * z);
  const Vec high = (0x1.874a80p-3f - 0x1.17d2c0p-3f * z) + z2 * (0x1.4069d6p-4f - 0x1.e369e4p-6f * z);
  const Vec p = low + z4 * (high + 0x1.56edfep-8f * z4);
  return z * p + (x > 0.0f ? x : Vec{});
}

// 1 / (1 + e^-x).
INLINE Vec sigmoid(Vec x) {
  Vec z, unused;
  exponentials<true>(x < 0.0f ? x : -x, splat(LOG2E), z, unused);
  return (x < 0.0f ? z : splat(1.0f)) / (z + 1.0f);
}

// x Phi(x), absolute error 1e-7 |x|: Abramowitz and Stegun 1964, 7.1.26, for the tail of the normal distribution.
INLINE Vec gelu(Vec x) {
  const Vec z = (x < 0.0f ? -x : x) * 0.70710678118654752f, t = 1.0f / (0.3275911f * z + 1.0f);
  Vec e, unused, p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  exponentials<true>(-z * z, splat(LOG2E), e, unused);
  const Vec tail = 0.5f * p * t * e;
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace
