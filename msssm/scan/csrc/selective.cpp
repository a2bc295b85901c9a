// Selective scans over M bands, forward and backward. Time runs sequentially; nothing of size (B, L, M, D, N) is
// written. The forward keeps the states before every chunk of steps; the backward advances from there to the states
// before every tile of a chunk, and walks back over the tiles, whose states stay in the nearest cache.
//
// Where the scan gets filters, its input is x: the bands are made of it, and their gradients used, tile by tile in the
// nearest cache. They are several times as large as x, and to write and to read them takes about as long as the scan.

#include "decomposition.h"
#include "exponential.h"

namespace {

// States at a time: as many as keep the loops of a step free of spills.
#if defined(__AVX512F__)
constexpr int FORWARD_STATES = 8, BACKWARD_STATES = 4;
#else
constexpr int FORWARD_STATES = 4, BACKWARD_STATES = 2;
#endif
constexpr int TILE = 32, KEPT = 16;

// What the backward keeps of the states is at most half as large as the input, whatever the bands and states.
int64_t chunk_of(int64_t bands, int64_t states) { return TILE * ((bands * states + KEPT - 1) / KEPT); }

// Whether some product of the lanes, or a NaN, needs the limit.
INLINE bool needs_limit(Vec delta, Vec rate) {
  const Int within = delta * rate >= LOWEST;
  int32_t all = -1;
  for (int i = 0; i < LANES; ++i) all &= within[i];
  return !all;
}

struct Call {
  int64_t batch, length, bands, channels, states, heads, rank, zoh, threads;
  // Channels last in A (M, N, D) and the states (B, M, N, D); what is absent is null.
  Array u, delta, B, C, mix;  // delta (B, L, M, R) where it has a weight (M, R, D)
  Decomposition filters;      // of x; without taps u is given
  const float *A, *skip, *delta_weight, *delta_bias, *initial;
  const int64_t* lengths;
  float lowest_delta, highest_delta;

  int64_t length_of(int64_t b) const { return lengths ? std::clamp<int64_t>(lengths[b], 0, length) : length; }
  int64_t all() const { return bands * states; }
  double operations() const { return (double)batch * length * bands * channels * states; }
};

// Bands of one block of channels and some steps, close together, read and written as part of a whole array would be.
struct Bands {
  std::vector<Vec> values;
  Array from(const Column& at, int64_t start, int64_t steps, int64_t bands) {
    values.resize(steps * bands);
    return {(float*)values.data() - start * LANES - at.d, 0, LANES, steps * LANES};
  }
};

// One row, one band, and a block of channels from d on.
struct ChannelBlock {
  int64_t b, m, d;
  int width;
  Vec of(const float* per_band, const Call& c) const {  // (M, D), zeros where absent
    return per_band ? load(per_band + m * c.channels + d, width) : Vec{};
  }
};

// Step sizes and inputs of some steps; returns the longest step of each lane. What lies `next` steps further is loaded
// ahead: by the time it is asked for, it has arrived.
INLINE Vec load_steps(const Call& c, const ChannelBlock& at, int64_t start, int steps, int64_t next, Vec* weight,
                      Vec* delta, Vec* u) {
  const Vec bias = at.of(c.delta_bias, c);
  for (int64_t r = 0; r < c.rank; ++r)
    weight[r] = load(c.delta_weight + (at.m * c.rank + r) * c.channels + at.d, at.width);
  for (int t = 0; t < steps; ++t) {
    const float* p = c.u.at(at.b, start + t, at.m) + at.d;
    u[t] = load(p, at.width);
    __builtin_prefetch(p + next * c.u.step);
    const float* given = c.delta.at(at.b, start + t, at.m);
    Vec step = bias;
    if (!c.delta_weight) step += load(given + at.d, at.width);
    for (int64_t r = 0; r < c.rank; ++r) step += given[r] * weight[r];
    delta[t] = step;
  }
  if (c.delta_bias)
    for (int t = 0; t < steps; ++t) {
      Vec step = softplus(delta[t]);
      step = step < c.lowest_delta ? splat(c.lowest_delta) : step;
      delta[t] = step > c.highest_delta ? splat(c.highest_delta) : step;
    }
  Vec longest{};
  for (int t = 0; t < steps; ++t) longest = delta[t] <= longest ? longest : delta[t];  // in this order a NaN is kept
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
      if (ZOH) h[n] += expm1 * (inverse[n] * u * B[n] + h[n]);  // a h + (a - 1) / A B u
      else h[n] = decay * h[n] + euler * B[n];
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

// All states over the steps from start on that delta and u are of.
void advance(const Call& c, const ChannelBlock& at, int64_t start, int steps, Vec longest, const Vec* delta, const Vec* u,
             Vec* h, Vec* y) {
  by_chunks<ForwardChunk, FORWARD_STATES>(
      c.states, ForwardTile{c, longest, delta, u, c.B.at(at.b, start, at.m), c.C.at(at.b, start, at.m),
                            c.A + at.m * c.states * c.channels + at.d, steps, at.width, h, y});
}

void forward_group(Call c, int64_t b, int64_t group, float* y, float* last, float* past, float* checkpoints) {
  struct Filtered {
    Column at;
    Taps taps;
    Levels values;
  };
  const int64_t all = c.all(), length = c.length_of(b), chunk = chunk_of(c.bands, c.states);
  const int64_t chunks = (c.length + chunk - 1) / chunk;
  c.filters = c.filters.of_row(length, past);
  const std::vector<Block> blocks = blocks_of_group(c.batch, c.channels, group);
  std::vector<Vec> states(blocks.size() * all), weight(c.rank);
  auto for_each_state = [&](auto&& use) {
    for (size_t k = 0; k < blocks.size(); ++k)
      for (int64_t i = 0; i < all; ++i) use(states[k * all + i], i, blocks[k]);
  };
  for_each_state([&](Vec& h, int64_t i, Block block) {
    h = c.initial ? load(c.initial + (b * all + i) * c.channels + block.d, block.width) : Vec{};
  });
  std::vector<Filtered> filtered;
  Bands bands;
  if (c.filters.taps)
    for (Block block : blocks) {
      const Column at{b, block.d, block.width};
      filtered.push_back({at, Taps(c.filters, at), Levels(c.filters, std::min<int64_t>(TILE, length))});
      load_history(c.filters, at, filtered.back().values);
    }
  for (int64_t start = 0; start < length; start += TILE) {
    const int steps = (int)std::min<int64_t>(TILE, length - start);
    if (checkpoints && start % chunk == 0)
      for_each_state([&](Vec& h, int64_t i, Block block) {
        store(checkpoints + ((b * chunks + start / chunk) * all + i) * c.channels + block.d, h, block.width);
      });
    for (size_t k = 0; k < blocks.size(); ++k) {
      if (c.filters.taps) {
        Filtered& own = filtered[k];
        c.u = bands.from(own.at, start, TILE, c.bands);
        split(c.filters, own.at, own.taps, start, 0, steps, own.values, stored_at(c.u, own.at, start));
        own.values.forward(steps);
      }
      Vec total[TILE] = {}, delta[TILE], u[TILE], band[TILE];
      for (int64_t m = 0; m < c.bands; ++m) {
        const ChannelBlock at{b, m, blocks[k].d, blocks[k].width};
        const Vec longest = load_steps(c, at, start, steps, TILE, weight.data(), delta, u), skip = at.of(c.skip, c);
        for (int t = 0; t < steps; ++t) band[t] = c.skip ? skip * u[t] : Vec{};
        advance(c, at, start, steps, longest, delta, u, &states[k * all + m * c.states], band);
        const float* mix = c.mix.at(b, start, m);
        for (int t = 0; t < steps; ++t)
          total[t] += mix_at(mix + t * c.mix.step, c.heads, c.channels, at.d, at.width) * band[t];
      }
      for (int t = 0; t < steps; ++t)
        store(y + (b * c.length + start + t) * c.channels + blocks[k].d, total[t], blocks[k].width);
    }
  }
  for (Block block : blocks)
    for (int64_t t = length; t < c.length; ++t)
      store(y + (b * c.length + t) * c.channels + block.d, Vec{}, block.width);
  for_each_state([&](Vec& h, int64_t i, Block block) {
    store(last + (b * all + i) * c.channels + block.d, h, block.width);
  });
  for (Filtered& own : filtered)
    if (past) own.values.write_past(past + b * c.filters.rows() * c.channels, own.at);
}

// Of a thread: of some chunks, of one, and of one tile of it.
struct Scratch {
  Bands bands, grad_bands;
  std::vector<Vec> delta, u, weight, starts;
  Vec grad_band[TILE], y[TILE], grad_u[TILE], grad_delta[TILE];
  Vec states[(TILE + 1) * BACKWARD_STATES], changes[TILE * BACKWARD_STATES];

  void fit(const Call& c, int64_t chunk) {
    delta.resize(chunk);
    u.resize(chunk);
    weight.resize(c.rank);
    starts.resize((chunk / TILE) * c.states);
  }
};

// Of one block of channels, from chunk to chunk: dLoss/dh behind the chunk, and sums over the steps.
struct Sums {
  std::vector<Vec> carry, A, skip, delta_weight, delta_bias;
  explicit Sums(const Call& c)
      : carry(c.all()), A(c.all()), skip(c.bands), delta_weight(c.bands * c.rank), delta_bias(c.bands) {}
};

// A, skip, delta_weight and delta_bias per row of the batch; B, C, mix and a delta of low rank per group of channels,
// (groups, B, L, M, ...).
struct Gradients {
  Array u, delta;  // or of x
  DecompositionGradients filters;
  float *low_rank, *A, *B, *C, *mix, *skip, *delta_weight, *delta_bias, *initial;

  // To what follows `row` rows of L M in the buffers of the groups.
  template <typename Use>
  void for_each_group_buffer(const Call& c, int64_t row, const Use& use) const {
    if (c.rank) use(low_rank + row * c.rank, c.rank);
    use(B + row * c.states, c.states);
    use(C + row * c.states, c.states);
    if (mix) use(mix + row * c.heads, c.heads);
  }
};

struct BackwardTile {
  const Call& c;
  Vec longest;  // step
  Scratch& s;
  const Vec *delta, *u, *start;  // start: states before the tile
  const float *B, *C, *A;
  int steps, width;
  Vec *carry, *grad_A;
  float *grad_B, *grad_C;
};

// "change" is a - 1 of ZOH, a of Euler.
template <int COUNT, bool ZOH, bool LIMIT>
void backward_tile(const BackwardTile& f, int64_t first) {
  const int64_t B_step = f.c.B.step, C_step = f.c.C.step, grad_step = f.c.bands * f.c.states;
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
    Vec *changes = f.s.changes, *states = f.s.states + COUNT;
    for (int t = 0; t < f.steps; ++t, B += B_step, C += C_step, changes += COUNT, states += COUNT) {
      const Vec delta = f.delta[t], u = f.u[t], euler = delta * u;
      Vec sum = f.s.y[t];
      for (int n = 0; n < COUNT; ++n) {
        Vec decay, expm1;
        exponentials<LIMIT>(delta, rate[n], decay, expm1);
        if (ZOH) h[n] += expm1 * (inverse[n] * u * B[n] + h[n]);
        else h[n] = decay * h[n] + euler * B[n];
        changes[n] = ZOH ? expm1 : decay;
        states[n] = h[n];
        sum += h[n] * C[n];
      }
      f.s.y[t] = sum;
    }
  }
  Vec grad_h[COUNT], grad_A[COUNT], grad_inverse[COUNT];
  for (int n = 0; n < COUNT; ++n) {
    grad_h[n] = f.carry[first + n];
    grad_A[n] = grad_inverse[n] = Vec{};
  }
  // As many steps at a time as fill the lanes of one sum.
  constexpr int GROUP = LANES / COUNT;
  for (int end = f.steps; end > 0; end -= GROUP) {
    const int begin = std::max(0, end - GROUP);
    Vec sums_B[LANES], sums_C[LANES];
    for (int i = (end - begin) * COUNT; i < LANES; ++i) sums_B[i] = sums_C[i] = Vec{};
    for (int t = end - 1; t >= begin; --t) {
      const float *B = f.B + first + t * B_step, *C = f.C + first + t * C_step;
      const Vec delta = f.delta[t], u = f.u[t], grad = f.s.grad_band[t];
      const Vec *changes = &f.s.changes[t * COUNT], *states = &f.s.states[t * COUNT];
      Vec grad_u = f.s.grad_u[t], grad_delta = f.s.grad_delta[t];
      for (int n = 0; n < COUNT; ++n) {
        const Vec h = grad_h[n] + grad * C[n], changed = h * changes[n];
        sums_C[(t - begin) * COUNT + n] = grad * states[COUNT + n];
        Vec slope, grad_drive, *sum_B = &sums_B[(t - begin) * COUNT + n];
        if (ZOH) {  // of a h + (a - 1) / A B u: dh/ddelta = a (A h + B u), and 1 / A has a derivative of its own
          grad_h[n] = h + changed;
          slope = grad_h[n] * (inverse[n] * u * B[n] + states[n]);
          grad_drive = changed * inverse[n];
          *sum_B = grad_drive * u;
          grad_inverse[n] += *sum_B * B[n];
        } else {
          grad_h[n] = changed;
          slope = changed * states[n];
          grad_drive = h * delta;
          *sum_B = grad_drive * u;
          grad_delta += h * u * B[n];
        }
        grad_delta += slope * A[n];
        grad_A[n] += slope * delta;
        grad_u += grad_drive * B[n];
      }
      f.s.grad_u[t] = grad_u;
      f.s.grad_delta[t] = grad_delta;
    }
    add_sums<COUNT>(sums_B, f.grad_B + begin * grad_step + first, grad_step, end - begin);
    add_sums<COUNT>(sums_C, f.grad_C + begin * grad_step + first, grad_step, end - begin);
  }
  for (int n = 0; n < COUNT; ++n) {
    f.carry[first + n] = grad_h[n];
    f.grad_A[first + n] += ZOH ? grad_A[n] - grad_inverse[n] * inverse[n] : grad_A[n];
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

// From the gradients of the step sizes to those of what they were made of.
void backward_steps(const Call& c, const ChannelBlock& at, int64_t start, int steps, int64_t row, const Vec* delta,
                    const Gradients& g, Scratch& s, Sums& sums) {
  if (c.delta_bias) {
    Vec total = sums.delta_bias[at.m];
    for (int t = 0; t < steps; ++t) {  // the derivative of softplus is 1 - exp(-softplus)
      Vec decay, expm1;
      exponentials<true>(delta[t], splat(-LOG2E), decay, expm1);
      const Int inside = (delta[t] > c.lowest_delta) & (delta[t] < c.highest_delta);
      s.grad_delta[t] = inside ? -expm1 * s.grad_delta[t] : Vec{};
      total += s.grad_delta[t];
    }
    sums.delta_bias[at.m] = total;
  }
  if (!c.delta_weight)
    for (int t = 0; t < steps; ++t) store(g.delta.at(at.b, start + t, at.m) + at.d, s.grad_delta[t], at.width);
  for (int64_t r = 0; r < c.rank; ++r) {
    const float* given = c.delta.at(at.b, start, at.m) + r;
    Vec even{}, odd{};  // two sums, so that additions need not wait for each other
    for (int t = 0; t + 1 < steps; t += 2) {
      even += s.grad_delta[t] * given[t * c.delta.step];
      odd += s.grad_delta[t + 1] * given[(t + 1) * c.delta.step];
    }
    if (steps % 2) even += s.grad_delta[steps - 1] * given[(steps - 1) * c.delta.step];
    sums.delta_weight[at.m * c.rank + r] += even + odd;
    add_sums_of(steps, g.low_rank + row * c.rank + r, c.bands * c.rank,
                [&](int t) { return s.grad_delta[t] * s.weight[r]; });
  }
}

// One band and block over a chunk.
void backward_chunk(const Call& c, const ChannelBlock& at, int64_t start, int steps, int64_t row, const float* checkpoint,
                      const Array& grad_y, const Gradients& g, Scratch& s, Sums& sums) {
  const Vec longest = load_steps(c, at, start, steps, -steps, s.weight.data(), s.delta.data(), s.u.data());
  const Vec skip = at.of(c.skip, c);
  for (int t = 0; t < steps; ++t) __builtin_prefetch(g.u.at(at.b, start + t, at.m) + at.d, 1);
  for (int64_t n = 0; n < c.states; ++n)
    s.starts[n] = load(checkpoint + (at.m * c.states + n) * c.channels + at.d, at.width);
  int first = 0;
  for (; first + TILE < steps; first += TILE) {
    Vec* h = &s.starts[first / TILE * c.states];
    std::copy(h, h + c.states, h + c.states);
    advance(c, at, start + first, TILE, longest, &s.delta[first], &s.u[first], h + c.states, s.y);
  }
  for (; first >= 0; first -= TILE) {
    const int count = std::min(TILE, steps - first);
    const int64_t begin = start + first, own = row + first * c.bands;
    const Vec *delta = &s.delta[first], *u = &s.u[first];
    const float* mix = c.mix.at(at.b, begin, at.m);
    for (int t = 0; t < count; ++t) {
      s.grad_band[t] = load(grad_y.at(at.b, begin + t, 0) + at.d, at.width) *
                       mix_at(mix + t * c.mix.step, c.heads, c.channels, at.d, at.width);
      s.y[t] = skip * u[t];
      s.grad_u[t] = skip * s.grad_band[t];
      s.grad_delta[t] = Vec{};
    }
    if (c.skip)
      for (int t = 0; t < count; ++t) sums.skip[at.m] += s.grad_band[t] * u[t];
    by_chunks<BackwardChunk, BACKWARD_STATES>(
        c.states, BackwardTile{c, longest, s, delta, u, &s.starts[first / TILE * c.states], c.B.at(at.b, begin, at.m),
                               c.C.at(at.b, begin, at.m), c.A + at.m * c.states * c.channels + at.d, count, at.width,
                               &sums.carry[at.m * c.states], &sums.A[at.m * c.states], g.B + own * c.states,
                               g.C + own * c.states});
    for (int t = 0; t < count; ++t) store(g.u.at(at.b, begin + t, at.m) + at.d, s.grad_u[t], at.width);
    backward_steps(c, at, begin, count, own, delta, g, s, sums);
    if (!g.mix) continue;
    for (int t = 0; t < count; ++t) s.y[t] *= load(grad_y.at(at.b, begin + t, 0) + at.d, at.width);
    add_mix_gradient(g.mix + own * c.heads, c.bands * c.heads, c.heads, c.channels, at.d, at.width, s.y, count);
  }
}

// Not inlined: where the scratch is known to be of the thread, its place would be asked for again and again.
__attribute__((noinline)) void backward_group(Call c, const float* checkpoints, const Array& grad_y,
                                              const float* grad_last, const float* grad_past, int64_t b, int64_t group,
                                              Gradients g, Scratch& s) {
  struct Filtered {
    Column at;
    Taps taps, grad_taps;
    Levels grads;
  };
  const int64_t all = c.all(), length = c.length_of(b), chunk = chunk_of(c.bands, c.states);
  const Decomposition filters = c.filters.of_row(length, grad_past);
  const Array grad_input = g.u;
  const int64_t chunks = (c.length + chunk - 1) / chunk, rows = (group * c.batch + b) * c.length;
  // So many chunks at a time that less than half of what the filters compute again lies before them.
  const int64_t seen = filters.rows(), back = std::min(seen, length);
  const int64_t stretch = std::max<int64_t>(1, (back + chunk - 1) / chunk) * chunk;
  const std::vector<Block> blocks = blocks_of_group(c.batch, c.channels, group);
  std::vector<Sums> sums(blocks.size(), Sums(c));
  std::vector<Filtered> filtered;
  Levels values(filters, std::min(stretch + seen, length));
  s.fit(c, chunk);
  for (size_t k = 0; k < blocks.size(); ++k) {
    for (int64_t i = 0; i < all; ++i)
      sums[k].carry[i] = load(grad_last + (b * all + i) * c.channels + blocks[k].d, blocks[k].width);
    if (!filters.taps) continue;
    const Column at{b, blocks[k].d, blocks[k].width};
    filtered.push_back({at, Taps(filters, at), Taps(filters), Levels(filters, stretch)});
    if (grad_past) filtered[k].grads.read_past(grad_past + b * seen * c.channels, at);
  }
  g.for_each_group_buffer(c, (rows + length) * c.bands, [&](float* buffer, int64_t inner) {
    std::fill_n(buffer, (c.length - length) * c.bands * inner, 0.0f);
  });
  for (int64_t t = length; t < c.length; ++t)
    for (int64_t m = 0; m < c.bands; ++m)
      for (Block block : blocks) {
        if (m == 0 || !filters.taps) store(g.u.at(b, t, m) + block.d, Vec{}, block.width);
        if (!c.delta_weight) store(g.delta.at(b, t, m) + block.d, Vec{}, block.width);
      }
  for (int64_t first = (length + stretch - 1) / stretch * stretch - stretch; first >= 0; first -= stretch) {
    const int64_t count = std::min(stretch, length - first), halo = std::min(first, seen);
    g.for_each_group_buffer(c, (rows + first) * c.bands, [&](float* buffer, int64_t inner) {
      std::fill_n(buffer, count * c.bands * inner, 0.0f);
    });
    for (size_t k = 0; k < blocks.size(); ++k) {
      if (filters.taps) {
        const Filtered& own = filtered[k];
        c.u = s.bands.from(own.at, first, stretch, c.bands);
        g.u = s.grad_bands.from(own.at, first, stretch, c.bands);
        if (halo == first) load_history(filters, own.at, values);
        split(filters, own.at, own.taps, first, halo, count, values, stored_at(c.u, own.at, first));
      }
      for (int64_t index = (first + count - 1) / chunk; index * chunk >= first; --index) {
        const int64_t start = index * chunk;
        for (int64_t m = 0; m < c.bands; ++m)
          backward_chunk(c, ChannelBlock{b, m, blocks[k].d, blocks[k].width}, start,
                           (int)std::min<int64_t>(chunk, length - start), (rows + start) * c.bands + m,
                           checkpoints + (b * chunks + index) * all * c.channels, grad_y, g, s, sums[k]);
      }
      if (filters.taps) {
        Filtered& own = filtered[k];
        join(filters, own.at, own.taps, first, halo, count, values, loaded_from(g.u, own.at, first), own.grads,
             own.grad_taps, grad_input);
      }
    }
  }
  for (size_t k = 0; k < blocks.size(); ++k) {
    auto write = [&](const std::vector<Vec>& values, float* out) {
      for (size_t i = 0; i < values.size(); ++i)
        store(out + (b * values.size() + i) * c.channels + blocks[k].d, values[i], blocks[k].width);
    };
    write(sums[k].carry, g.initial);
    write(sums[k].A, g.A);
    write(sums[k].skip, g.skip);
    write(sums[k].delta_weight, g.delta_weight);
    write(sums[k].delta_bias, g.delta_bias);
  }
  for (Filtered& own : filtered) g.filters.write(filters, own.at, own.grad_taps, own.grads);
}

// sizes: B, L, M, D, N, heads, R, zoh, taps or 0, threads. strides: (row, step, band) of u or x, delta, B, C, mix,
// history. inputs: u or x, delta, B, C, mix, A, D, delta_weight, delta_bias, initial state, low, high, history or null.
Call make_call(const int64_t* sizes, const int64_t* strides, const float* const* in, const int64_t* lengths,
               const float* limits) {
  const Array u = array(in[0], strides);
  const int64_t taps = sizes[8], levels = taps ? sizes[2] - 2 : 0;
  const Decomposition filters{levels, taps, sizes[3], u, array(in[12], strides + 15), in[10], in[11]};
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[9],
          u, array(in[1], strides + 3), array(in[2], strides + 6), array(in[3], strides + 9),
          array(in[4], strides + 12), filters, in[5], in[6], in[7], in[8], in[9], lengths, limits[0], limits[1]};
}

}  // namespace

extern "C" {

int64_t msssm_lanes() { return LANES; }

// Whether sums are rounded in the order in which they are written, as everything here relies on.
int msssm_strict(float large, float small) { return (large + small) - large == 0.0f; }

int64_t msssm_chunk(int64_t bands, int64_t states) { return chunk_of(bands, states); }

int64_t msssm_groups(int64_t batch, int64_t channels) { return groups_of(batch, channels); }

// limits: least and greatest step size after the softplus. y (B, L, D), last (B, M, N, D), past (B, rows of history, D)
// of filters or null, checkpoints (B, chunks, M, N, D) or null.
void msssm_selective_forward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                             const int64_t* lengths, const float* limits, float* y, float* last, float* past,
                             float* checkpoints) {
  const Call c = make_call(sizes, strides, in, lengths, limits);
  for_each_group(c.batch, c.channels, c.threads, c.operations(), [&](int64_t b, int64_t group) {
    forward_group(c, b, group, y, last, past, checkpoints);
  });
}

// grad_strides: (row, step, band) of grad_y (band 0), grad_u or grad_x, grad_delta.
// out: grad_u or grad_x, grad_delta (unused where it is of low rank), low_rank, A, B, C, mix (or null), skip,
// delta_weight, delta_bias, initial, low, high, history.
void msssm_selective_backward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                              const int64_t* lengths, const float* limits, const float* checkpoints,
                              const float* grad_y, const float* grad_last, const float* grad_past,
                              const int64_t* grad_strides, float* const* out) {
  const Call c = make_call(sizes, strides, in, lengths, limits);
  const Array incoming = array(grad_y, grad_strides);
  const Gradients g{array(out[0], grad_strides + 3), array(out[1], grad_strides + 6), {out[11], out[12], out[13]},
                    out[2], out[3], out[4], out[5], out[6], out[7], out[8], out[9], out[10]};
  for_each_group(c.batch, c.channels, c.threads, c.operations(), [&](int64_t b, int64_t group) {
    thread_local Scratch scratch;
    backward_group(c, checkpoints, incoming, grad_last, grad_past, b, group, g, scratch);
  });
}
}
