// Compositing of projected Gaussians and its gradient on CPU cores. The specification is twin.py.
//
// Per view the Gaussians are sorted by depth and listed per tile; tiles run in parallel.
// In a tile each Gaussian visits the blocks of pixels in which its alpha can reach MIN_ALPHA, and
// lists those that take it; features are added along that list, and the backward pass goes back
// along it. Gradients of a Gaussian in several tiles are written per tile and then summed in a fixed
// order, so the bits do not depend on the number of threads.
#include "lanes.h"

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
constexpr int ROWS = 2; // that are worked on at once, LANES columns of each
// Pixels of a tile in memory; those beyond the picture are finished from the start.
constexpr int STRIDE = TILE_WIDTH + LANES, PIXELS = STRIDE * (TILE_HEIGHT + ROWS - 1);
constexpr int GEOMETRY = LANES; // gradient entries beside the features: x y a b c opacity depth
constexpr int AHEAD = 6; // Gaussians whose data is asked for before they are needed
constexpr size_t CHUNK = 1024; // Gaussians of one job
constexpr int64_t MOST_ENTRIES = int64_t(1) << 31; // (tile, Gaussian) pairs of all views together

// Inclusive range of tiles, empty if first > last.
struct TileBox {
    int16_t left, right, top, bottom;

    int size() const { return std::max(right - left + 1, 0) * std::max(bottom - top + 1, 0); }
};

// A Gaussian as a view sees it; one cache line.
struct alignas(64) Gaussian {
    float x, y;           // mean, px
    float a, b, c;        // conic
    float determinant;    // of the conic
    float opacity;
    float limit;          // q at which alpha falls below MIN_ALPHA
    float half_x, half_y; // px, extent of the ellipse q = limit; alpha itself decides
    float depth;
};

// A Gaussian in a tile.
struct Entry {
    int id;
    uint32_t slot;  // where this tile's part of its gradient goes, or ALONE
    uint16_t taken; // how many of the tile's pixels take it
};
constexpr uint32_t ALONE = ~0u; // there is no other part: it goes to its place

// Which pixels of a tile take the Gaussians of its entries, one entry after the other; for the
// backward pass.
struct Taken {
    std::unique_ptr<uint16_t[]> pixel; // with a register's room beyond the last
    std::unique_ptr<float[]> alpha, before;
    size_t count = 0;

    void copy(const std::vector<uint16_t> &pixels, const std::vector<float> &alphas,
              const std::vector<float> &befores, size_t length) {
        count = length;
        pixel.reset(new uint16_t[count + LANES]);
        alpha.reset(new float[count + LANES]);
        before.reset(new float[count + LANES]);
        std::copy_n(pixels.begin(), count + LANES, pixel.get());
        std::copy_n(alphas.begin(), count + LANES, alpha.get());
        std::copy_n(befores.begin(), count + LANES, before.get());
    }
};

struct View {
    std::unique_ptr<Gaussian[]> gaussians; // nothing is written where they are not drawn
    std::vector<TileBox> tiles;            // per Gaussian; none where it is not drawn
    std::vector<int64_t> tile_begin;  // tile -> first entry; one more at the end
    std::vector<Entry> entries;       // per tile, near to far
    std::vector<uint32_t> slot_begin; // Gaussian -> first of its slots; one more at the end
    std::vector<Taken> taken;         // per tile
};

struct Bins {
    int views = 0, count = 0, width = 0, height = 0, across = 0, down = 0;
    std::vector<View> view;

    Bins() = default;
    Bins(const Bins &) = delete;
};

TileBox tiles_of(const Gaussian &g, const Bins &bins) {
    // Truncation is floor here: the numbers are not negative.
    auto first = [](float edge) { return int(std::max(edge - 0.5f, 0.0f) + 0.999f); };
    auto last = [](float edge, int size) {
        return edge < 0.5f ? -1 : int(std::min(edge - 0.5f, float(size - 1)));
    };
    const float far = float(std::max(bins.width, bins.height)) + 1.0f;
    const int x0 = first(std::min(g.x - g.half_x, far)), x1 = last(g.x + g.half_x, bins.width);
    const int y0 = first(std::min(g.y - g.half_y, far)), y1 = last(g.y + g.half_y, bins.height);
    if (!(x0 <= x1 && y0 <= y1)) return {0, -1, 0, -1};
    return {int16_t(x0 / TILE_WIDTH), int16_t(x1 / TILE_WIDTH), int16_t(y0 / TILE_HEIGHT),
            int16_t(y1 / TILE_HEIGHT)};
}

// Sort `ids` by keys (non-negative floats), ascending; equal keys keep their order.
void sort_by(std::vector<uint32_t> &key, std::vector<int> &ids) {
    const size_t count = ids.size();
    std::vector<uint32_t> key_next(count);
    std::vector<int> ids_next(count);
    constexpr int BITS = 11;
    for (int shift = 0; shift < 32; shift += BITS) {
        size_t begin[1 << BITS] = {};
        auto digit = [shift](uint32_t k) { return (k >> shift) & ((1u << BITS) - 1); };
        for (uint32_t k : key) begin[digit(k)]++;
        size_t sum = 0;
        for (size_t &b : begin) sum += std::exchange(b, sum);
        for (size_t i = 0; i < count; i++) {
            const size_t to = begin[digit(key[i])]++;
            key_next[to] = key[i];
            ids_next[to] = ids[i];
        }
        key.swap(key_next);
        ids.swap(ids_next);
    }
}

// What a view sees of some Gaussians.
struct Projected {
    const float *means2d, *conics, *depths;
    const bool *visible;
    const float *opacities;
};

// Gaussians [from, to) of a view and the tiles that they touch; how many those are.
int64_t find_gaussians(View &view, const Bins &bins, const Projected &in, int from, int to) {
    int64_t entries = 0;
    for (int i = from; i < to; i++) {
        Gaussian &g = view.gaussians[i];
        view.tiles[i] = {0, -1, 0, -1};
        if (!in.visible[i]) continue;
        g.x = in.means2d[2 * i], g.y = in.means2d[2 * i + 1];
        g.a = in.conics[3 * i], g.b = in.conics[3 * i + 1], g.c = in.conics[3 * i + 2];
        // In double: for a long needle the products cancel.
        g.determinant = float(double(g.a) * g.c - double(g.b) * g.b);
        g.opacity = in.opacities[i];
        g.limit = 2.0f * std::log(g.opacity / MIN_ALPHA);
        g.depth = in.depths[i];
        if (!(g.determinant > 0.0f) || !(g.limit >= 0.0f)) continue;
        g.half_x = std::sqrt(g.limit * g.c / g.determinant) * 1.001f + 0.01f;
        g.half_y = std::sqrt(g.limit * g.a / g.determinant) * 1.001f + 0.01f;
        view.tiles[i] = tiles_of(g, bins);
        entries += view.tiles[i].size();
    }
    return entries;
}

// List the Gaussians per tile, near to far.
void fill_tiles(View &view, const Bins &bins, const float *depths) {
    const size_t tiles = size_t(bins.across) * bins.down;
    std::vector<uint32_t> key;
    std::vector<int> ids;
    key.reserve(bins.count);
    ids.reserve(bins.count);
    view.slot_begin.resize(size_t(bins.count) + 1);
    view.tile_begin.assign(tiles + 1, 0);
    uint32_t slots = 0;
    for (int i = 0; i < bins.count; i++) {
        const TileBox box = view.tiles[i];
        view.slot_begin[i] = slots;
        const int touched = box.size();
        if (!touched) continue;
        if (touched > 1 || bins.views > 1) slots += uint32_t(touched);
        uint32_t bits;
        std::memcpy(&bits, depths + i, sizeof bits);
        key.push_back(bits);
        ids.push_back(i);
        for (int y = box.top; y <= box.bottom; y++)
            for (int x = box.left; x <= box.right; x++)
                view.tile_begin[y * bins.across + x + 1]++;
    }
    view.slot_begin[bins.count] = slots;
    std::partial_sum(view.tile_begin.begin(), view.tile_begin.end(), view.tile_begin.begin());
    std::vector<int64_t> next(view.tile_begin.begin(), view.tile_begin.end() - 1);
    view.entries.resize(view.tile_begin[tiles]);
    sort_by(key, ids);
    for (int id : ids) {
        const TileBox box = view.tiles[id];
        uint32_t slot = view.slot_begin[id];
        const bool alone = slot == view.slot_begin[id + 1];
        for (int y = box.top; y <= box.bottom; y++)
            for (int x = box.left; x <= box.right; x++)
                view.entries[next[y * bins.across + x]++] = {id, alone ? ALONE : slot++, 0};
    }
}

// exp(x) for -87 <= x <= 0, relative error below 1e-6.
GHA_INLINE F8 fast_exp(F8 x) {
    const F8 t = x * 1.44269504f;
    const F8 whole = (t + 12582912.0f) - 12582912.0f; // round to nearest
    const F8 f = t - whole, ff = f * f;
    // Taylor's series of 2^f, pairs of terms at a time.
    const F8 low = (6.9314718e-1f * f + 1.0f) + ff * (5.5504109e-2f * f + 2.4022651e-1f);
    const F8 high = (1.3333558e-3f * f + 9.6181291e-3f) + ff * 1.5403530e-4f;
    const F8 p = low + ff * ff * high;
    return p * F8((__builtin_convertvector(whole, I8) + 127) << 23);
}

// How to bring some of eight lanes to the front, for every choice of them.
struct Packing {
    alignas(16) uint16_t lanes[LANES];

    GHA_INLINE F8 pack(F8 a) const { return pick(a, load_indices(lanes)); }
    GHA_INLINE void store_indices(uint16_t *to, int first) const {
        uint16_t indices[LANES];
        for (int k = 0; k < LANES; k++) indices[k] = uint16_t(lanes[k] + first);
        std::memcpy(to, indices, sizeof indices);
    }
};

struct Packings {
    Packing of[1 << LANES];

    Packings() : of() {
        for (int bits = 0; bits < 1 << LANES; bits++)
            for (int k = 0, n = 0; k < LANES; k++)
                if (bits >> k & 1) of[bits].lanes[n++] = uint16_t(k);
    }
};
const Packings PACKINGS;

// The pixels of a tile.
struct Window {
    int left, top, columns, rows;
};

Window window_of(const Bins &bins, int tile) {
    const int left = tile % bins.across * TILE_WIDTH, top = tile / bins.across * TILE_HEIGHT;
    return {left, top, std::min(TILE_WIDTH, bins.width - left),
            std::min(TILE_HEIGHT, bins.height - top)};
}

// LANES columns of a window, and the rows in which the ellipse q = limit may reach them.
struct Block {
    int column, first, last; // rows [first, last)
};

// Rows of the ellipse in columns `low` to `high`, which are offsets from the mean: its highest
// point if it lies between them, else that of the nearer column.
GHA_INLINE float edge_between(const Gaussian &g, float low, float high, float sign) {
    const float top = -sign * g.b / g.a * g.half_y;
    const float dx = std::min(std::max(top, low), high);
    const float square = std::max(g.limit * g.c - g.determinant * dx * dx, 0.0f);
    return (-g.b * dx + sign * std::sqrt(square)) / g.c;
}

// The blocks of a Gaussian in a window; their number.
GHA_INLINE int blocks_of(const Gaussian &g, const Window &window, Block *blocks) {
    // Truncation is floor here: the numbers are not negative.
    const float x = g.x - float(window.left) - 0.5f, y = g.y - float(window.top) - 0.5f;
    const float right = float(window.columns - 1), bottom = float(window.rows - 1);
    const int from = int(std::max(x - g.half_x + 0.999f, 0.0f));
    const int to = int(std::min(x + g.half_x, right)) + 1;
    const bool one = to - from <= LANES;
    int count = 0;
    for (int column = from; column < to; column += LANES) {
        float low = y - g.half_y, high = y + g.half_y;
        if (!one) {
            const float left = float(column) - x;
            low = y + edge_between(g, left, left + float(LANES - 1), -1.0f) * 1.001f - 0.01f;
            high = y + edge_between(g, left, left + float(LANES - 1), 1.0f) * 1.001f + 0.01f;
        }
        const Block block{column, int(std::max(low + 0.999f, 0.0f)),
                          int(std::min(high, bottom) + 1.0f)};
        blocks[count] = block;
        count += block.first < block.last;
    }
    return count;
}

// What is composited of a Gaussian: its features, depth and 1, padded to full registers.
struct Features {
    const float *values; // [N, channels]
    int channels, padded;

};

constexpr int padded_size(int channels) { return (channels + 2 + LANES - 1) / LANES * LANES; }

GHA_INLINE void load_payload(const Features &features, int channels, int id, float depth,
                             float *payload) {
    const float *const row = features.values + size_t(id) * channels;
    for (int c = 0; c < channels; c++) payload[c] = row[c];
    payload[channels] = depth;
    payload[channels + 1] = 1.0f;
}

struct Scratch {
    std::vector<float> image;    // [PIXELS, padded] sums, or gradients
    std::vector<float> payload;  // of one Gaussian, or the gradient with respect to all of it
    std::vector<Register> grad;  // of its payload
    float transmittance[PIXELS]; // negative when the pixel is finished
    float behind[PIXELS];        // gradient . what is still to come
    // Pixels that take a Gaussian; with room for a tile and a register beyond the last.
    std::vector<uint16_t> pixel;
    std::vector<float> alpha, before;

    explicit Scratch(int padded) : image(size_t(PIXELS) * padded), payload(padded + GEOMETRY), grad(padded) {
        make_room(0);
    }

    void make_room(size_t taken) {
        if (taken + PIXELS + LANES <= pixel.size()) return;
        const size_t room = 2 * (taken + PIXELS + LANES);
        pixel.resize(room);
        alpha.resize(room);
        before.resize(room);
    }

    void open(const Window &window) {
        std::fill_n(transmittance, PIXELS, -1.0f);
        for (int r = 0; r < window.rows; r++)
            std::fill_n(transmittance + r * STRIDE, window.columns, 1.0f);
    }
};

// The columns of a block, and what is the same in all of its rows.
struct Columns {
    F8 square, product; // power = square + dy (product - c dy / 2)

    GHA_INLINE Columns(const Gaussian &g, float dx) {
        const F8 x = IOTA + dx;
        square = x * x * (-0.5f * g.a);
        product = x * -g.b;
    }
};

// LANES pixels of ROWS rows.
struct Lanes {
    F8 alpha[ROWS];  // limited opacity exp(-q / 2)
    F8 before[ROWS]; // transmittance in front of this Gaussian
    I8 finished;     // how many of each column this Gaussian finishes, negative
    unsigned takers; // bits of the pixels that take it, row by row
};

// Let one Gaussian into pixels whose transmittance is given, the first row dy off its mean.
GHA_INLINE void advance(const Gaussian &g, const Columns &columns, float dy, float *transmittance,
                        Lanes &lanes) {
    lanes.finished = I8{};
    I8 takers = {};
    for (int h = 0; h < ROWS; h++) {
        const float y = dy + float(h);
        const F8 power = columns.square + y * (columns.product - 0.5f * g.c * y);
        const F8 raw = g.opacity * fast_exp(maximum(minimum(power, splat(0.0f)), splat(-80.0f)));
        const F8 alpha = minimum(raw, splat(MAX_ALPHA));
        const F8 before = load(transmittance + h * STRIDE);
        const F8 after = before * (1.0f - alpha); // negative where the pixel is finished
        const I8 touches = (raw >= MIN_ALPHA) & (before > 0.0f);
        const I8 takes = touches & (after >= MIN_TRANSMITTANCE);
        store(transmittance + h * STRIDE, takes ? after : (touches ? -before : before));
        lanes.alpha[h] = alpha;
        lanes.before[h] = before;
        lanes.finished += touches & ~takes;
        takers |= takes & (I8{1, 2, 4, 8, 16, 32, 64, 128} << (LANES * h));
    }
    lanes.takers = unsigned(total(takers));
}

// The Gaussians come from all over memory: ask for those that are needed soon.
GHA_INLINE void prefetch(const View &view, const Features &features, int id) {
    __builtin_prefetch(&view.gaussians[id]);
    const float *const row = features.values + size_t(id) * features.channels;
    for (int c = 0; c < features.channels; c += 16) __builtin_prefetch(row + c);
}

// List the pixels of a tile that take a Gaussian, from `taken` on; returns where the list ends.
GHA_INLINE size_t find_takers(const Gaussian &g, const Window &window, Scratch &scratch,
                              size_t taken, int &live) {
    I8 finished = {};
    Block blocks[TILE_WIDTH / LANES + 1];
    const int count = blocks_of(g, window, blocks);
    for (int n = 0; n < count; n++) {
        const int column = blocks[n].column;
        const Columns columns(g, float(window.left + column) + 0.5f - g.x);
        for (int r = blocks[n].first; r < blocks[n].last; r += ROWS) {
            const int pixel = r * STRIDE + column;
            Lanes lanes;
            advance(g, columns, float(window.top + r) + 0.5f - g.y, scratch.transmittance + pixel,
                    lanes);
            finished += lanes.finished;
            if (!lanes.takers) continue;
            for (int h = 0; h < ROWS; h++) {
                const unsigned bits = lanes.takers >> (LANES * h) & 255u;
                const Packing &packing = PACKINGS.of[bits];
                packing.store_indices(scratch.pixel.data() + taken, pixel + h * STRIDE);
                store(scratch.alpha.data() + taken, packing.pack(lanes.alpha[h]));
                store(scratch.before.data() + taken, packing.pack(lanes.before[h]));
                taken += size_t(__builtin_popcount(bits));
            }
        }
    }
    live += total(finished);
    return taken;
}

// CHANNELS of features; a compile-time constant, or 0: then as many as there are.
template <int CHANNELS>
GHA_INLINE void forward_tile(Bins &bins, int v, int tile, const Features &features,
                             const float *background, float *image, float *alpha_image,
                             float *depth_image, bool keep, Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : features.channels;
    const int padded = padded_size(channels), blocks = padded / LANES;
    View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    float *const sums = scratch.image.data();
    std::fill(scratch.image.begin(), scratch.image.end(), 0.0f);
    scratch.open(window);

    int live = window.columns * window.rows;
    size_t taken = 0;
    const int64_t end = view.tile_begin[tile + 1];
    for (int64_t e = view.tile_begin[tile]; e < end && live; e++) {
        if (e + AHEAD < end) prefetch(view, features, view.entries[e + AHEAD].id);
        Entry &entry = view.entries[e];
        const Gaussian g = view.gaussians[entry.id];
        float *const payload = scratch.payload.data();
        load_payload(features, channels, entry.id, g.depth, payload);
        const size_t first = keep ? taken : 0;
        scratch.make_room(first);
        taken = find_takers(g, window, scratch, first, live);
        entry.taken = uint16_t(taken - first);
        const uint16_t *const pixel = scratch.pixel.data();
        const float *const alpha = scratch.alpha.data(), *const before = scratch.before.data();
        for (size_t t = first; t < taken; t++) {
            float *const sum = sums + size_t(pixel[t]) * padded;
            const float weight = alpha[t] * before[t];
            for (int b = 0; b < blocks; b++)
                store(sum + b * LANES, load(sum + b * LANES) + weight * load(payload + b * LANES));
        }
    }
    if (keep) view.taken[tile].copy(scratch.pixel, scratch.alpha, scratch.before, taken);

    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const size_t to =
                (size_t(v) * bins.height + window.top + r) * bins.width + window.left + x;
            const int pixel = r * STRIDE + x;
            const float through = std::fabs(scratch.transmittance[pixel]);
            const float *const sum = sums + size_t(pixel) * padded;
            float *const out = image + to * channels;
            for (int c = 0; c < channels; c++) out[c] = sum[c] + through * background[c];
            alpha_image[to] = 1.0f - through;
            depth_image[to] = sum[channels];
        }
}

// What the backward pass is given: the alpha image, and the gradients of all images.
struct Backward {
    const float *background, *alpha;
    const float *grad_image, *grad_alpha, *grad_depth;
};

// Where the gradients of a view's Gaussians go.
struct Gradients {
    float *means2d, *conics, *depths, *opacities, *features;

    // A row: payload, then x y a b c opacity.
    GHA_INLINE void put(size_t id, const float *row, const Features &like) const {
        std::memcpy(features + id * like.channels, row, size_t(like.channels) * sizeof(float));
        depths[id] = row[like.channels];
        const float *const geometry = row + like.padded;
        for (int k = 0; k < 2; k++) means2d[id * 2 + k] = geometry[k];
        for (int k = 0; k < 3; k++) conics[id * 3 + k] = geometry[2 + k];
        opacities[id] = geometry[5];
    }
};

struct Sink {
    Gradients gradients; // of what is ALONE
    float *rows;         // [slots, padded + GEOMETRY]
    uint8_t *touched;    // [slots]; where not, there is no row
};

// With s_j = gradient . payload_j, L's derivative by alpha_i is
//   T_i s_i - (sum over j behind i of w_j s_j + T_end gradient . background) / (1 - alpha_i);
// from far to near the bracket is a running sum.
template <int CHANNELS>
GHA_INLINE void backward_tile(const Bins &bins, int v, int tile, const Features &features,
                              const Backward &in, const Sink &sink, Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : features.channels;
    const int padded = padded_size(channels), blocks = padded / LANES;
    const View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    const int64_t begin = view.tile_begin[tile], end = view.tile_begin[tile + 1];
    if (begin == end) return;

    float *const gradients = scratch.image.data();
    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const int pixel = r * STRIDE + x;
            const size_t at =
                (size_t(v) * bins.height + window.top + r) * bins.width + window.left + x;
            float *const row = gradients + size_t(pixel) * padded;
            float shining = 0.0f;
#pragma omp simd reduction(+ : shining)
            for (int c = 0; c < channels; c++) {
                row[c] = in.grad_image[at * channels + c];
                shining += row[c] * in.background[c];
            }
            row[channels] = in.grad_depth[at];
            row[channels + 1] = in.grad_alpha[at];
            for (int c = channels + 2; c < padded; c++) row[c] = 0.0f;
            scratch.behind[pixel] = (1.0f - in.alpha[at]) * shining;
        }

    const Taken &taken = view.taken[tile];
    const uint16_t *pixel = taken.pixel.get() + taken.count;
    const float *alpha = taken.alpha.get() + taken.count;
    const float *before = taken.before.get() + taken.count;
    Register dots[LANES] = {}; // of each pixel, by channel modulo LANES
    for (int64_t e = end - 1; e >= begin; e--) {
        if (e - AHEAD >= begin) prefetch(view, features, view.entries[e - AHEAD].id);
        const Entry entry = view.entries[e];
        pixel -= entry.taken;
        alpha -= entry.taken;
        before -= entry.taken;
        if (entry.slot != ALONE && !(sink.touched[entry.slot] = entry.taken > 0)) continue;
        const Gaussian g = view.gaussians[entry.id];
        float *const payload = scratch.payload.data();
        load_payload(features, channels, entry.id, g.depth, payload);
        float *row = payload;
        if (entry.slot != ALONE) {
            row = sink.rows + size_t(entry.slot) * (padded + GEOMETRY);
            for (int c = 0; c < padded + GEOMETRY; c += 16) __builtin_prefetch(row + c, 1);
        }
        Register fixed[CHANNELS ? padded_size(CHANNELS) / LANES : 1] = {};
        Register *const payload_grad = CHANNELS ? fixed : scratch.grad.data();
        if (!CHANNELS) std::fill_n(payload_grad, blocks, Register{});
        // Moments of dL/dpower over the offsets from the mean.
        F8 m0 = {}, mx = {}, my = {}, mxx = {}, mxy = {}, myy = {};
        const float left = float(window.left) + 0.5f - g.x, top = float(window.top) + 0.5f - g.y;
        for (int t = 0; t < entry.taken; t += LANES) {
            const int count = std::min(LANES, entry.taken - t);
            for (int k = 0; k < count; k++) {
                const float *const grad = gradients + size_t(pixel[t + k]) * padded;
                const float weight = alpha[t + k] * before[t + k];
                F8 dot = {};
                for (int b = 0; b < blocks; b++) {
                    const F8 part = load(grad + b * LANES);
                    dot += part * load(payload + b * LANES);
                    payload_grad[b].lanes += weight * part;
                }
                dots[k].lanes = dot;
            }
            const F8 along = sums(dots);
            const I8 index = load_indices(pixel + t);
            F8 rest = {};
            for (int k = 0; k < count; k++) {
                float &behind = scratch.behind[pixel[t + k]];
                rest[k] = behind;
                behind += alpha[t + k] * before[t + k] * along[k];
            }
            const F8 a = load(alpha + t);
            const F8 by_alpha = load(before + t) * along - rest / (1.0f - a);
            const I8 moves = (a < MAX_ALPHA) & (IOTA < float(count));
            const F8 p = moves ? by_alpha * a : splat(0.0f);
            const F8 at = __builtin_convertvector(index, F8);
            const F8 r = __builtin_convertvector(
                __builtin_convertvector((at + 0.5f) * (1.0f / STRIDE), I8), F8);
            const F8 dx = at - r * float(STRIDE) + left, dy = r + top;
            const F8 px = p * dx, py = p * dy;
            m0 += p;
            mx += px;
            my += py;
            mxx += px * dx;
            mxy += px * dy;
            myy += py * dy;
        }
        // power = -(a dx² + c dy²) / 2 - b dx dy, and dx = pixel - mean.
        const Register moments[LANES] = {{mx}, {my}, {mxx}, {mxy}, {myy}, {m0}};
        const F8 sum = sums(moments);
        const F8 geometry = {g.a * sum[0] + g.b * sum[1],
                             g.b * sum[0] + g.c * sum[1],
                             -0.5f * sum[2],
                             -sum[3],
                             -0.5f * sum[4],
                             sum[5] / g.opacity};
        for (int b = 0; b < blocks; b++) store(row + b * LANES, payload_grad[b].lanes);
        store(row + padded, geometry);
        if (entry.slot == ALONE) sink.gradients.put(size_t(entry.id), row, features);
    }
}

#define GHA_SPECIALISE(NAME, CHANNELS)                                                             \
    GHA_MULTIVERSION void forward_##NAME(                                                          \
        Bins &bins, int v, int tile, const Features &features, const float *background,            \
        float *image, float *alpha, float *depth, bool keep, Scratch &scratch) {                   \
        forward_tile<CHANNELS>(bins, v, tile, features, background, image, alpha, depth, keep,     \
                               scratch);                                                           \
    }                                                                                              \
    GHA_MULTIVERSION void backward_##NAME(const Bins &bins, int v, int tile,                       \
                                          const Features &features, const Backward &in,            \
                                          const Sink &sink, Scratch &scratch) {                    \
        backward_tile<CHANNELS>(bins, v, tile, features, in, sink, scratch);                       \
    }
} // namespace

// Not in the anonymous namespace: target_clones needs linkage.
GHA_SPECIALISE(splat_3, 3)
GHA_SPECIALISE(splat_32, 32)
GHA_SPECIALISE(splat_any, 0)

namespace {

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
                    Out3 depth, bool keep, int threads) {
    auto bins = std::make_unique<Bins>();
    bins->views = int(depths.shape(0));
    bins->count = int(depths.shape(1));
    bins->height = int(image.shape(1));
    bins->width = int(image.shape(2));
    bins->across = (bins->width + TILE_WIDTH - 1) / TILE_WIDTH;
    bins->down = (bins->height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    bins->view.resize(bins->views);
    const int channels = int(features.shape(1));
    const Features values{features.data(), channels, padded_size(channels)};
    const auto run = channels == 3    ? forward_splat_3
                     : channels == 32 ? forward_splat_32
                                      : forward_splat_any;
    const int tiles = bins->across * bins->down, jobs = tiles * bins->views;
    const size_t count = size_t(bins->count);

    nb::gil_scoped_release release;
    for (View &view : bins->view) {
        view.gaussians.reset(new Gaussian[count]);
        view.tiles.resize(count);
    }
    const int chunks = int((count + CHUNK - 1) / CHUNK);
    std::vector<int64_t> entries(size_t(bins->views) * chunks);
    in_parallel(bins->views * chunks, threads, [&](int job) {
        const size_t v = job / chunks, from = size_t(job % chunks) * CHUNK;
        const Projected in{means2d.data() + v * count * 2, conics.data() + v * count * 3,
                           depths.data() + v * count, visible.data() + v * count,
                           opacities.data()};
        const size_t to = std::min(from + CHUNK, count);
        entries[job] = find_gaussians(bins->view[v], *bins, in, int(from), int(to));
    });
    const int64_t total = std::accumulate(entries.begin(), entries.end(), int64_t(0));
    if (total >= MOST_ENTRIES)
        throw std::length_error(std::to_string(total) + " intersections of Gaussians and tiles");
    in_parallel(bins->views, threads, [&](int v) {
        fill_tiles(bins->view[v], *bins, depths.data() + v * count);
    });
    for (View &view : bins->view) view.taken.resize(keep ? tiles : 0);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(values.padded);
#pragma omp for schedule(dynamic)
        for (int job = 0; job < jobs; job++)
            run(*bins, job / tiles, job % tiles, values, background.data(), image.data(),
                alpha.data(), depth.data(), keep, scratch);
    }
    return bins.release();
}

void splat_backward(const Bins &bins, In2 features, In1 background, In3 alpha, In4 grad_image, In3 grad_alpha, In3 grad_depth, Out3 grad_means2d,
                    Out3 grad_conics, Out2 grad_depths, Out1 grad_opacities, Out2 grad_features,
                    int threads) {
    const int channels = int(features.shape(1));
    const Features values{features.data(), channels, padded_size(channels)};
    const Backward in{background.data(), alpha.data(), grad_image.data(), grad_alpha.data(),
                      grad_depth.data()};
    const auto run = channels == 3    ? backward_splat_3
                     : channels == 32 ? backward_splat_32
                                      : backward_splat_any;
    const int tiles = bins.across * bins.down, jobs = tiles * bins.views;
    const size_t size = values.padded + GEOMETRY, count = size_t(bins.count);
    const auto gradients_of = [&](size_t v) {
        return Gradients{grad_means2d.data() + v * count * 2, grad_conics.data() + v * count * 3,
                         grad_depths.data() + v * count, grad_opacities.data(),
                         grad_features.data()};
    };

    nb::gil_scoped_release release;
    std::vector<std::unique_ptr<float[]>> rows(bins.views); // not initialised
    std::vector<std::unique_ptr<uint8_t[]>> touched(bins.views);
    std::vector<Sink> sinks;
    for (int v = 0; v < bins.views; v++) {
        const size_t slots = bins.view[v].slot_begin.back();
        rows[v].reset(new float[slots * size]);
        touched[v].reset(new uint8_t[slots]());
        sinks.push_back({gradients_of(v), rows[v].get(), touched[v].get()});
    }
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(values.padded);
#pragma omp for schedule(dynamic)
        for (int job = 0; job < jobs; job++) {
            const int v = job / tiles;
            run(bins, v, job % tiles, values, in, sinks[v], scratch);
        }
    }
    // Each Gaussian sums its rows in the order of views and tiles.
    in_parallel(int((count + CHUNK - 1) / CHUNK), threads, [&](int chunk) {
        std::vector<float> sum(size), shared(size);
        for (size_t i = chunk * CHUNK; i < std::min((chunk + 1) * CHUNK, count); i++) {
            std::fill(shared.begin(), shared.end(), 0.0f);
            for (int v = 0; v < bins.views; v++) {
                const View &view = bins.view[v];
                const uint32_t first = view.slot_begin[i], end = view.slot_begin[i + 1];
                if (first == end && view.tiles[i].size()) continue; // was ALONE
                std::fill(sum.begin(), sum.end(), 0.0f);
                for (uint32_t slot = first; slot < end; slot++) {
                    if (!touched[v][slot]) continue;
                    const float *const row = rows[v].get() + slot * size;
                    for (size_t c = 0; c < size; c++) sum[c] += row[c];
                }
                // Features and opacity are those of all views.
                for (int c = 0; c < channels; c++) shared[c] = sum[c] += shared[c];
                float &opacity = sum[values.padded + 5];
                shared[values.padded + 5] = opacity += shared[values.padded + 5];
                sinks[v].gradients.put(i, sum.data(), values);
            }
        }
    });
}

} // namespace

void bind_splatting(nb::module_ &m) {
    // Tensors alive at the exit of Python keep their graph alive and with it the bins: no leak.
    nb::set_leak_warnings(false);
    nb::class_<Bins>(m, "SplatBins", "Per view: Gaussians by depth, and the tiles they touch.");
    m.def("splat_forward", &splat_forward, nb::rv_policy::take_ownership,
          "Composite V views into image, alpha, depth (written in place); returns what the backward "
          "pass needs, if it is to be kept. Called by gha_core/splatting/native.py only.");
    m.def("splat_backward", &splat_backward,
          "Gradients of splat_forward, written in place into the last five arrays.");
}
