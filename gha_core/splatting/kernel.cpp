// Compositing of projected Gaussians and its gradient on CPU cores. The specification is twin.py.
//
// Per view the Gaussians are sorted by depth and listed per 16x16 tile; tiles run in parallel.
// In a tile each Gaussian visits exactly the row spans in which its alpha can reach MIN_ALPHA.
// Gradients are first written per (tile, Gaussian) and then summed in a fixed order, so the bits do
// not depend on the number of threads.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace {

// As in projection.py.
constexpr float MIN_ALPHA = 1.0f / 255.0f;
constexpr float MAX_ALPHA = 0.999f;
constexpr float MIN_TRANSMITTANCE = 1e-4f;

constexpr int TILE = 16;   // px
constexpr int LANES = 8;   // pixels of a span whose alpha is computed at once
constexpr int GEOMETRY = 6; // gradient entries beside the payload: x y a b c opacity

// One visible Gaussian of a view.
struct Gaussian {
    float x, y;        // mean, px
    float a, b, c;     // conic
    float determinant; // of the conic
    float opacity;
    float limit;       // q at which alpha falls below MIN_ALPHA
    int id;
};

struct View {
    std::vector<Gaussian> gaussians;       // near to far
    std::vector<int> rank;                 // id -> index in gaussians, -1 where not drawn
    std::vector<int64_t> tile_begin;       // tile -> first entry; one more at the end
    std::vector<int> entries;              // per tile: indices into gaussians, near to far
    std::vector<int64_t> gaussian_begin;   // index in gaussians -> first of its slots
    std::vector<int64_t> slots;            // per Gaussian: its entries
};

struct Bins {
    int views = 0, count = 0, width = 0, height = 0, across = 0, down = 0;
    std::vector<View> view;
};

// Inclusive range of tiles, empty if first > last.
struct TileBox {
    int left, right, top, bottom;
};

TileBox tiles_of(const Gaussian &g, const Bins &bins) {
    // Half extents of the ellipse q = limit; a little more, because alpha itself decides.
    const float half_x = std::sqrt(g.limit * g.c / g.determinant) * 1.001f + 0.01f;
    const float half_y = std::sqrt(g.limit * g.a / g.determinant) * 1.001f + 0.01f;
    auto first = [](float edge) { return std::ceil(std::max(edge - 0.5f, 0.0f)); };
    auto last = [](float edge, int size) {
        return std::floor(std::min(edge - 0.5f, float(size - 1)));
    };
    const float x0 = first(g.x - half_x), x1 = last(g.x + half_x, bins.width);
    const float y0 = first(g.y - half_y), y1 = last(g.y + half_y, bins.height);
    if (!(x0 <= x1 && y0 <= y1)) return {0, -1, 0, -1};
    return {int(x0) / TILE, int(x1) / TILE, int(y0) / TILE, int(y1) / TILE};
}

// Indices of `keys` (non-negative floats) in ascending order; equal keys keep their order.
std::vector<int> sorted_order(const std::vector<float> &keys) {
    const size_t count = keys.size();
    std::vector<uint32_t> key(count), key_next(count);
    std::vector<int> order(count), order_next(count);
    std::memcpy(key.data(), keys.data(), count * sizeof(float));
    std::iota(order.begin(), order.end(), 0);
    constexpr int BITS = 11;
    for (int shift = 0; shift < 32; shift += BITS) {
        size_t begin[1 << BITS] = {};
        auto digit = [shift](uint32_t k) { return (k >> shift) & ((1u << BITS) - 1); };
        for (uint32_t k : key) begin[digit(k)]++;
        size_t sum = 0;
        for (size_t &b : begin) {
            const size_t here = b;
            b = sum;
            sum += here;
        }
        for (size_t i = 0; i < count; i++) {
            const size_t to = begin[digit(key[i])]++;
            key_next[to] = key[i];
            order_next[to] = order[i];
        }
        key.swap(key_next);
        order.swap(order_next);
    }
    return order;
}

void fill_view(View &view, const Bins &bins, const float *means2d, const float *conics,
               const float *depths, const bool *visible, const float *opacities) {
    std::vector<Gaussian> found;
    std::vector<float> depth;
    for (int i = 0; i < bins.count; i++) {
        if (!visible[i]) continue;
        Gaussian g;
        g.x = means2d[2 * i], g.y = means2d[2 * i + 1];
        g.a = conics[3 * i], g.b = conics[3 * i + 1], g.c = conics[3 * i + 2];
        // In double: for a long needle the products cancel.
        g.determinant = float(double(g.a) * g.c - double(g.b) * g.b);
        g.opacity = opacities[i];
        g.limit = 2.0f * std::log(g.opacity / MIN_ALPHA);
        g.id = i;
        if (!(g.determinant > 0.0f) || !(g.limit >= 0.0f)) continue;
        const TileBox box = tiles_of(g, bins);
        if (box.left > box.right) continue;
        found.push_back(g);
        depth.push_back(depths[i]);
    }
    const std::vector<int> order = sorted_order(depth);

    const size_t count = found.size(), tiles = size_t(bins.across) * bins.down;
    view.gaussians.resize(count);
    view.rank.assign(bins.count, -1);
    view.gaussian_begin.assign(count + 1, 0);
    view.tile_begin.assign(tiles + 1, 0);
    std::vector<TileBox> boxes(count);
    for (size_t k = 0; k < count; k++) {
        const Gaussian &g = view.gaussians[k] = found[order[k]];
        view.rank[g.id] = int(k);
        const TileBox box = boxes[k] = tiles_of(g, bins);
        for (int y = box.top; y <= box.bottom; y++)
            for (int x = box.left; x <= box.right; x++) view.tile_begin[y * bins.across + x + 1]++;
        view.gaussian_begin[k + 1] =
            view.gaussian_begin[k] + int64_t(box.right - box.left + 1) * (box.bottom - box.top + 1);
    }
    std::partial_sum(view.tile_begin.begin(), view.tile_begin.end(), view.tile_begin.begin());
    std::vector<int64_t> next(view.tile_begin.begin(), view.tile_begin.end() - 1);
    view.entries.resize(view.tile_begin[tiles]);
    view.slots.resize(view.tile_begin[tiles]);
    for (size_t k = 0; k < count; k++) {
        int64_t slot = view.gaussian_begin[k];
        const TileBox box = boxes[k];
        for (int y = box.top; y <= box.bottom; y++)
            for (int x = box.left; x <= box.right; x++) {
                const int64_t entry = next[y * bins.across + x]++;
                view.entries[entry] = int(k);
                view.slots[slot++] = entry;
            }
    }
}

// exp(x) for -87 <= x <= 0, relative error below 1e-6; plain arithmetic, so that loops vectorise.
GHA_INLINE float fast_exp(float x) {
    const float t = x * 1.44269504f;
    const float whole = (t + 12582912.0f) - 12582912.0f; // round to nearest
    const float f = t - whole;
    float p = 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const int32_t bits = (int32_t(whole) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// opacity * exp(-q / 2), not yet limited, of LANES pixels to the right of x (offsets from the mean).
GHA_INLINE void span_alpha(const Gaussian &g, float dx, float dy, float *alpha) {
    const float row = -0.5f * g.c * dy * dy, slope = -g.b * dy, bend = -0.5f * g.a;
#pragma GCC unroll 1
    for (int k = 0; k < LANES; k++) {
        const float x = dx + float(k);
        float power = row + x * (slope + bend * x);
        power = power < 0.0f ? power : 0.0f;
        power = power > -80.0f ? power : -80.0f;
        alpha[k] = g.opacity * fast_exp(power);
    }
}

// The pixels of a tile.
struct Window {
    int left, top, columns, rows;
};

Window window_of(const Bins &bins, int tile) {
    const int left = tile % bins.across * TILE, top = tile / bins.across * TILE;
    return {left, top, std::min(TILE, bins.width - left), std::min(TILE, bins.height - top)};
}

// Per row of the window the span [from, to) of columns where q <= limit.
GHA_INLINE void row_spans(const Gaussian &g, const Window &window, int *from, int *to) {
    const float inverse = 1.0f / g.a, right = float(window.columns);
    const float x = g.x - float(window.left) - 0.5f, y = g.y - float(window.top) - 0.5f;
    for (int r = 0; r < TILE; r++) {
        const float dy = float(r) - y;
        const float square = g.a * g.limit - g.determinant * dy * dy;
        const float half = std::sqrt(square > 0.0f ? square : 0.0f) * inverse * 1.001f + 0.01f;
        const float centre = x - g.b * inverse * dy;
        float low = centre - half, high = centre + half;
        low = low > 0.0f ? low : 0.0f;
        low = low < right ? low : right;
        high = high > -1.0f ? high : -1.0f;
        high = high < right - 1.0f ? high : right - 1.0f;
        // ceil and floor by truncation: low >= 0 and high + 1 >= 0.
        const int whole = int(low);
        from[r] = whole + (float(whole) < low ? 1 : 0);
        to[r] = square >= -1e-3f * g.a * g.limit ? int(high + 1.0f) : 0;
    }
}

// Features and depth of one Gaussian, padded with zeros.
GHA_INLINE void load_payload(float *payload, const float *features, int channels, float depth,
                             int padded) {
    for (int c = 0; c < channels; c++) payload[c] = features[c];
    payload[channels] = depth;
    for (int c = channels + 1; c < padded; c++) payload[c] = 0.0f;
}

struct Scratch {
    std::vector<float> pixels;        // [TILE * TILE][padded] sums, or gradients of the output
    std::vector<float> payload, grad; // [padded]
    float transmittance[TILE * TILE]; // negated when the pixel is finished
    float behind[TILE * TILE];        // gradient . what is still to come
    float grad_alpha[TILE * TILE];

    explicit Scratch(int padded) : pixels(TILE * TILE * padded), payload(padded), grad(padded) {}
};

struct Scene {
    const float *depths;   // [V, N]
    const float *features; // [N, C]
    int channels, padded;
};

// CHANNELS and PADDED are compile-time constants, or 0: then those of the scene.
template <int CHANNELS, int PADDED>
GHA_INLINE void forward_tile(const Bins &bins, int v, int tile, const Scene &scene,
                             const float *background, float *image, float *alpha_image,
                             float *depth_image, Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : scene.channels;
    const int padded = PADDED ? PADDED : scene.padded;
    const View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    float *const sums = scratch.pixels.data();
    float *const payload = scratch.payload.data();
    float *const transmittance = scratch.transmittance;
    std::fill_n(sums, TILE * TILE * padded, 0.0f);
    std::fill_n(transmittance, TILE * TILE, 1.0f);

    int live = window.columns * window.rows;
    for (int64_t e = view.tile_begin[tile]; e < view.tile_begin[tile + 1] && live; e++) {
        const Gaussian &g = view.gaussians[view.entries[e]];
        load_payload(payload, scene.features + size_t(g.id) * channels, channels,
                     scene.depths[size_t(v) * bins.count + g.id], padded);
        int from[TILE], to[TILE];
        row_spans(g, window, from, to);
        for (int r = 0; r < window.rows; r++) {
            const float dy = float(window.top + r) + 0.5f - g.y;
            for (int x = from[r]; x < to[r]; x += LANES) {
                float alphas[LANES];
                span_alpha(g, float(window.left + x) + 0.5f - g.x, dy, alphas);
                const int lanes = std::min(LANES, to[r] - x);
                for (int k = 0; k < lanes; k++) {
                    const int pixel = r * TILE + x + k;
                    const float before = transmittance[pixel];
                    const float alpha = std::min(alphas[k], MAX_ALPHA);
                    if (alpha < MIN_ALPHA || before < 0.0f) continue;
                    const float after = before * (1.0f - alpha);
                    if (after < MIN_TRANSMITTANCE) {
                        transmittance[pixel] = -before;
                        live--;
                        continue;
                    }
                    transmittance[pixel] = after;
                    const float weight = alpha * before;
                    float *const sum = sums + pixel * padded;
                    for (int c = 0; c < padded; c++) sum[c] += weight * payload[c];
                }
            }
        }
    }

    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const size_t to =
                (size_t(v) * bins.height + window.top + r) * bins.width + window.left + x;
            const float through = std::fabs(transmittance[r * TILE + x]);
            const float *const sum = sums + (r * TILE + x) * padded;
            float *const out = image + to * channels;
            for (int c = 0; c < channels; c++) out[c] = sum[c] + through * background[c];
            alpha_image[to] = 1.0f - through;
            depth_image[to] = sum[channels];
        }
}

struct Images {
    const float *image, *alpha, *depth;
};

// With s_j = gradient . payload_j (+ the gradient of alpha), L's derivative by alpha_i is
//   T_i s_i - (sum over j behind i of w_j s_j + T_end gradient . background) / (1 - alpha_i),
// and the bracket is what remains of gradient . output after i, so one pass from near to far does.
template <int CHANNELS, int PADDED>
GHA_INLINE void backward_tile(const Bins &bins, int v, int tile, const Scene &scene,
                              const Images &out, const Images &gradient, float *rows,
                              uint8_t *touched, Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : scene.channels;
    const int padded = PADDED ? PADDED : scene.padded;
    const View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    float *const gradients = scratch.pixels.data();
    float *const payload = scratch.payload.data();
    float *const payload_grad = scratch.grad.data();
    float *const transmittance = scratch.transmittance;
    std::fill_n(transmittance, TILE * TILE, 1.0f);
    if (view.tile_begin[tile] == view.tile_begin[tile + 1]) return;

    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const int pixel = r * TILE + x;
            const size_t at =
                (size_t(v) * bins.height + window.top + r) * bins.width + window.left + x;
            load_payload(gradients + pixel * padded, gradient.image + at * channels, channels,
                         gradient.depth[at], padded);
            float sum = gradient.depth[at] * out.depth[at] + gradient.alpha[at] * out.alpha[at];
            for (int c = 0; c < channels; c++)
                sum += gradient.image[at * channels + c] * out.image[at * channels + c];
            scratch.behind[pixel] = sum;
            scratch.grad_alpha[pixel] = gradient.alpha[at];
        }

    int live = window.columns * window.rows;
    const int size = padded + GEOMETRY;
    for (int64_t e = view.tile_begin[tile]; e < view.tile_begin[tile + 1] && live; e++) {
        const Gaussian &g = view.gaussians[view.entries[e]];
        load_payload(payload, scene.features + size_t(g.id) * channels, channels,
                     scene.depths[size_t(v) * bins.count + g.id], padded);
        std::fill_n(payload_grad, padded, 0.0f);
        bool any = false;
        // Moments of dL/dpower over the offsets from the mean, in lanes.
        float m0[LANES] = {}, mx[LANES] = {}, my[LANES] = {};
        float mxx[LANES] = {}, mxy[LANES] = {}, myy[LANES] = {};
        int from[TILE], to[TILE];
        row_spans(g, window, from, to);
        for (int r = 0; r < window.rows; r++) {
            const float dy = float(window.top + r) + 0.5f - g.y;
            for (int x = from[r]; x < to[r]; x += LANES) {
                const float dx = float(window.left + x) + 0.5f - g.x;
                float alphas[LANES], powers[LANES] = {};
                span_alpha(g, dx, dy, alphas);
                const int lanes = std::min(LANES, to[r] - x);
                bool drawn = false;
                for (int k = 0; k < lanes; k++) {
                    const int pixel = r * TILE + x + k;
                    const float before = transmittance[pixel];
                    const float alpha = std::min(alphas[k], MAX_ALPHA);
                    if (alpha < MIN_ALPHA || before < 0.0f) continue;
                    const float after = before * (1.0f - alpha);
                    if (after < MIN_TRANSMITTANCE) {
                        transmittance[pixel] = -before;
                        live--;
                        continue;
                    }
                    drawn = true;
                    transmittance[pixel] = after;
                    const float weight = alpha * before;
                    const float *const grad = gradients + pixel * padded;
                    float along = 0.0f;
#pragma omp simd reduction(+ : along)
                    for (int c = 0; c < padded; c++) along += grad[c] * payload[c];
                    along += scratch.grad_alpha[pixel];
                    for (int c = 0; c < padded; c++) payload_grad[c] += weight * grad[c];
                    const float behind = scratch.behind[pixel] -= weight * along;
                    const float grad_alpha = before * along - behind / (1.0f - alpha);
                    powers[k] = alphas[k] < MAX_ALPHA ? grad_alpha * alpha : 0.0f;
                }
                if (!drawn) continue;
                any = true;
                for (int k = 0; k < LANES; k++) {
                    const float ox = dx + float(k), p = powers[k], px = p * ox, py = p * dy;
                    m0[k] += p;
                    mx[k] += px;
                    my[k] += py;
                    mxx[k] += px * ox;
                    mxy[k] += px * dy;
                    myy[k] += py * dy;
                }
            }
        }
        touched[e] = any;
        if (!any) continue;
        auto sum = [](const float *lanes) {
            float total = 0.0f;
            for (int k = 0; k < LANES; k++) total += lanes[k];
            return total;
        };
        float *const row = rows + e * size;
        std::copy_n(payload_grad, padded, row);
        // power = -(a dx² + c dy²) / 2 - b dx dy, and dx = pixel - mean.
        const float sx = sum(mx), sy = sum(my);
        row[padded + 0] = g.a * sx + g.b * sy;
        row[padded + 1] = g.b * sx + g.c * sy;
        row[padded + 2] = -0.5f * sum(mxx);
        row[padded + 3] = -sum(mxy);
        row[padded + 4] = -0.5f * sum(myy);
        row[padded + 5] = sum(m0) / g.opacity;
    }
}

#define GHA_SPECIALISE(NAME, CHANNELS, PADDED)                                                     \
    GHA_MULTIVERSION void forward_##NAME(const Bins &bins, int v, int tile, const Scene &scene,    \
                                         const float *background, float *image, float *alpha,     \
                                         float *depth, Scratch &scratch) {                         \
        forward_tile<CHANNELS, PADDED>(bins, v, tile, scene, background, image, alpha, depth,      \
                                       scratch);                                                   \
    }                                                                                              \
    GHA_MULTIVERSION void backward_##NAME(const Bins &bins, int v, int tile, const Scene &scene,   \
                                          const Images &out, const Images &gradient, float *rows,  \
                                          uint8_t *touched, Scratch &scratch) {                    \
        backward_tile<CHANNELS, PADDED>(bins, v, tile, scene, out, gradient, rows, touched,        \
                                        scratch);                                                  \
    }
} // namespace

// Not in the anonymous namespace: target_clones needs linkage.
GHA_SPECIALISE(splat_3, 3, 4)
GHA_SPECIALISE(splat_32, 32, 40)
GHA_SPECIALISE(splat_any, 0, 0)

namespace {

int padded_size(int channels) {
    if (channels == 3) return 4;
    return (channels + 1 + 7) / 8 * 8;
}

using In1 = Array<const float, nb::ndim<1>>;
using In2 = Array<const float, nb::ndim<2>>;
using In3 = Array<const float, nb::ndim<3>>;
using In4 = Array<const float, nb::ndim<4>>;
using Out1 = Array<float, nb::ndim<1>>;
using Out2 = Array<float, nb::ndim<2>>;
using Out3 = Array<float, nb::ndim<3>>;
using Out4 = Array<float, nb::ndim<4>>;

Bins *splat_forward(In3 means2d, In3 conics, In2 depths, Array<const bool, nb::ndim<2>> visible,
                    In1 opacities, In2 features, In1 background, Out4 image, Out3 alpha,
                    Out3 depth, int threads) {
    auto bins = std::make_unique<Bins>();
    bins->views = int(depths.shape(0));
    bins->count = int(depths.shape(1));
    bins->height = int(image.shape(1));
    bins->width = int(image.shape(2));
    bins->across = (bins->width + TILE - 1) / TILE;
    bins->down = (bins->height + TILE - 1) / TILE;
    bins->view.resize(bins->views);
    const int channels = int(features.shape(1));
    const Scene scene{depths.data(), features.data(), channels, padded_size(channels)};
    const auto run = channels == 3 ? forward_splat_3 : channels == 32 ? forward_splat_32 : forward_splat_any;
    const int tiles = bins->across * bins->down, jobs = tiles * bins->views;
    const size_t count = size_t(bins->count);

    nb::gil_scoped_release release;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int v = 0; v < bins->views; v++)
            fill_view(bins->view[v], *bins, means2d.data() + v * count * 2,
                      conics.data() + v * count * 3, depths.data() + v * count,
                      visible.data() + v * count, opacities.data());
        Scratch scratch(scene.padded);
#pragma omp for schedule(dynamic)
        for (int job = 0; job < jobs; job++)
            run(*bins, job / tiles, job % tiles, scene, background.data(), image.data(),
                alpha.data(), depth.data(), scratch);
    }
    return bins.release();
}

void splat_backward(const Bins &bins, In2 depths, In2 features, In4 image, In3 alpha, In3 depth,
                    In4 grad_image, In3 grad_alpha, In3 grad_depth, Out3 grad_means2d,
                    Out3 grad_conics, Out2 grad_depths, Out1 grad_opacities, Out2 grad_features,
                    int threads) {
    const int channels = int(features.shape(1));
    const Scene scene{depths.data(), features.data(), channels, padded_size(channels)};
    const Images out{image.data(), alpha.data(), depth.data()};
    const Images gradient{grad_image.data(), grad_alpha.data(), grad_depth.data()};
    const auto run = channels == 3 ? backward_splat_3 : channels == 32 ? backward_splat_32 : backward_splat_any;
    const int tiles = bins.across * bins.down, jobs = tiles * bins.views;
    const size_t size = scene.padded + GEOMETRY, count = size_t(bins.count);

    nb::gil_scoped_release release;
    std::vector<std::unique_ptr<float[]>> rows(bins.views); // [entries, size], not initialised
    std::vector<std::vector<uint8_t>> touched(bins.views);
    for (int v = 0; v < bins.views; v++) {
        const size_t entries = bins.view[v].entries.size();
        rows[v].reset(new float[entries * size]);
        touched[v].assign(entries, 0);
    }
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(scene.padded);
#pragma omp for schedule(dynamic)
        for (int job = 0; job < jobs; job++) {
            const int v = job / tiles;
            run(bins, v, job % tiles, scene, out, gradient, rows[v].get(), touched[v].data(),
                scratch);
        }
        // Each Gaussian sums its rows in the order of views and tiles.
        std::vector<float> sum(size);
#pragma omp for schedule(static)
        for (int i = 0; i < bins.count; i++) {
            float *const features_out = grad_features.data() + size_t(i) * channels;
            std::fill_n(features_out, channels, 0.0f);
            float opacity = 0.0f;
            for (int v = 0; v < bins.views; v++) {
                const View &view = bins.view[v];
                std::fill(sum.begin(), sum.end(), 0.0f);
                if (const int k = view.rank[i]; k >= 0)
                    for (int64_t s = view.gaussian_begin[k]; s < view.gaussian_begin[k + 1]; s++) {
                        const int64_t entry = view.slots[s];
                        if (!touched[v][entry]) continue;
                        const float *const row = rows[v].get() + entry * size;
                        for (size_t c = 0; c < size; c++) sum[c] += row[c];
                    }
                const size_t at = v * count + i;
                const float *const geometry = sum.data() + scene.padded;
                for (int c = 0; c < channels; c++) features_out[c] += sum[c];
                grad_depths.data()[at] = sum[channels];
                std::copy_n(geometry, 2, grad_means2d.data() + at * 2);
                std::copy_n(geometry + 2, 3, grad_conics.data() + at * 3);
                opacity += geometry[5];
            }
            grad_opacities.data()[i] = opacity;
        }
    }
}

} // namespace

void bind_splatting(nb::module_ &m) {
    // Tensors that are alive when Python exits keep their graph, and with it the bins, alive: no leak.
    nb::set_leak_warnings(false);
    nb::class_<Bins>(m, "SplatBins", "Per view: Gaussians in depth order and the tiles they touch.");
    m.def("splat_forward", &splat_forward, nb::rv_policy::take_ownership,
          "Composite V views into image, alpha, depth (written in place); returns the bins that the "
          "backward pass needs. Called by gha_core/splatting/native.py only.");
    m.def("splat_backward", &splat_backward,
          "Gradients of splat_forward, written in place into the last five arrays.");
}
