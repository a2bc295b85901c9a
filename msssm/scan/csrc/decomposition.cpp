// The multi-scale decomposition as an operator of its own. Tile by tile, all channels of a row in turn, so that memory
// is read and written line after line.

#include "decomposition.h"

namespace {

constexpr int64_t TILE = 32;

struct Call {
  int64_t batch, length, threads;
  Decomposition decomposition;
  Array bands;
  const int64_t* lengths;

  int64_t length_of(int64_t b) const { return lengths ? std::clamp<int64_t>(lengths[b], 0, length) : length; }
  template <typename Task>
  void for_each_group(const Task& task) const {
    const Decomposition& d = decomposition;
    ::for_each_group(batch, d.channels, threads, (double)batch * length * d.channels * d.levels * d.taps, task);
  }
};

void forward_group(const Call& c, int64_t b, int64_t group, float* last) {
  struct Own {
    Column at;
    Taps taps;
    Levels values;
  };
  const int64_t length = c.length_of(b);
  const Decomposition d = c.decomposition.of_row(length, last);
  const int64_t bands = d.levels + 2;
  std::vector<Own> blocks;
  for (Block block : blocks_of_group(c.batch, d.channels, group)) {
    const Column at{b, block.d, block.width};
    blocks.push_back({at, Taps(d, at), Levels(d, std::min(TILE, length))});
    load_history(d, at, blocks.back().values);
  }
  for (int64_t start = 0; start < length; start += TILE) {
    const int64_t steps = std::min(TILE, length - start);
    for (int64_t t = 0; t < steps; ++t)  // line after line: block by block the memory would lag behind
      for (int64_t m = 0; m < bands; ++m)
        for (const Own& own : blocks) __builtin_prefetch(c.bands.at(b, start + t, m) + own.at.d, 1);
    for (Own& own : blocks) {
      split(d, own.at, own.taps, start, 0, steps, own.values, stored_at(c.bands, own.at, start));
      own.values.forward(steps);
    }
  }
  for (int64_t t = length; t < c.length; ++t)
    for (int64_t m = 0; m < bands; ++m)
      for (Own& own : blocks) store(c.bands.at(b, t, m) + own.at.d, Vec{}, own.at.width);
  for (Own& own : blocks)
    if (last) own.values.write_past(last + b * d.rows() * d.channels, own.at);
}

void backward_group(const Call& c, const float* grad_last, int64_t b, int64_t group, const Array& grad_x,
                    const DecompositionGradients& g) {
  struct Own {
    Column at;
    Taps taps, grad_taps;
    Levels grads;
  };
  const int64_t length = c.length_of(b);
  const Decomposition d = c.decomposition.of_row(length, grad_last);
  const int64_t rows = d.rows();
  // So long that less than half of what is computed again lies before it.
  const int64_t tile = std::min(std::max(TILE, rows), std::max<int64_t>(1, length));
  std::vector<Own> blocks;
  for (Block block : blocks_of_group(c.batch, d.channels, group)) {
    const Column at{b, block.d, block.width};
    blocks.push_back({at, Taps(d, at), Taps(d), Levels(d, tile)});
    if (grad_last) blocks.back().grads.read_past(grad_last + b * rows * d.channels, at);
  }
  Levels values(d, std::min(tile + rows, length));
  for (int64_t end = length, steps; end > 0; end -= steps) {
    steps = (end - 1) % tile + 1;
    const int64_t start = end - steps, halo = std::min(start, rows);
    for (Own& own : blocks) {
      if (halo == start) load_history(d, own.at, values);
      split(d, own.at, own.taps, start, halo, steps, values, NoBands{});
      join(d, own.at, own.taps, start, halo, steps, values, loaded_from(c.bands, own.at, start), own.grads,
           own.grad_taps, grad_x);
    }
  }
  for (Own& own : blocks) {
    for (int64_t t = length; t < c.length; ++t) store(grad_x.at(b, t, 0) + own.at.d, Vec{}, own.at.width);
    g.write(d, own.at, own.grad_taps, own.grads);
  }
}

// The weights of one block, or their gradients, band by band.
struct Weights {
  std::vector<Vec> values;
  explicit Weights(const Decomposition& c) : values(c.levels + 2) {}
  Weights(const Decomposition& c, const float* weights, const Column& at) : Weights(c) {
    for (size_t m = 0; m < values.size(); ++m) values[m] = load(weights + m * c.channels + at.d, at.width);
  }
};

// As forward_group, but for the weighted sum of the bands, which are nowhere: y (B, L, 1, D) is where bands are there.
// A longer tile, so that the histories of many levels are moved seldom.
void weighted_group(const Call& c, const float* weights, int64_t b, int64_t group, float* last) {
  struct Own {
    Column at;
    Taps taps;
    Weights weights;
    Levels values;
  };
  const int64_t length = c.length_of(b);
  const Decomposition d = c.decomposition.of_row(length, last);
  const int64_t rows = d.rows();
  const int64_t tile = std::max<int64_t>(1, std::min(length, std::max(TILE, rows / 4)));
  std::vector<Own> blocks;
  for (Block block : blocks_of_group(c.batch, d.channels, group)) {
    const Column at{b, block.d, block.width};
    blocks.push_back({at, Taps(d, at), Weights(d, weights, at), Levels(d, tile)});
    load_history(d, at, blocks.back().values);
  }
  std::vector<Vec> sums(tile);
  for (int64_t start = 0; start < length; start += tile) {
    const int64_t steps = std::min(tile, length - start);
    for (Own& own : blocks) {
      std::fill_n(sums.begin(), steps, Vec{});
      split(d, own.at, own.taps, start, 0, steps, own.values, [&](int64_t band) {
        return [sum = sums.data(), weight = own.weights.values[band]](int64_t t, Vec value) { sum[t] += weight * value; };
      });
      for (int64_t t = 0; t < steps; ++t) store(c.bands.at(b, start + t, 0) + own.at.d, sums[t], own.at.width);
      own.values.forward(steps);
    }
  }
  for (Own& own : blocks) {
    for (int64_t t = length; t < c.length; ++t) store(c.bands.at(b, t, 0) + own.at.d, Vec{}, own.at.width);
    if (last) own.values.write_past(last + b * rows * d.channels, own.at);
  }
}

// As backward_group, from the gradient of the weighted sum. grad_weights (B, S + 2, D).
void weighted_backward_group(const Call& c, const float* weights, const float* grad_last, int64_t b, int64_t group,
                             const Array& grad_x, const DecompositionGradients& g, float* grad_weights) {
  struct Own {
    Column at;
    Taps taps, grad_taps;
    Weights weights, grad_weights;
    Levels grads;
  };
  const int64_t length = c.length_of(b);
  const Decomposition d = c.decomposition.of_row(length, grad_last);
  const int64_t rows = d.rows(), bands = d.levels + 2;
  const int64_t tile = std::min(std::max(TILE, rows), std::max<int64_t>(1, length));
  std::vector<Own> blocks;
  for (Block block : blocks_of_group(c.batch, d.channels, group)) {
    const Column at{b, block.d, block.width};
    blocks.push_back({at, Taps(d, at), Taps(d), Weights(d, weights, at), Weights(d), Levels(d, tile)});
    if (grad_last) blocks.back().grads.read_past(grad_last + b * rows * d.channels, at);
  }
  Levels values(d, std::min(tile + rows, length));
  std::vector<Vec> grad_y(tile);
  for (int64_t end = length, steps; end > 0; end -= steps) {
    steps = (end - 1) % tile + 1;
    const int64_t start = end - steps, halo = std::min(start, rows);
    for (Own& own : blocks) {
      for (int64_t t = 0; t < steps; ++t) grad_y[t] = load(c.bands.at(b, start + t, 0) + own.at.d, own.at.width);
      const Vec* grad = grad_y.data();
      if (halo == start) load_history(d, own.at, values);
      split(d, own.at, own.taps, start, halo, steps, values, [&](int64_t band) {
        return [=, sum = &own.grad_weights.values[band]](int64_t t, Vec value) { *sum += grad[t] * value; };
      });
      const auto give = [&](int64_t band) {
        return [=, weight = own.weights.values[band]](int64_t t) { return weight * grad[t]; };
      };
      join(d, own.at, own.taps, start, halo, steps, values, give, own.grads, own.grad_taps, grad_x);
    }
  }
  for (Own& own : blocks) {
    for (int64_t t = length; t < c.length; ++t) store(grad_x.at(b, t, 0) + own.at.d, Vec{}, own.at.width);
    for (int64_t m = 0; m < bands; ++m)
      store(grad_weights + (b * bands + m) * d.channels + own.at.d, own.grad_weights.values[m], own.at.width);
    g.write(d, own.at, own.grad_taps, own.grads);
  }
}

// sizes: B, L, S, K, D, threads. strides: (row, step, band) of x, bands, history.
Call make_call(const int64_t* sizes, const int64_t* strides, const float* const* in, const float* bands,
               const int64_t* lengths) {
  const Decomposition decomposition{sizes[2], sizes[3], sizes[4], array(in[0], strides), array(in[3], strides + 6),
                                    in[1],    in[2]};
  return {sizes[0], sizes[1], sizes[5], decomposition, array(bands, strides + 3), lengths};
}

}  // namespace

extern "C" {

// in: x, low, high, history or null. bands (B, L, S + 2, D), last (B, rows of history, D) or null.
void msssm_decomposition_forward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                                 const int64_t* lengths, float* bands, float* last) {
  const Call c = make_call(sizes, strides, in, bands, lengths);
  c.for_each_group([&](int64_t b, int64_t group) { forward_group(c, b, group, last); });
}

// The strides of bands are those of grad_bands; grad_last or null. out: grad_x, low and high per row of the batch,
// history or null.
void msssm_decomposition_backward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                                  const int64_t* lengths, const float* grad_bands, const float* grad_last,
                                  const int64_t* grad_x_strides, float* const* out) {
  const Call c = make_call(sizes, strides, in, grad_bands, lengths);
  const Array grad_x = array(out[0], grad_x_strides);
  const DecompositionGradients g{out[1], out[2], out[3]};
  c.for_each_group([&](int64_t b, int64_t group) { backward_group(c, grad_last, b, group, grad_x, g); });
}

// As msssm_decomposition_forward, for y (B, L, D), the sum of the bands times weights (S + 2, D).
void msssm_weighted_decomposition_forward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                                          const int64_t* lengths, const float* weights, float* y, float* last) {
  const Call c = make_call(sizes, strides, in, y, lengths);
  c.for_each_group([&](int64_t b, int64_t group) { weighted_group(c, weights, b, group, last); });
}

// out: grad_x, and per row of the batch low, high, history and weights.
void msssm_weighted_decomposition_backward(const int64_t* sizes, const int64_t* strides, const float* const* in,
                                           const int64_t* lengths, const float* weights, const float* grad_y,
                                           const float* grad_last, const int64_t* grad_x_strides, float* const* out) {
  const Call c = make_call(sizes, strides, in, grad_y, lengths);
  const Array grad_x = array(out[0], grad_x_strides);
  const DecompositionGradients g{out[1], out[2], out[3]};
  c.for_each_group([&](int64_t b, int64_t group) {
    weighted_backward_group(c, weights, grad_last, b, group, grad_x, g, out[4]);
  });
}
}
