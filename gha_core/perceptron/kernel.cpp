// Perceptrons with ReLU and their gradient on CPU cores. The specification is twin.py.
//
// Rows are worked on in blocks small enough that all layers of a block stay in the nearest caches.
// Each chunk of blocks sums its own gradients of the weights, and these sums are added in order: the
// chunks depend on the number of rows alone, so the bits do not depend on the number of threads.
#include "lanes.h"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <vector>

namespace {

constexpr int BLOCK = 48;  // rows
constexpr int CHUNKS = 32; // at most; each needs room for the gradients of all weights

// Widths are padded to whole registers.
int padded(int width) { return (width + LANES - 1) / LANES * LANES; }

// One layer, its matrices padded with zeros.
struct Layer {
    int in, out, in_padded, out_padded;
    std::vector<float> across; // [in, out_padded], transposed
    std::vector<float> back;   // [out, in_padded]
    std::vector<float> bias;   // [out_padded]

    Layer(const float *weight, const float *bias_, int in_, int out_)
        : in(in_), out(out_), in_padded(padded(in_)), out_padded(padded(out_)),
          across(size_t(in_) * out_padded), back(size_t(out_) * in_padded), bias(out_padded) {
        for (int o = 0; o < out; o++)
            for (int i = 0; i < in; i++)
                across[size_t(i) * out_padded + o] = back[size_t(o) * in_padded + i] =
                    weight[size_t(o) * in + i];
        std::copy_n(bias_, out, bias.begin());
    }
};

using Layers = std::vector<Layer>;

// Elements (row, k) of the left factor of a product, at these distances from one another.
struct Left {
    const float *data;
    ptrdiff_t per_row, per_k;
};

// What a product starts from, and what becomes of it.
enum class Kind {
    LINEAR, // bias + product
    RELU,   // max(0, bias + product), where NaN stays NaN
    MASKED, // product, where `other` (of the result's shape) is not positive zero
    ADDED,  // the result so far + product
};

// ROWS x (COLUMNS registers) of the result, held in registers over all `depth` terms.
template <Kind KIND, int ROWS, int COLUMNS>
GHA_INLINE void tile(Left left, const float *right, int depth, int width, const float *other,
                     float *result) {
    F8 sum[ROWS][COLUMNS];
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) {
            if (KIND == Kind::ADDED) sum[r][c] = load(result + size_t(r) * width + c * LANES);
            else if (KIND == Kind::MASKED) sum[r][c] = F8{};
            else sum[r][c] = load(other + c * LANES);
        }
    for (int k = 0; k < depth; k++) {
        F8 factor[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) factor[c] = load(right + size_t(k) * width + c * LANES);
        for (int r = 0; r < ROWS; r++) {
            const float scalar = left.data[r * left.per_row + k * left.per_k];
            for (int c = 0; c < COLUMNS; c++) sum[r][c] += scalar * factor[c];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) {
            F8 value = sum[r][c];
            if (KIND == Kind::RELU) value = value < 0.0f ? F8{} : value;
            if (KIND == Kind::MASKED)
                value = load(other + size_t(r) * width + c * LANES) <= 0.0f ? F8{} : value;
            store(result + size_t(r) * width + c * LANES, value);
        }
}

template <Kind KIND, int COLUMNS>
GHA_INLINE void columns(Left left, const float *right, int rows, int depth, int width,
                        const float *other, float *result) {
    auto strip = [&](auto height) __attribute__((always_inline)) {
        tile<KIND, decltype(height)::value, COLUMNS>(left, right, depth, width, other, result);
        left.data += height * left.per_row;
        result += size_t(height) * width;
        if (KIND == Kind::MASKED) other += size_t(height) * width;
        rows -= height;
    };
    while (rows >= 6) strip(std::integral_constant<int, 6>());
    if (rows >= 4) strip(std::integral_constant<int, 4>());
    if (rows >= 2) strip(std::integral_constant<int, 2>());
    if (rows >= 1) strip(std::integral_constant<int, 1>());
}

// result [rows, width] of left [rows, depth] times right [depth, width]; width in whole registers.
template <Kind KIND>
GHA_INLINE void product(Left left, const float *right, int rows, int depth, int width,
                        const float *other, float *result) {
    int c = 0;
    for (; c + 2 * LANES <= width; c += 2 * LANES)
        columns<KIND, 2>(left, right + c, rows, depth, width, other + c, result + c);
    if (c < width)
        columns<KIND, 1>(left, right + c, rows, depth, width, other + c, result + c);
}

// Rows of `from` to those of `to`, as many columns as fit; the rest of `to` becomes zero.
void copy_rows(const float *from, int from_width, float *to, int to_width, int rows) {
    const int common = std::min(from_width, to_width);
    for (int r = 0; r < rows; r++) {
        std::copy_n(from + size_t(r) * from_width, common, to + size_t(r) * to_width);
        std::fill_n(to + size_t(r) * to_width + common, to_width - common, 0.0f);
    }
}

// These rows, or a padded copy of them in `buffer` where their width needs it.
const float *padded_rows(const float *rows, int width, int count, float *buffer) {
    if (width == padded(width)) return rows;
    copy_rows(rows, width, buffer, padded(width), count);
    return buffer;
}

// Where each hidden layer's values [rows, out_padded] lie in the memory for all of them.
std::vector<size_t> places(const Layers &layers, size_t rows) {
    std::vector<size_t> place{0};
    for (size_t l = 0; l + 1 < layers.size(); l++)
        place.push_back(place.back() + rows * layers[l].out_padded);
    return place;
}

int widest(const Layers &layers) {
    int width = layers[0].in_padded;
    for (const Layer &layer : layers) width = std::max(width, layer.out_padded);
    return width;
}

// As many rows as make at most CHUNKS chunks, in whole blocks.
int chunk_rows(int rows) {
    const int blocks = (rows + BLOCK - 1) / BLOCK;
    return std::max(1, (blocks + CHUNKS - 1) / CHUNKS) * BLOCK;
}

} // namespace

// Rows begin..end of all layers. `hidden`, if not null, keeps the hidden layers' values.
// Not in the anonymous namespace: target_clones needs linkage.
GHA_MULTIVERSION void perceptron_chunk(const Layers &layers, const float *points, int rows,
                                       int begin, int end, float *hidden, float *out) {
    const size_t room = size_t(BLOCK) * widest(layers);
    std::vector<float> scratch(2 * room);
    const std::vector<size_t> place = places(layers, rows);
    const Layer &last = layers.back();
    for (int first = begin; first < end; first += BLOCK) {
        const int count = std::min(BLOCK, end - first);
        const float *x = padded_rows(points + size_t(first) * layers[0].in, layers[0].in, count,
                                     scratch.data());
        int width = layers[0].in_padded;
        for (size_t l = 0; l + 1 < layers.size(); l++) {
            const Layer &layer = layers[l];
            float *const y = hidden ? hidden + place[l] + size_t(first) * layer.out_padded
                                    : scratch.data() + (l % 2 ? 0 : room);
            product<Kind::RELU>({x, width, 1}, layer.across.data(), count, layer.in,
                                layer.out_padded, layer.bias.data(), y);
            x = y;
            width = layer.out_padded;
        }
        float *const wanted = out + size_t(first) * last.out;
        float *const free = x == scratch.data() ? scratch.data() + room : scratch.data();
        float *const y = last.out == last.out_padded ? wanted : free;
        product<Kind::LINEAR>({x, width, 1}, last.across.data(), count, last.in, last.out_padded,
                              last.bias.data(), y);
        if (y == free) copy_rows(y, last.out_padded, wanted, last.out, count);
    }
}

// Gradients of rows begin..end. Those of the weights are added to `sums`: per layer
// [out, in_padded] and then [out_padded]. `by_points` may be null.
GHA_MULTIVERSION void perceptron_chunk_backward(const Layers &layers, const float *points,
                                                int rows, int begin, int end, const float *hidden,
                                                const float *gradient, float *by_points,
                                                float *sums) {
    const size_t room = size_t(BLOCK) * widest(layers);
    std::vector<float> scratch(4 * room);
    float *const by_in[2] = {scratch.data(), scratch.data() + room}; // of odd and even layers
    const std::vector<size_t> place = places(layers, rows);
    const Layer &front = layers[0], &last = layers.back();
    for (int first = begin; first < end; first += BLOCK) {
        const int count = std::min(BLOCK, end - first);
        const float *const input = padded_rows(points + size_t(first) * front.in, front.in, count,
                                               scratch.data() + 2 * room);
        const float *by_out = padded_rows(gradient + size_t(first) * last.out, last.out, count,
                                          scratch.data() + 3 * room);
        float *sum = sums;
        for (const Layer &layer : layers)
            sum += size_t(layer.out) * layer.in_padded + layer.out_padded;
        for (size_t l = layers.size(); l-- > 0;) {
            const Layer &layer = layers[l];
            const float *const x =
                l ? hidden + place[l - 1] + size_t(first) * layer.in_padded : input;
            float *const by_bias = sum -= layer.out_padded;
            for (int r = 0; r < count; r++)
                for (int o = 0; o < layer.out_padded; o++)
                    by_bias[o] += by_out[size_t(r) * layer.out_padded + o];
            float *const by_weight = sum -= size_t(layer.out) * layer.in_padded;
            product<Kind::ADDED>({by_out, 1, layer.out_padded}, x, layer.out, count,
                                 layer.in_padded, nullptr, by_weight);
            if (l) {
                product<Kind::MASKED>({by_out, layer.out_padded, 1}, layer.back.data(), count,
                                      layer.out, layer.in_padded, x, by_in[l % 2]);
                by_out = by_in[l % 2];
            } else if (by_points) {
                float *const wanted = by_points + size_t(first) * layer.in;
                float *const y = layer.in == layer.in_padded ? wanted : by_in[0];
                std::fill_n(y, size_t(count) * layer.in_padded, 0.0f);
                product<Kind::ADDED>({by_out, layer.out_padded, 1}, layer.back.data(), count,
                                     layer.out, layer.in_padded, nullptr, y);
                if (y != wanted) copy_rows(y, layer.in_padded, wanted, layer.in, count);
            }
        }
    }
}

namespace {

using In1 = Array<const float, nb::ndim<1>>;
using In2 = Array<const float, nb::ndim<2>>;
using Out1 = Array<float, nb::ndim<1>>;
using Out2 = Array<float, nb::ndim<2>>;

Layers layers_of(const std::vector<In2> &weights, const std::vector<In1> &biases) {
    Layers layers;
    for (size_t l = 0; l < weights.size(); l++)
        layers.emplace_back(weights[l].data(), biases[l].data(), int(weights[l].shape(1)),
                            int(weights[l].shape(0)));
    return layers;
}

void perceptron_forward(In2 points, std::vector<In2> weights, std::vector<In1> biases, Out1 hidden,
                        Out2 out, int threads) {
    const Layers layers = layers_of(weights, biases);
    const int rows = int(points.shape(0)), chunk = chunk_rows(rows);
    float *const kept = hidden.shape(0) ? hidden.data() : nullptr;
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int begin = 0; begin < rows; begin += chunk)
        perceptron_chunk(layers, points.data(), rows, begin, std::min(begin + chunk, rows), kept,
                         out.data());
}

void perceptron_backward(In2 points, std::vector<In2> weights, std::vector<In1> biases,
                         In1 hidden, In2 gradient, Out2 by_points, std::vector<Out2> by_weights,
                         std::vector<Out1> by_biases, int threads) {
    const Layers layers = layers_of(weights, biases);
    const int rows = int(points.shape(0)), chunk = chunk_rows(rows);
    const int chunks = (rows + chunk - 1) / chunk;
    float *const wanted = by_points.shape(0) ? by_points.data() : nullptr;
    nb::gil_scoped_release release;
    size_t size = 0;
    for (const Layer &layer : layers)
        size += size_t(layer.out) * layer.in_padded + layer.out_padded;
    std::vector<float> sums(size * std::max(chunks, 1));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int c = 0; c < chunks; c++)
        perceptron_chunk_backward(layers, points.data(), rows, c * chunk,
                                  std::min((c + 1) * chunk, rows), hidden.data(), gradient.data(),
                                  wanted, sums.data() + c * size);
    for (int c = 1; c < chunks; c++)
        for (size_t i = 0; i < size; i++) sums[i] += sums[c * size + i];
    const float *sum = sums.data();
    for (size_t l = 0; l < layers.size(); l++) {
        const Layer &layer = layers[l];
        copy_rows(sum, layer.in_padded, by_weights[l].data(), layer.in, layer.out);
        sum += size_t(layer.out) * layer.in_padded;
        std::copy_n(sum, layer.out, by_biases[l].data());
        sum += layer.out_padded;
    }
}

} // namespace

void bind_perceptron(nb::module_ &m) {
    m.def("perceptron_forward", &perceptron_forward,
          "All layers of a perceptron; hidden layers (unless empty) and output are written in "
          "place. Called by gha_core/perceptron/native.py only.");
    m.def("perceptron_backward", &perceptron_backward,
          "Gradients of perceptron_forward, written in place into the last three arguments.");
}
