// Compositing of projected Gaussians and its gradient on CPU cores. The specification is twin.py.
//
// Per view the Gaussians are listed per tile, and there sorted by depth; tiles run in parallel. What
// depends on pixels alone has pixels in its lanes: in a tile a Gaussian's rows are cut into runs of
// LANES pixels, whose alphas and weights are computed at once. What has channels has these in its
// lanes, and is done for those pixels alone that take the Gaussian, one after the other. Each of
// these steps is a loop of its own over all runs, or all pixels, of a Gaussian: short loops without
// branches, many turns of which are under way at the same time.
// The backward pass goes from far to near. It is told which pixels took a Gaussian, and computes
// their alphas again: that takes less time than to fetch them from memory.
// A Gaussian's gradients are written per tile and then summed in a fixed order, so the bits do not
// depend on the number of threads.
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

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// As in projection.py.
constexpr float MIN_ALPHA = 1.0f / 255.0f;
constexpr float MAX_ALPHA = 0.999f;
constexpr float MIN_TRANSMITTANCE = 1e-4f;

// A tile is 8 x 8 blocks of LANES pixels. In memory a block's pixels lie together: what is read
// just after it was written is then read as it was written, which is fast.
constexpr int BLOCK_WIDTH = 4, BLOCK_HEIGHT = LANES / BLOCK_WIDTH;
constexpr int ACROSS = 8, BLOCKS = ACROSS * 8;
constexpr int TILE_WIDTH = ACROSS * BLOCK_WIDTH, TILE_HEIGHT = BLOCKS / ACROSS * BLOCK_HEIGHT; // px
constexpr int PIXELS = TILE_WIDTH * TILE_HEIGHT;
constexpr int AHEAD = 6; // Gaussians whose data is asked for before they are needed
constexpr int CHUNKS = 32; // jobs that Gaussians are divided into
constexpr int64_t MOST_ENTRIES = int64_t(1) << 31; // (tile, Gaussian) pairs of all views together

// Inclusive range of tiles, empty if first > last.
struct TileBox {
    int16_t left, right, top, bottom;
};

// A Gaussian as a view sees it; one cache line.
struct alignas(64) Gaussian {
    float x, y;    // mean, px
    float a, b, c; // conic
    float opacity, depth;
    // The ellipse outside of which alpha is below MIN_ALPHA: extents in px; dy below the mean it
    // spans the columns  slope dy +- sqrt(reach - narrowing dy²)  beside the mean.
    float half_x, half_y;
    float slope, reach, narrowing;
};

// A Gaussian in a tile.
struct Entry {
    uint32_t key; // orders as the depth
    int id;
    uint32_t slot; // of this tile's part of its gradient
    uint32_t runs; // how many take it
};

// A block of a tile, some pixels of which take a Gaussian.
struct Run {
    uint8_t block;
    uint8_t takes; // bit k: pixel k does
};

struct View {
    std::unique_ptr<Gaussian[]> gaussians; // nothing is written where they are not drawn
    std::vector<TileBox> boxes;            // per Gaussian; none where it is not drawn
    std::vector<int64_t> tile_begin;       // tile -> first entry; one more at the end
    std::vector<uint32_t> chunk_begin;     // [CHUNKS, tiles] first slot of a chunk's Gaussians
    std::vector<Entry> entries;            // per tile, near to far once it is composited
    std::vector<std::vector<Run>> runs;    // per tile, entry by entry
    std::vector<float> through;            // [height, width] of the background
};

struct Bins {
    int views = 0, count = 0, width = 0, height = 0, across = 0, down = 0;
    std::vector<View> view;

    Bins() = default;
    Bins(const Bins &) = delete;

    int tiles() const { return across * down; }
    // First Gaussian of a chunk.
    int chunk(int index) const { return int(int64_t(count) * index / CHUNKS); }
    template <typename F> void for_tiles(const TileBox &box, const F &f) const {
        for (int y = box.top; y <= box.bottom; y++)
            for (int x = box.left; x <= box.right; x++) f(y * across + x);
    }
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

// What a view sees of all Gaussians.
struct Projected {
    const float *means2d, *conics, *depths;
    const bool *visible;
    const float *opacities;
};

// The Gaussians of a chunk, and how many of them each tile has.
void find_gaussians(View &view, const Bins &bins, const Projected &in, int chunk) {
    uint32_t *const counts = view.chunk_begin.data() + size_t(chunk) * bins.tiles();
    for (int i = bins.chunk(chunk); i < bins.chunk(chunk + 1); i++) {
        Gaussian &g = view.gaussians[i];
        view.boxes[i] = {0, -1, 0, -1};
        if (!in.visible[i]) continue;
        g.x = in.means2d[2 * i], g.y = in.means2d[2 * i + 1];
        g.a = in.conics[3 * i], g.b = in.conics[3 * i + 1], g.c = in.conics[3 * i + 2];
        g.opacity = in.opacities[i];
        g.depth = in.depths[i];
        // In double: for a long needle the products cancel.
        const float determinant = float(double(g.a) * g.c - double(g.b) * g.b);
        const float limit = 2.0f * std::log(g.opacity / MIN_ALPHA);
        if (!(determinant > 0.0f) || !(limit >= 0.0f)) continue;
        g.half_x = std::sqrt(limit * g.c / determinant) * 1.001f + 0.01f;
        g.half_y = std::sqrt(limit * g.a / determinant) * 1.001f + 0.01f;
        g.slope = -g.b / g.a;
        g.reach = limit / g.a;
        g.narrowing = determinant / (g.a * g.a);
        view.boxes[i] = tiles_of(g, bins);
        bins.for_tiles(view.boxes[i], [counts](int tile) { counts[tile]++; });
    }
}

// Turn the counts of find_gaussians into where each chunk's entries of a tile begin; how many
// entries there are.
int64_t place_chunks(View &view, const Bins &bins) {
    const size_t tiles = size_t(bins.tiles());
    int64_t sum = 0;
    view.tile_begin.resize(tiles + 1);
    for (size_t tile = 0; tile < tiles; tile++) {
        view.tile_begin[tile] = sum;
        for (size_t chunk = 0; chunk < CHUNKS; chunk++) {
            uint32_t &begin = view.chunk_begin[chunk * tiles + tile];
            sum += std::exchange(begin, uint32_t(sum));
        }
    }
    view.tile_begin[tiles] = sum;
    return sum;
}

// f(Gaussian, tile, slot) for a chunk's Gaussians, in the same order every time.
template <typename F> void for_slots(const View &view, const Bins &bins, int chunk, const F &f) {
    const uint32_t *const begin = view.chunk_begin.data() + size_t(chunk) * bins.tiles();
    std::vector<uint32_t> next(begin, begin + bins.tiles());
    for (int i = bins.chunk(chunk); i < bins.chunk(chunk + 1); i++)
        bins.for_tiles(view.boxes[i], [&](int tile) { f(i, next[tile]++); });
}

void fill_tiles(View &view, const Bins &bins, const float *depths, int chunk) {
    for_slots(view, bins, chunk, [&](int i, uint32_t slot) {
        uint32_t key; // depths are not negative
        std::memcpy(&key, depths + i, sizeof key);
        view.entries[slot] = {key, i, slot, 0};
    });
}

// Sort by keys, ascending; equal ones keep their order.
void sort(Entry *entries, size_t count, std::vector<Entry> &spare) {
    constexpr int BITS = 8, DIGITS = 4; // an even number: the result is where the entries were
    uint32_t begin[DIGITS][1 << BITS] = {};
    auto digit = [](uint32_t key, int d) { return key >> (d * BITS) & ((1u << BITS) - 1); };
    for (size_t i = 0; i < count; i++)
        for (int d = 0; d < DIGITS; d++) begin[d][digit(entries[i].key, d)]++;
    if (spare.size() < count) spare.resize(2 * count);
    Entry *from = entries, *to = spare.data();
    for (int d = 0; d < DIGITS; d++) {
        uint32_t sum = 0;
        for (uint32_t &b : begin[d]) sum += std::exchange(b, sum);
        for (size_t i = 0; i < count; i++) to[begin[d][digit(from[i].key, d)]++] = from[i];
        std::swap(from, to);
    }
}

// 2^-x for 0 <= x <= 126, relative error below 2e-7.
GHA_INLINE F8 fast_exp2(F8 x) {
    const F8 moved = 12582912.0f - x; // its last bits are -x, rounded
    const F8 f = (12582912.0f - moved) - x, ff = f * f;
    // The polynomial of degree 5 with the smallest relative error.
    const F8 low = 6.931469671e-1f * f + 1.000000072f;
    const F8 middle = 5.550713274e-2f * f + 2.402211972e-1f;
    const F8 high = 1.327647177e-3f * f + 9.675541333e-3f;
    return (F8)((I8)(low + ff * (middle + ff * high)) + ((I8)moved << 23));
}

// Numbers that are not negative have the order of their bits, for which there are instructions.
GHA_INLINE F8 lower(F8 a, F8 b) { return (F8)((I8)a < (I8)b ? (I8)a : (I8)b); }
GHA_INLINE F8 at_least_zero(F8 a) { return (F8)((I8)a > 0 ? (I8)a : I8{}); }

// The pixels of a tile.
struct Window {
    int left, top, columns, rows;
};

Window window_of(const Bins &bins, int tile) {
    const int left = tile % bins.across * TILE_WIDTH, top = tile / bins.across * TILE_HEIGHT;
    return {left, top, std::min(TILE_WIDTH, bins.width - left),
            std::min(TILE_HEIGHT, bins.height - top)};
}

struct Features {
    const float *values; // [N, channels]
    int channels;

    // A Gaussian's, padded to full registers: where they are, or in `spare`.
    GHA_INLINE const float *of(int id, int count, std::vector<float> &spare) const {
        const float *const row = values + size_t(id) * count;
        if (count % LANES == 0) return row;
        std::copy_n(row, count, spare.data());
        return spare.data();
    }
};

constexpr int padded_of(int channels) { return (channels + LANES - 1) / LANES * LANES; }
// That hold features; 1 where the compiler does not know their number, and they stay in memory.
template <int CHANNELS> constexpr int REGISTERS = CHANNELS ? padded_of(CHANNELS) / LANES : 1;

// Gradients of a Gaussian: features, and from `padded` on x y a b c opacity depth.
constexpr int GEOMETRY = LANES;

constexpr I8 BITS = {1, 2, 4, 8, 16, 32, 64, 128};

constexpr int pixel_of(int row, int column) {
    const int block = row / BLOCK_HEIGHT * ACROSS + column / BLOCK_WIDTH;
    return block * LANES + row % BLOCK_HEIGHT * BLOCK_WIDTH + column % BLOCK_WIDTH;
}

// Which bits of a byte are set.
struct SetBits {
    alignas(16) uint16_t of[1 << LANES][LANES] = {};

    constexpr SetBits() {
        for (int bits = 0; bits < 1 << LANES; bits++)
            for (int k = 0, n = 0; k < LANES; k++)
                if (bits >> k & 1) of[bits][n++] = uint16_t(k);
    }
};
constexpr SetBits SET_BITS;

// The pixels of a tile, from the first one.
struct Grid {
    alignas(32) float x[PIXELS] = {}, y[PIXELS] = {};

    constexpr Grid() {
        for (int row = 0; row < TILE_HEIGHT; row++)
            for (int column = 0; column < TILE_WIDTH; column++) {
                x[pixel_of(row, column)] = float(column);
                y[pixel_of(row, column)] = float(row);
            }
    }
};
constexpr Grid GRID;

// A Gaussian in a tile.
struct Local {
    float x, y;    // mean, from the first pixel's centre
    float a, b, c; // -log2 exp(-q / 2) = a dx² + b dx dy + c dy²
    float opacity;

    GHA_INLINE Local(const Gaussian &g, const Window &window)
        : x(g.x - float(window.left) - 0.5f), y(g.y - float(window.top) - 0.5f),
          a(0.5f * LOG2_E * g.a), b(LOG2_E * g.b), c(0.5f * LOG2_E * g.c), opacity(g.opacity) {}

    // Of the pixels from the mean.
    GHA_INLINE F8 dx(int pixel) const { return load(GRID.x + pixel) - x; }
    GHA_INLINE F8 dy(int pixel) const { return load(GRID.y + pixel) - y; }

  private:
    static constexpr float LOG2_E = 1.44269504f;
};

// opacity exp(-q / 2) in a block; alpha, but for its limit.
GHA_INLINE F8 raw_alpha(const Local &g, int pixel) {
    const F8 dx = g.dx(pixel), dy = g.dy(pixel);
    const F8 power = dx * (g.a * dx + g.b * dy) + g.c * dy * dy;
    return g.opacity * fast_exp2(lower(at_least_zero(power), splat(100.0f)));
}

// Blocks of a tile that a Gaussian may reach; bit by bit.
GHA_INLINE uint64_t blocks_of(const Gaussian &g, const Local &local) {
    const F8 zero = {}, width = splat(float(TILE_WIDTH));
    F8 low = width, high = zero; // columns of the blocks' rows, BLOCK_HEIGHT at a time
    for (int row = 0; row < BLOCK_HEIGHT; row++) {
        const F8 dy = IOTA * float(BLOCK_HEIGHT) + (float(row) - local.y);
        const F8 middle = g.slope * dy, square = g.reach - g.narrowing * (dy * dy);
        // Alpha itself decides; rounding must not take pixels away.
        const F8 half = square_root(maximum(square, zero)) * 1.001f +
                        (maximum(middle, -middle) * 1e-6f + 0.01f);
        const I8 reached = maximum(dy, -dy) <= g.half_y;
        const F8 from = middle - half + (local.x + 0.999f), to = middle + half + (local.x + 1.0f);
        low = minimum(low, reached ? maximum(from, zero) : width);
        high = maximum(high, reached ? minimum(to, width) : zero);
    }
    const I8 first = __builtin_convertvector(low, I8) >> 2;
    const I8 end = (__builtin_convertvector(high, I8) + (BLOCK_WIDTH - 1)) >> 2;
    const I8 one = I8{} + 1, bits = first < end ? (one << end) - (one << first) : I8{};
    const I8 fours = bits << I8{0, 8, 16, 24, 0, 8, 16, 24};
    const I8 twos = fours | __builtin_shufflevector(fours, fours, 2, 3, 0, 1, 6, 7, 4, 5);
    const I8 ones = twos | __builtin_shufflevector(twos, twos, 1, 0, 3, 2, 5, 4, 7, 6);
    const uint64_t blocks = uint32_t(ones[0]) | uint64_t(uint32_t(ones[4])) << 32;
    return blocks;
}

struct Scratch {
    std::vector<Register> wide; // [PIXELS, padded] sums of features, or gradients by them
    alignas(64) float depth[PIXELS], through[PIXELS], behind[PIXELS];
    // Of the pixels that take one Gaussian.
    alignas(64) float raw[PIXELS], weight[PIXELS], odds[PIXELS];
    uint8_t block[BLOCKS], takes[BLOCKS];
    Register dots[PIXELS];          // gradient . features, by channel modulo LANES
    uint16_t pixel[PIXELS + LANES]; // their list; with a register's room beyond the last
    std::vector<float> payload;     // features of one Gaussian
    std::vector<Register> gradient; // by them
    std::vector<Entry> spare;
    std::vector<Run> runs; // of a tile, with room for one more Gaussian's

    explicit Scratch(int padded)
        : wide(size_t(PIXELS) * padded / LANES), dots(), payload(padded), gradient(padded / LANES) {}

    void open(const Window &window) {
        std::fill(wide.begin(), wide.end(), Register{});
        std::fill_n(depth, PIXELS, 0.0f);
        std::fill_n(through, PIXELS, -1.0f);
        for (int r = 0; r < window.rows; r++)
            for (int x = 0; x < window.columns; x++) through[pixel_of(r, x)] = 1.0f;
    }
    // Bits of the blocks that have a pixel that is not finished.
    GHA_INLINE uint64_t open_blocks() const {
        uint64_t open = 0;
        for (int block = 0; block < BLOCKS; block++) {
            const bool any = total(load(through + block * LANES) > 0.0f) != 0;
            open |= uint64_t(any) << block;
        }
        return open;
    }
    // List the pixels of a run from `at` on; their number.
    GHA_INLINE int list(int at, Run run) {
        typedef uint16_t U8 __attribute__((vector_size(2 * LANES)));
        U8 lanes;
        std::memcpy(&lanes, SET_BITS.of[run.takes], sizeof lanes);
        lanes += uint16_t(run.block * LANES);
        std::memcpy(pixel + at, &lanes, sizeof lanes);
        return __builtin_popcount(run.takes);
    }
};

// The Gaussians come from all over memory: ask for those that are needed soon.
GHA_INLINE void prefetch(const View &view, const Features &features, int id) {
    __builtin_prefetch(&view.gaussians[id]);
    const float *const row = features.values + size_t(id) * features.channels;
    for (int c = 0; c < features.channels; c += 16) __builtin_prefetch(row + c);
}

struct Planes {
    float *image, *alpha, *depth;
};

// CHANNELS of features; a compile-time constant, or 0: then as many as there are.
template <int CHANNELS>
GHA_INLINE void forward_tile(Bins &bins, int v, int tile, const Features &features,
                             const float *background, const Planes &out, bool keep,
                             Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : features.channels;
    const int padded = padded_of(channels), blocks = padded / LANES;
    View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    Entry *const entries = view.entries.data() + view.tile_begin[tile];
    const int64_t count = view.tile_begin[tile + 1] - view.tile_begin[tile];
    sort(entries, size_t(count), scratch.spare);
    scratch.open(window);
    float *const sums = reinterpret_cast<float *>(scratch.wide.data());

    Register feature[REGISTERS<CHANNELS>];
    uint64_t open = ~uint64_t(0); // blocks; now and then those that are finished are left out
    size_t taken = 0;
    for (int64_t e = 0; e < count; e++) {
        if (e % 16 == 0 && !(open = scratch.open_blocks())) break;
        if (e + AHEAD < count) prefetch(view, features, entries[e + AHEAD].id);
        const Gaussian g = view.gaussians[entries[e].id];
        const Local local(g, window);
        if (taken + BLOCKS > scratch.runs.size()) scratch.runs.resize(2 * (taken + BLOCKS));
        Run *const runs = scratch.runs.data() + taken;
        int found = 0, pixels = 0;
        int reached = 0;
        for (uint64_t blocks = blocks_of(g, local) & open; blocks; blocks &= blocks - 1) {
            const int block = __builtin_ctzll(blocks);
            scratch.block[reached++] = uint8_t(block);
            store(scratch.raw + block * LANES, raw_alpha(local, block * LANES));
        }
        for (int i = 0; i < reached; i++) {
            const int pixel = scratch.block[i] * LANES;
            const F8 raw = load(scratch.raw + pixel), alpha = lower(raw, splat(MAX_ALPHA));
            const F8 before = load(scratch.through + pixel), after = before * (1.0f - alpha);
            const I8 touches = raw >= MIN_ALPHA, opens = after >= MIN_TRANSMITTANCE;
            const I8 takes = touches & opens, sign = I8{} + INT32_MIN;
            const F8 closed = (F8)((I8)before | (touches & ~opens & sign));
            store(scratch.through + pixel, takes ? after : closed);
            const F8 weight = (F8)(takes & (I8)(alpha * before));
            store(scratch.weight + pixel, weight);
            store(scratch.depth + pixel, load(scratch.depth + pixel) + g.depth * weight);
            scratch.takes[i] = uint8_t(total(takes & BITS));
        }
        for (int i = 0; i < reached; i++) {
            runs[found] = {scratch.block[i], scratch.takes[i]};
            pixels += scratch.list(pixels, runs[found]);
            found += scratch.takes[i] != 0;
        }
        entries[e].runs = uint32_t(found);
        if (keep) taken += size_t(found);
        if (!found) continue;
        const float *const payload = features.of(entries[e].id, channels, scratch.payload);
        for (int n = 0; CHANNELS && n < blocks; n++) feature[n].lanes = load(payload + n * LANES);
        for (int i = 0; i < pixels; i++) {
            float *const sum = sums + size_t(scratch.pixel[i]) * padded;
            const F8 weight = splat(scratch.weight[scratch.pixel[i]]);
            for (int n = 0; n < blocks; n++) {
                const F8 lanes = CHANNELS ? feature[n].lanes : load(payload + n * LANES);
                store(sum + n * LANES, load(sum + n * LANES) + weight * lanes);
            }
        }
    }
    if (keep) view.runs[tile].assign(scratch.runs.begin(), scratch.runs.begin() + taken);

    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const size_t at = size_t(window.top + r) * bins.width + window.left + x;
            const size_t to = size_t(v) * bins.height * bins.width + at;
            const int pixel = pixel_of(r, x);
            const float through = std::fabs(scratch.through[pixel]);
            const float *const sum = sums + size_t(pixel) * padded;
            float *const image = out.image + to * channels;
            for (int c = 0; c < channels; c++) image[c] = sum[c] + through * background[c];
            out.alpha[to] = 1.0f - through;
            out.depth[to] = scratch.depth[pixel];
            if (keep) view.through[at] = through;
        }
}

// What the backward pass is given: the gradients of all images.
struct Backward {
    const float *background;
    const float *grad_image, *grad_alpha, *grad_depth;
};

// The gradients of a view's Gaussians in its tiles.
struct Parts {
    std::unique_ptr<Register[]> rows;      // [slots, padded + GEOMETRY], not initialised
    std::unique_ptr<uint8_t[]> touched; // [slots]; where not, there is no row

    GHA_INLINE float *row(uint32_t slot, int padded) const {
        return reinterpret_cast<float *>(rows.get()) + size_t(slot) * (padded + GEOMETRY);
    }
};

// With s_j = gradient . what j adds, L's derivative by alpha_i is
//   T_i s_i - (sum over j behind i of w_j s_j + T_end (gradient . background - gradient of alpha))
//             / (1 - alpha_i);
// from far to near the bracket is a running sum.
template <int CHANNELS>
GHA_INLINE void backward_tile(const Bins &bins, int v, int tile, const Features &features,
                              const Backward &in, const Parts &parts, Scratch &scratch) {
    const int channels = CHANNELS ? CHANNELS : features.channels;
    const int padded = padded_of(channels), blocks = padded / LANES;
    const View &view = bins.view[v];
    const Window window = window_of(bins, tile);
    if (view.runs[tile].empty()) return;

    float *const gradients = reinterpret_cast<float *>(scratch.wide.data());
    for (int r = 0; r < window.rows; r++)
        for (int x = 0; x < window.columns; x++) {
            const size_t at = size_t(window.top + r) * bins.width + window.left + x;
            const size_t from = size_t(v) * bins.height * bins.width + at;
            const int pixel = pixel_of(r, x);
            const float *const image = in.grad_image + from * channels;
            float *const row = gradients + size_t(pixel) * padded;
            std::memcpy(row, image, size_t(channels) * sizeof(float));
            F8 shining = {};
            for (int n = 0; n < blocks; n++)
                shining += load(row + n * LANES) * load(in.background + n * LANES);
            scratch.depth[pixel] = in.grad_depth[from];
            scratch.through[pixel] = view.through[at];
            scratch.behind[pixel] = view.through[at] * (total(shining) - in.grad_alpha[from]);
        }

    Register feature[REGISTERS<CHANNELS>], fixed[REGISTERS<CHANNELS>];
    Register *const gradient = CHANNELS ? fixed : scratch.gradient.data();
    const Run *runs = view.runs[tile].data() + view.runs[tile].size();
    const int64_t begin = view.tile_begin[tile], end = view.tile_begin[tile + 1];
    for (int64_t e = end - 1; e >= begin; e--) {
        if (e - AHEAD >= begin) prefetch(view, features, view.entries[e - AHEAD].id);
        const Entry entry = view.entries[e];
        const int count = int(entry.runs);
        if (!count) continue;
        parts.touched[entry.slot] = 1;
        runs -= count;
        const Gaussian g = view.gaussians[entry.id];
        const Local local(g, window);
        const float *const payload = features.of(entry.id, channels, scratch.payload);
        float *const row = parts.row(entry.slot, padded);
        for (int c = 0; c < padded + GEOMETRY; c += 16) __builtin_prefetch(row + c, 1);

        int pixels = 0;
        for (int i = 0; i < count; i++) {
            const int pixel = runs[i].block * LANES;
            store(scratch.raw + pixel, raw_alpha(local, pixel));
            pixels += scratch.list(pixels, runs[i]);
        }
        for (int i = 0; i < count; i++) {
            const int pixel = runs[i].block * LANES;
            const F8 raw = load(scratch.raw + pixel), alpha = lower(raw, splat(MAX_ALPHA));
            const I8 takes = (BITS & int32_t(runs[i].takes)) > 0, moves = takes & (raw < MAX_ALPHA);
            const F8 inverse = 1.0f / (1.0f - alpha);
            const F8 after = load(scratch.through + pixel), before = after * inverse;
            store(scratch.through + pixel, takes ? before : after);
            store(scratch.weight + pixel, (F8)(takes & (I8)(alpha * before)));
            store(scratch.odds + pixel, moves ? alpha * inverse : splat(-1.0f));
        }
        for (int n = 0; n < blocks; n++) gradient[n] = Register{};
        for (int n = 0; CHANNELS && n < blocks; n++) feature[n].lanes = load(payload + n * LANES);
        for (int i = 0; i < pixels; i++) {
            const float *const part = gradients + size_t(scratch.pixel[i]) * padded;
            const F8 weight = splat(scratch.weight[scratch.pixel[i]]);
            F8 dot = {};
            for (int n = 0; n < blocks; n++) {
                const F8 lanes = load(part + n * LANES);
                dot += lanes * (CHANNELS ? feature[n].lanes : load(payload + n * LANES));
                gradient[n].lanes += weight * lanes;
            }
            scratch.dots[scratch.pixel[i]].lanes = dot;
        }
        // Moments of dL/dpower over the offsets from the mean.
        F8 m0 = {}, mx = {}, my = {}, mxx = {}, mxy = {}, myy = {}, by_depth = {};
        for (int i = 0; i < count; i++) {
            const int pixel = runs[i].block * LANES;
            const F8 weight = load(scratch.weight + pixel), odds = load(scratch.odds + pixel);
            const F8 depth = load(scratch.depth + pixel);
            const F8 along = sums(scratch.dots + pixel) + depth * g.depth;
            const I8 takes = weight > 0.0f;
            const F8 gain = takes ? weight * along : F8{};
            const F8 rest = load(scratch.behind + pixel);
            store(scratch.behind + pixel, rest + gain);
            by_depth += takes ? weight * depth : F8{};
            const F8 p = odds >= 0.0f ? gain - rest * odds : F8{};
            const F8 dx = local.dx(pixel), dy = local.dy(pixel);
            const F8 px = p * dx, py = p * dy;
            m0 += p;
            mx += px;
            my += py;
            mxx += px * dx;
            mxy += px * dy;
            myy += py * dy;
        }
        // power = -(a dx² + c dy²) / 2 - b dx dy, and dx = pixel - mean.
        const Register moments[LANES] = {{mx}, {my}, {mxx}, {mxy}, {myy}, {m0}, {by_depth}};
        const F8 sum = sums(moments);
        const F8 geometry = {g.a * sum[0] + g.b * sum[1],
                             g.b * sum[0] + g.c * sum[1],
                             -0.5f * sum[2],
                             -sum[3],
                             -0.5f * sum[4],
                             sum[5] / g.opacity,
                             sum[6]};
        for (int n = 0; n < blocks; n++) store(row + n * LANES, gradient[n].lanes);
        store(row + padded, geometry);
    }
}

// Where the gradients of a view's Gaussians go.
struct Gradients {
    float *means2d, *conics, *depths;
};

// Sum a chunk's gradients: each Gaussian's in the order of views and tiles.
template <int CHANNELS>
GHA_INLINE void sum_chunk(const Bins &bins, int chunk, const std::vector<Parts> &parts,
                          const std::vector<Gradients> &out, float *opacities, float *features,
                          int count) {
    const int channels = CHANNELS ? CHANNELS : count;
    const int padded = padded_of(channels), blocks = padded / LANES;
    const size_t tiles = size_t(bins.tiles());
    std::vector<uint32_t> next; // [views, tiles] slots
    for (const View &view : bins.view) {
        const auto begin = view.chunk_begin.begin() + size_t(chunk) * tiles;
        next.insert(next.end(), begin, begin + tiles);
    }
    std::vector<Register> unknown(blocks);
    Register known[REGISTERS<CHANNELS>];
    Register *const feature = CHANNELS ? known : unknown.data();
    for (size_t i = bins.chunk(chunk); i < size_t(bins.chunk(chunk + 1)); i++) {
        for (int n = 0; n < blocks; n++) feature[n] = Register{};
        float opacity = 0.0f;
        for (int v = 0; v < bins.views; v++) {
            F8 geometry = {};
            bins.for_tiles(bins.view[v].boxes[i], [&](int tile) {
                const uint32_t slot = next[v * tiles + tile]++;
                const float *const row = parts[v].row(slot, padded);
                // What this tile has of its next Gaussian will be needed soon.
                for (int c = 0; c < padded + GEOMETRY; c += 16)
                    __builtin_prefetch(row + padded + GEOMETRY + c);
                if (!parts[v].touched[slot]) return;
                for (int n = 0; n < blocks; n++) feature[n].lanes += load(row + n * LANES);
                geometry += load(row + padded);
            });
            for (int k = 0; k < 2; k++) out[v].means2d[2 * i + k] = geometry[k];
            for (int k = 0; k < 3; k++) out[v].conics[3 * i + k] = geometry[2 + k];
            out[v].depths[i] = geometry[6];
            opacity += geometry[5];
        }
        opacities[i] = opacity;
        std::memcpy(features + i * channels, feature, size_t(channels) * sizeof(float));
    }
}

#define GHA_SPECIALISE(NAME, CHANNELS)                                                             \
    GHA_MULTIVERSION void forward_##NAME(Bins &bins, int v, int tile, const Features &features,    \
                                         const float *background, const Planes &out, bool keep,    \
                                         Scratch &scratch) {                                       \
        forward_tile<CHANNELS>(bins, v, tile, features, background, out, keep, scratch);           \
    }                                                                                              \
    GHA_MULTIVERSION void backward_##NAME(const Bins &bins, int v, int tile,                       \
                                          const Features &features, const Backward &in,            \
                                          const Parts &parts, Scratch &scratch) {                  \
        backward_tile<CHANNELS>(bins, v, tile, features, in, parts, scratch);                      \
    }                                                                                              \
    GHA_MULTIVERSION void sum_##NAME(const Bins &bins, int chunk, const std::vector<Parts> &parts, \
                                     const std::vector<Gradients> &out, float *opacities,          \
                                     float *features, int channels) {                              \
        sum_chunk<CHANNELS>(bins, chunk, parts, out, opacities, features, channels);               \
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

// f(view, tile, scratch) for all tiles.
template <typename F>
void for_all_tiles(const Bins &bins, int padded, int threads, const F &f) {
    const int tiles = bins.tiles(), jobs = tiles * bins.views;
    std::vector<std::unique_ptr<Scratch>> spare;
    in_parallel(jobs, threads, [&](int job) {
        std::unique_ptr<Scratch> scratch;
#pragma omp critical(scratch)
        if (!spare.empty()) {
            scratch = std::move(spare.back());
            spare.pop_back();
        }
        if (!scratch) scratch = std::make_unique<Scratch>(padded);
        f(job / tiles, job % tiles, *scratch);
#pragma omp critical(scratch)
        spare.push_back(std::move(scratch));
    });
}

// What malloc does not keep for the next call (beyond 32 MiB) is new memory every time: take it in
// large pages, or every 4 KiB of it cost a page fault.
void take_large_pages(float *data, size_t count) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = uintptr_t(1) << 21;
    const uintptr_t from = (uintptr_t(data) + PAGE - 1) & ~(PAGE - 1);
    const uintptr_t to = uintptr_t(data + count) & ~(PAGE - 1);
    if (to > from && count * sizeof(float) >= 16 * PAGE)
        madvise(reinterpret_cast<void *>(from), to - from, MADV_HUGEPAGE); // a wish: it may fail
#else
    (void)data, (void)count;
#endif
}

std::vector<float> padded_copy(const In1 &values, int padded) {
    std::vector<float> copy(padded);
    std::copy_n(values.data(), values.shape(0), copy.begin());
    return copy;
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
    const int channels = int(features.shape(1)), padded = padded_of(channels);
    const Features values{features.data(), channels};
    const auto run = channels == 3    ? forward_splat_3
                     : channels == 32 ? forward_splat_32
                                      : forward_splat_any;
    const size_t count = size_t(bins->count), tiles = size_t(bins->tiles());

    nb::gil_scoped_release release;
    take_large_pages(image.data(), image.size());
    for (View &view : bins->view) {
        view.gaussians.reset(new Gaussian[count]);
        view.boxes.resize(count);
        view.chunk_begin.resize(CHUNKS * tiles);
    }
    in_parallel(bins->views * CHUNKS, threads, [&](int job) {
        const size_t v = job / CHUNKS;
        const Projected in{means2d.data() + v * count * 2, conics.data() + v * count * 3,
                           depths.data() + v * count, visible.data() + v * count,
                           opacities.data()};
        find_gaussians(bins->view[v], *bins, in, job % CHUNKS);
    });
    int64_t entries = 0;
    for (View &view : bins->view) entries += place_chunks(view, *bins);
    if (entries >= MOST_ENTRIES)
        throw std::length_error(std::to_string(entries) + " intersections of Gaussians and tiles");
    for (View &view : bins->view) {
        view.entries.resize(view.tile_begin.back());
        if (!keep) continue;
        view.runs.resize(tiles);
        view.through.resize(size_t(bins->width) * bins->height);
    }
    in_parallel(bins->views * CHUNKS, threads, [&](int job) {
        const size_t v = job / CHUNKS;
        fill_tiles(bins->view[v], *bins, depths.data() + v * count, job % CHUNKS);
    });
    const Planes out{image.data(), alpha.data(), depth.data()};
    for_all_tiles(*bins, padded, threads, [&](int v, int tile, Scratch &scratch) {
        run(*bins, v, tile, values, background.data(), out, keep, scratch);
    });
    return bins.release();
}

void splat_backward(const Bins &bins, In2 features, In1 background, In4 grad_image, In3 grad_alpha,
                    In3 grad_depth, Out3 grad_means2d, Out3 grad_conics, Out2 grad_depths,
                    Out1 grad_opacities, Out2 grad_features, int threads) {
    const int channels = int(features.shape(1)), padded = padded_of(channels);
    const Features values{features.data(), channels};
    const std::vector<float> behind = padded_copy(background, padded);
    const Backward in{behind.data(), grad_image.data(), grad_alpha.data(), grad_depth.data()};
    const auto run = channels == 3    ? backward_splat_3
                     : channels == 32 ? backward_splat_32
                                      : backward_splat_any;
    const auto sum = channels == 3    ? sum_splat_3
                     : channels == 32 ? sum_splat_32
                                      : sum_splat_any;
    const size_t count = size_t(bins.count);
    std::vector<Gradients> out;
    for (size_t v = 0; v < size_t(bins.views); v++)
        out.push_back({grad_means2d.data() + v * count * 2, grad_conics.data() + v * count * 3,
                       grad_depths.data() + v * count});

    nb::gil_scoped_release release;
    std::vector<Parts> parts(bins.views);
    for (int v = 0; v < bins.views; v++) {
        const size_t slots = bins.view[v].entries.size();
        parts[v].rows.reset(new Register[slots * size_t(padded + GEOMETRY) / LANES]);
        take_large_pages(parts[v].row(0, padded), slots * size_t(padded + GEOMETRY));
        parts[v].touched.reset(new uint8_t[slots]());
    }
    for_all_tiles(bins, padded, threads, [&](int v, int tile, Scratch &scratch) {
        run(bins, v, tile, values, in, parts[v], scratch);
    });
    in_parallel(CHUNKS, threads, [&](int chunk) {
        sum(bins, chunk, parts, out, grad_opacities.data(), grad_features.data(), channels);
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
