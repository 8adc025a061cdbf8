// Compositing of projected Gaussians and its gradient on CPU cores. The specification is twin.py.
//
// Per view the Gaussians are sorted by depth and listed per tile; tiles run in parallel.
// In a tile each Gaussian visits exactly the row spans in which its alpha can reach MIN_ALPHA.
// Gradients are first written per (tile, Gaussian) and then summed in a fixed order, so the bits do
// not depend on the number of threads.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// As in projection.py.
constexpr float MIN_ALPHA = 1.0f / 255.0f;
constexpr float MAX_ALPHA = 0.999f;
constexpr float MIN_TRANSMITTANCE = 1e-4f;

// px; wide, because every tile that a Gaussian touches costs a row of gradients.
constexpr int TILE_WIDTH = 32, TILE_HEIGHT = 16;
constexpr int PIXELS = TILE_WIDTH * TILE_HEIGHT;
constexpr int LANES = 8;    // pixels of a row that are worked on at once
constexpr int GEOMETRY = 7; // gradient entries beside the features: x y a b c opacity depth
constexpr int AHEAD = 6;    // Gaussians whose data is asked for before they are needed
constexpr int64_t MOST_ENTRIES = int64_t(1) << 31; // (tile, Gaussian) pairs of all views together

// One visible Gaussian of a view.
struct Gaussian {
    float x, y;        // mean, px
    float a, b, c;     // conic
    float determinant; // of the conic
    float opacity;
    float limit;       // q at which alpha falls below MIN_ALPHA
    float half_x, half_y; // px, extent of the ellipse q = limit; alpha itself decides
    float depth;
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
    auto first = [](float edge) { return std::ceil(std::max(edge - 0.5f, 0.0f)); };
    auto last = [](float edge, int size) {
        return std::floor(std::min(edge - 0.5f, float(size - 1)));
    };
    const float x0 = first(g.x - g.half_x), x1 = last(g.x + g.half_x, bins.width);
    const float y0 = first(g.y - g.half_y), y1 = last(g.y + g.half_y, bins.height);
    if (!(x0 <= x1 && y0 <= y1)) return {0, -1, 0, -1};
    return {int(x0) / TILE_WIDTH, int(x1) / TILE_WIDTH, int(y0) / TILE_HEIGHT,
            int(y1) / TILE_HEIGHT};
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

// The Gaussians that touch a tile, in their own order; the number of entries this makes.
int64_t find_gaussians(View &view, const Bins &bins, const float *means2d, const float *conics,
                       const float *depths, const bool *visible, const float *opacities) {
    int64_t entries = 0;
    for (int i = 0; i < bins.count; i++) {
        if (!visible[i]) continue;
        Gaussian g;
        g.x = means2d[2 * i], g.y = means2d[2 * i + 1];
        g.a = conics[3 * i], g.b = conics[3 * i + 1], g.c = conics[3 * i + 2];
        // In double: for a long needle the products cancel.
        g.determinant = float(double(g.a) * g.c - double(g.b) * g.b);
        g.opacity = opacities[i];
        g.limit = 2.0f * std::log(g.opacity / MIN_ALPHA);
        g.depth = depths[i];
        g.id = i;
        if (!(g.determinant > 0.0f) || !(g.limit >= 0.0f)) continue;
        g.half_x = std::sqrt(g.limit * g.c / g.determinant) * 1.001f + 0.01f;
        g.half_y = std::sqrt(g.limit * g.a / g.determinant) * 1.001f + 0.01f;
        const TileBox box = tiles_of(g, bins);
        if (box.left > box.right) continue;
        view.gaussians.push_back(g);
        entries += int64_t(box.right - box.left + 1) * (box.bottom - box.top + 1);
    }
    return entries;
}

// Sort them and list them per tile.
void fill_tiles(View &view, const Bins &bins) {
    const size_t count = view.gaussians.size(), tiles = size_t(bins.across) * bins.down;
    std::vector<float> depth(count);
    for (size_t k = 0; k < count; k++) depth[k] = view.gaussians[k].depth;
    const std::vector<int> order = sorted_order(depth);
    const std::vector<Gaussian> found = std::move(view.gaussians);
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

// The pixels of a tile.
struct Window {
    int left, top, columns, rows;
};

Window window_of(const Bins &bins, int tile) {
    const int left = tile % bins.across * TILE_WIDTH, top = tile / bins.across * TILE_HEIGHT;
    return {left, top, std::min(TILE_WIDTH, bins.width - left),
            std::min(TILE_HEIGHT, bins.height - top)};
}

// Per row of a window the span [from, to) of columns where q <= limit; no rows but [first, last).
struct Spans {
    int first, last;
    int from[TILE_HEIGHT], to[TILE_HEIGHT];
};

GHA_INLINE void row_spans(const Gaussian &g, const Window &window, Spans &spans) {
    const float inverse = 1.0f / g.a, right = float(window.columns);
    const float x = g.x - float(window.left) - 0.5f, y = g.y - float(window.top) - 0.5f;
    const float reach = g.a * g.limit, skew = g.b * inverse, determinant = g.determinant;
    // Truncation is floor here: the numbers are not negative.
    spans.first = int(std::min(std::max(y - g.half_y, 0.0f), float(TILE_HEIGHT)));
    spans.last = int(std::min(std::max(y + g.half_y + 1.0f, 0.0f), float(window.rows)));
    for (int r = 0; r < TILE_HEIGHT; r++) {
        const float dy = float(r) - y;
        const float square = reach - determinant * dy * dy;
        const float half = std::sqrt(square > 0.0f ? square : 0.0f) * inverse * 1.001f + 0.01f;
        const float centre = x - skew * dy;
        float low = centre - half, high = centre + half + 1.0f;
        low = low > 0.0f ? low : 0.0f;
        low = low < right ? low : right;
        high = high > 0.0f ? high : 0.0f;
        high = high < right ? high : right;
        spans.from[r] = int(low + 0.999f); // may start a pixel early, which costs nothing
        spans.to[r] = square >= -1e-3f * reach ? int(high) : 0;
    }
}

// Features of the Gaussians and how the kernel lays them out: with few channels (PLANES) one plane
// of pixels per channel, else all channels of a pixel side by side, padded to full registers.
struct Scene {
    const float *features; // [N, C]
    int channels, padded;
};

struct Scratch {
    std::vector<float> image;         // [PIXELS, padded] or planes [C, PIXELS]: sums or gradients
    std::vector<float> payload, grad; // one Gaussian's features and their gradient
    // A row's last lanes may lie beyond the tile; they are read and written back unchanged.
    float transmittance[PIXELS + LANES]; // negated when the pixel is finished
    float depth[PIXELS + LANES];         // sum, or gradient
    float alpha[PIXELS + LANES];         // gradient
    float behind[PIXELS + LANES];        // gradient . what is still to come

    explicit Scratch(int padded)
        : image(size_t(PIXELS + LANES) * padded), payload(padded), grad(size_t(LANES) * padded) {}
};

// LANES pixels of a row.
struct Lanes {
    float raw[LANES];    // opacity exp(-q / 2)
    float alpha[LANES];  // the same, limited
    float before[LANES]; // transmittance in front of this Gaussian
    float weight[LANES]; // alpha * before, 0 where the pixel does not take this Gaussian
};

// Composite one Gaussian into the first `count` of LANES pixels whose transmittance is given, the
// first of them (dx, dy) off its mean. Returns how many pixels are finished by that.
GHA_INLINE int advance(const Gaussian &g, float dx, float dy, int count, float *transmittance,
                       Lanes &lanes) {
    const float row = -0.5f * g.c * dy * dy, slope = -g.b * dy, bend = -0.5f * g.a;
    const float opacity = g.opacity;
#pragma omp simd
    for (int k = 0; k < LANES; k++) {
        const float x = dx + float(k);
        float power = row + x * (slope + bend * x);
        power = power < 0.0f ? power : 0.0f;
        power = power > -80.0f ? power : -80.0f;
        lanes.raw[k] = opacity * fast_exp(power);
    }
    // Two loops and few conditions: else GCC makes branches of it, which do not vectorise.
    static constexpr float in_span[2 * LANES] = {1, 1, 1, 1, 1, 1, 1, 1};
    const float *const mask = in_span + LANES - count;
    int finished = 0;
#pragma omp simd reduction(+ : finished)
    for (int k = 0; k < LANES; k++) {
        const float raw = lanes.raw[k], before = transmittance[k];
        float alpha = raw < MAX_ALPHA ? raw : MAX_ALPHA;
        alpha = alpha >= MIN_ALPHA ? alpha * mask[k] : 0.0f;
        const float after = before * (1.0f - alpha); // negative where the pixel is finished
        const int takes = after >= MIN_TRANSMITTANCE;
        finished += (before > 0.0f) - takes;
        lanes.alpha[k] = alpha;
        lanes.before[k] = before;
        lanes.weight[k] = takes ? alpha * before : 0.0f;
        transmittance[k] = takes ? after : -std::fabs(before);
    }
    return finished;
}

GHA_INLINE float sum_of(const float *lanes) {
    float total = 0.0f;
    for (int k = 0; k < LANES; k++) total += lanes[k];
    return total;
}

// The features of a Gaussian, in place where they need no padding.
GHA_INLINE const float *load_features(const Scene &scene, const Gaussian &g, int channels,
                                      int padded, float *buffer) {
    const float *const row = scene.features + size_t(g.id) * channels;
    if (channels == padded) return row;
    std::copy_n(row, channels, buffer);
    std::fill_n(buffer + channels, padded - channels, 0.0f);
    return buffer;
}

// The Gaussians come from all over memory: ask for those that are needed soon.
GHA_INLINE void prefetch(const View &view, const Scene &scene, int64_t entry, int64_t end,
                         int channels) {
    if (entry + 2 * AHEAD < end)
        __builtin_prefetch(&view.gaussians[view.entries[entry + 2 * AHEAD]]);
    if (entry + AHEAD < end) {
        const int id = view.gaussians[view.entries[entry + AHEAD]].id;
        const float *const row = scene.features + size_t(id) * channels;
        for (int c = 0; c < channels; c += 16) __builtin_prefetch(row + c);
    }
}

// CHANNELS and PADDED are compile-time constants, or 0: then those of the scene.
template <int CHANNELS, int PADDED, bool PLANES>
GHA_INLINE void forward_tile(const Bins &bins, int v, int tile, const Scene &scene,
                             const float *background, float *image, float *alpha_image,
                             float *depth_image, Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : scene.channels;
    const int padded = PADDED ? PADDED : scene.padded;
    const View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    float *const sums = scratch.image.data();
    std::fill(scratch.image.begin(), scratch.image.end(), 0.0f);
    std::fill_n(scratch.depth, PIXELS, 0.0f);
    std::fill_n(scratch.transmittance, PIXELS + LANES, 1.0f);

    int live = window.columns * window.rows;
    const int64_t end = view.tile_begin[tile + 1];
    for (int64_t e = view.tile_begin[tile]; e < end && live; e++) {
        prefetch(view, scene, e, end, channels);
        const Gaussian g = view.gaussians[view.entries[e]];
        const float *const features =
            load_features(scene, g, channels, padded, scratch.payload.data());
        Spans spans;
        row_spans(g, window, spans);
        for (int r = spans.first; r < spans.last; r++) {
            const float dy = float(window.top + r) + 0.5f - g.y;
            for (int x = spans.from[r]; x < spans.to[r]; x += LANES) {
                const int pixel = r * TILE_WIDTH + x, count = std::min(LANES, spans.to[r] - x);
                Lanes lanes;
                live -= advance(g, float(window.left + x) + 0.5f - g.x, dy, count,
                                scratch.transmittance + pixel, lanes);
#pragma omp simd
                for (int k = 0; k < LANES; k++)
                    scratch.depth[pixel + k] += lanes.weight[k] * g.depth;
                if constexpr (PLANES) {
                    for (int c = 0; c < channels; c++) {
#pragma omp simd
                        for (int k = 0; k < LANES; k++)
                            sums[c * (PIXELS + LANES) + pixel + k] += lanes.weight[k] * features[c];
                    }
                } else {
                    for (int k = 0; k < count; k++) {
                        const float weight = lanes.weight[k];
                        if (weight == 0.0f) continue;
                        float *const sum = sums + (pixel + k) * padded;
#pragma omp simd
                        for (int c = 0; c < padded; c++) sum[c] += weight * features[c];
                    }
                }
            }
        }
    }

    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const size_t to =
                (size_t(v) * bins.height + window.top + r) * bins.width + window.left + x;
            const int pixel = r * TILE_WIDTH + x;
            const float through = std::fabs(scratch.transmittance[pixel]);
            float *const out = image + to * channels;
            for (int c = 0; c < channels; c++)
                out[c] = sums[PLANES ? c * (PIXELS + LANES) + pixel : pixel * padded + c] +
                         through * background[c];
            alpha_image[to] = 1.0f - through;
            depth_image[to] = scratch.depth[pixel];
        }
}

struct Images {
    const float *image, *alpha, *depth;
};

// With s_j = gradient . features_j (and likewise depth and alpha), L's derivative by alpha_i is
//   T_i s_i - (sum over j behind i of w_j s_j + T_end gradient . background) / (1 - alpha_i),
// and the bracket is what remains of gradient . output after i, so one pass from near to far does.
template <int CHANNELS, int PADDED, bool PLANES>
GHA_INLINE void backward_tile(const Bins &bins, int v, int tile, const Scene &scene,
                              const Images &out, const Images &gradient, float *rows,
                              uint8_t *touched, Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : scene.channels;
    const int padded = PADDED ? PADDED : scene.padded;
    const View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    const int64_t end = view.tile_begin[tile + 1];
    if (view.tile_begin[tile] == end) return;

    float *const gradients = scratch.image.data();
    float *const feature_grad = scratch.grad.data();
    std::fill(scratch.image.begin(), scratch.image.end(), 0.0f);
    std::fill_n(scratch.transmittance, PIXELS + LANES, 1.0f);
    for (float *plane : {scratch.depth, scratch.alpha, scratch.behind})
        std::fill_n(plane, PIXELS + LANES, 0.0f);
    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const int pixel = r * TILE_WIDTH + x;
            const size_t at =
                (size_t(v) * bins.height + window.top + r) * bins.width + window.left + x;
            float sum = gradient.depth[at] * out.depth[at] + gradient.alpha[at] * out.alpha[at];
#pragma omp simd reduction(+ : sum)
            for (int c = 0; c < channels; c++) {
                const float grad = gradient.image[at * channels + c];
                gradients[PLANES ? c * (PIXELS + LANES) + pixel : pixel * padded + c] = grad;
                sum += grad * out.image[at * channels + c];
            }
            scratch.depth[pixel] = gradient.depth[at];
            scratch.alpha[pixel] = gradient.alpha[at];
            scratch.behind[pixel] = sum;
        }

    int live = window.columns * window.rows;
    const int size = padded + GEOMETRY;
    for (int64_t e = view.tile_begin[tile]; e < end && live; e++) {
        prefetch(view, scene, e, end, channels);
        const Gaussian g = view.gaussians[view.entries[e]];
        const float *const features =
            load_features(scene, g, channels, padded, scratch.payload.data());
        std::fill_n(feature_grad, PLANES ? channels * LANES : padded, 0.0f);
        float drawn = 0.0f;
        // Moments of dL/dpower over the offsets from the mean.
        float m0[LANES] = {}, mx[LANES] = {}, my[LANES] = {};
        float mxx[LANES] = {}, mxy[LANES] = {}, myy[LANES] = {};
        float depth_grad[LANES] = {};
        Spans spans;
        row_spans(g, window, spans);
        for (int r = spans.first; r < spans.last; r++) {
            const float dy = float(window.top + r) + 0.5f - g.y;
            for (int x = spans.from[r]; x < spans.to[r]; x += LANES) {
                const int pixel = r * TILE_WIDTH + x, count = std::min(LANES, spans.to[r] - x);
                const float dx = float(window.left + x) + 0.5f - g.x;
                Lanes lanes;
                live -= advance(g, dx, dy, count, scratch.transmittance + pixel, lanes);
                float along[LANES] = {};
                if constexpr (PLANES) {
                    for (int c = 0; c < channels; c++) {
#pragma omp simd
                        for (int k = 0; k < LANES; k++) {
                            const float grad = gradients[c * (PIXELS + LANES) + pixel + k];
                            along[k] += grad * features[c];
                            feature_grad[c * LANES + k] += lanes.weight[k] * grad;
                        }
                    }
                } else {
                    for (int k = 0; k < count; k++) {
                        const float weight = lanes.weight[k];
                        if (weight == 0.0f) continue;
                        const float *const grad = gradients + (pixel + k) * padded;
                        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
                        for (int c = 0; c < padded; c++) dot += grad[c] * features[c];
#pragma omp simd
                        for (int c = 0; c < padded; c++) feature_grad[c] += weight * grad[c];
                        along[k] = dot;
                    }
                }
#pragma omp simd reduction(+ : drawn)
                for (int k = 0; k < LANES; k++) {
                    const float weight = lanes.weight[k], alpha = lanes.alpha[k];
                    const float whole =
                        along[k] + scratch.alpha[pixel + k] + scratch.depth[pixel + k] * g.depth;
                    const float behind = scratch.behind[pixel + k] - weight * whole;
                    scratch.behind[pixel + k] = behind;
                    depth_grad[k] += weight * scratch.depth[pixel + k];
                    const float by_alpha = lanes.before[k] * whole - behind / (1.0f - alpha);
                    const int moves = (weight > 0.0f) & (lanes.raw[k] < MAX_ALPHA);
                    const float p = moves ? by_alpha * alpha : 0.0f;
                    const float ox = dx + float(k), px = p * ox, py = p * dy;
                    drawn += weight;
                    m0[k] += p;
                    mx[k] += px;
                    my[k] += py;
                    mxx[k] += px * ox;
                    mxy[k] += px * dy;
                    myy[k] += py * dy;
                }
            }
        }
        touched[e] = drawn > 0.0f;
        if (!touched[e]) continue;
        float *const row = rows + e * size;
        for (int c = 0; c < channels; c++)
            row[c] = PLANES ? sum_of(feature_grad + c * LANES) : feature_grad[c];
        float *const geometry = row + padded;
        // power = -(a dx² + c dy²) / 2 - b dx dy, and dx = pixel - mean.
        const float sx = sum_of(mx), sy = sum_of(my);
        geometry[0] = g.a * sx + g.b * sy;
        geometry[1] = g.b * sx + g.c * sy;
        geometry[2] = -0.5f * sum_of(mxx);
        geometry[3] = -sum_of(mxy);
        geometry[4] = -0.5f * sum_of(myy);
        geometry[5] = sum_of(m0) / g.opacity;
        geometry[6] = sum_of(depth_grad);
    }
}

#define GHA_SPECIALISE(NAME, CHANNELS, PADDED, PLANES)                                             \
    GHA_MULTIVERSION void forward_##NAME(const Bins &bins, int v, int tile, const Scene &scene,    \
                                         const float *background, float *image, float *alpha,      \
                                         float *depth, Scratch &scratch) {                         \
        forward_tile<CHANNELS, PADDED, PLANES>(bins, v, tile, scene, background, image, alpha,     \
                                               depth, scratch);                                    \
    }                                                                                              \
    GHA_MULTIVERSION void backward_##NAME(const Bins &bins, int v, int tile, const Scene &scene,   \
                                          const Images &out, const Images &gradient, float *rows,  \
                                          uint8_t *touched, Scratch &scratch) {                    \
        backward_tile<CHANNELS, PADDED, PLANES>(bins, v, tile, scene, out, gradient, rows,         \
                                                touched, scratch);                                 \
    }
} // namespace

// Not in the anonymous namespace: target_clones needs linkage.
GHA_SPECIALISE(splat_3, 3, 3, true)
GHA_SPECIALISE(splat_32, 32, 32, false)
GHA_SPECIALISE(splat_any, 0, 0, false)

namespace {

int padded_size(int channels) {
    return channels == 3 ? 3 : (channels + LANES - 1) / LANES * LANES;
}

using In1 = Array<const float, nb::ndim<1>>;
using In2 = Array<const float, nb::ndim<2>>;
using In3 = Array<const float, nb::ndim<3>>;
using In4 = Array<const float, nb::ndim<4>>;
using Out1 = Array<float, nb::ndim<1>>;
using Out2 = Array<float, nb::ndim<2>>;
using Out3 = Array<float, nb::ndim<3>>;
using Out4 = Array<float, nb::ndim<4>>;

// Call f(0) ... f(count - 1). An exception (there is no memory) must not leave an OpenMP region.
template <typename F> void in_parallel(int count, int threads, const F &f) {
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int i = 0; i < count; i++) {
        try {
            f(i);
        } catch (...) {
#pragma omp critical
            failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

Bins *splat_forward(In3 means2d, In3 conics, In2 depths, Array<const bool, nb::ndim<2>> visible,
                    In1 opacities, In2 features, In1 background, Out4 image, Out3 alpha,
                    Out3 depth, int threads) {
    auto bins = std::make_unique<Bins>();
    bins->views = int(depths.shape(0));
    bins->count = int(depths.shape(1));
    bins->height = int(image.shape(1));
    bins->width = int(image.shape(2));
    bins->across = (bins->width + TILE_WIDTH - 1) / TILE_WIDTH;
    bins->down = (bins->height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    bins->view.resize(bins->views);
    const int channels = int(features.shape(1));
    const Scene scene{features.data(), channels, padded_size(channels)};
    const auto run = channels == 3    ? forward_splat_3
                     : channels == 32 ? forward_splat_32
                                      : forward_splat_any;
    const int tiles = bins->across * bins->down, jobs = tiles * bins->views;
    const size_t count = size_t(bins->count);

    nb::gil_scoped_release release;
    std::vector<int64_t> entries(bins->views);
    in_parallel(bins->views, threads, [&](int v) {
        entries[v] = find_gaussians(bins->view[v], *bins, means2d.data() + v * count * 2,
                                    conics.data() + v * count * 3, depths.data() + v * count,
                                    visible.data() + v * count, opacities.data());
    });
    const int64_t total = std::accumulate(entries.begin(), entries.end(), int64_t(0));
    if (total > MOST_ENTRIES)
        throw std::length_error(std::to_string(total) + " intersections of Gaussians and tiles");
    in_parallel(bins->views, threads, [&](int v) { fill_tiles(bins->view[v], *bins); });
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(scene.padded);
#pragma omp for schedule(dynamic)
        for (int job = 0; job < jobs; job++)
            run(*bins, job / tiles, job % tiles, scene, background.data(), image.data(),
                alpha.data(), depth.data(), scratch);
    }
    return bins.release();
}

void splat_backward(const Bins &bins, In2 features, In4 image, In3 alpha, In3 depth,
                    In4 grad_image, In3 grad_alpha, In3 grad_depth, Out3 grad_means2d,
                    Out3 grad_conics, Out2 grad_depths, Out1 grad_opacities, Out2 grad_features,
                    int threads) {
    const int channels = int(features.shape(1));
    const Scene scene{features.data(), channels, padded_size(channels)};
    const Images out{image.data(), alpha.data(), depth.data()};
    const Images gradient{grad_image.data(), grad_alpha.data(), grad_depth.data()};
    const auto run = channels == 3    ? backward_splat_3
                     : channels == 32 ? backward_splat_32
                                      : backward_splat_any;
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
                grad_depths.data()[at] = geometry[6];
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
    // Tensors alive at the exit of Python keep their graph alive and with it the bins: no leak.
    nb::set_leak_warnings(false);
    nb::class_<Bins>(m, "SplatBins", "Per view: Gaussians by depth, and the tiles they touch.");
    m.def("splat_forward", &splat_forward, nb::rv_policy::take_ownership,
          "Composite V views into image, alpha, depth (written in place); returns the bins that "
          "the backward pass needs. Called by gha_core/splatting/native.py only.");
    m.def("splat_backward", &splat_backward,
          "Gradients of splat_forward, written in place into the last five arrays.");
}
