// Z-buffer and nearest-segment search on the CPU. The specification is twin.py beside this file.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace {

constexpr int BAND = 16; // image rows that one thread owns at a time
constexpr int GROUP = 4; // pixels of a row that are tested at once
typedef double D4 __attribute__((vector_size(8 * GROUP)));
typedef int64_t I4 __attribute__((vector_size(8 * GROUP)));
constexpr D4 CENTRES = {0.5, 1.5, 2.5, 3.5};

struct Triangle {
    double x[3], y[3], inverse_depth[3], inverse_area;
    int64_t face;
    int x0, x1, y0, y1; // inclusive range of pixels whose centres lie in the bounding box
};

// What the pixels of a band see so far.
struct Nearest {
    std::vector<double> inverse_depth; // zero where nothing is
    std::vector<int64_t> triangle;
    int stride; // groups may reach beyond a row's last pixel

    explicit Nearest(int width)
        : inverse_depth(BAND * (width + GROUP)), triangle(inverse_depth.size()),
          stride(width + GROUP) {}
};

// First and last pixel with its centre in [low, high]; false if there is none in the image.
GHA_INLINE bool pixel_range(double low, double high, int size, int &first, int &last) {
    const double a = std::ceil(low - 0.5), b = std::floor(high - 0.5);
    if (!(b >= 0.0) || !(a <= size - 1.0)) return false;
    first = a < 0 ? 0 : static_cast<int>(a);
    last = b > size - 1.0 ? size - 1 : static_cast<int>(b);
    return first <= last;
}

// Barycentric coordinates in the image, of one pixel or of a group.
template <typename Pixels>
GHA_INLINE void flat_weights(const Triangle &t, Pixels px, double py, Pixels *b) {
    const double *x = t.x, *y = t.y;
    b[0] = ((x[1] - px) * (y[2] - py) - (x[2] - px) * (y[1] - py)) * t.inverse_area;
    b[1] = ((x[2] - px) * (y[0] - py) - (x[0] - px) * (y[2] - py)) * t.inverse_area;
    b[2] = ((x[0] - px) * (y[1] - py) - (x[1] - px) * (y[0] - py)) * t.inverse_area;
}

// The covered ones of a row's pixels from first to last; the row starts at `start` of the band's.
GHA_INLINE void fill_row(const Triangle &t, int64_t index, int row, int first, int last, int start,
                         Nearest &seen) {
    for (int column = first; column <= last; column += GROUP) {
        const D4 px = column + CENTRES;
        D4 b[3], before;
        I4 winner;
        flat_weights(t, px, row + 0.5, b);
        const D4 sum =
            b[0] * t.inverse_depth[0] + b[1] * t.inverse_depth[1] + b[2] * t.inverse_depth[2];
        double *nearest = &seen.inverse_depth[start + column];
        int64_t *triangle = &seen.triangle[start + column];
        std::memcpy(&before, nearest, sizeof before);
        std::memcpy(&winner, triangle, sizeof winner);
        // Faces come in ascending order, so a strict test lets the lowest index win a tie.
        const I4 nearer = (b[0] >= 0.0) & (b[1] >= 0.0) & (b[2] >= 0.0) & (sum > before) &
                          (px <= last + 0.5);
        before = nearer ? sum : before;
        winner = nearer ? index + I4{} : winner;
        std::memcpy(nearest, &before, sizeof before);
        std::memcpy(triangle, &winner, sizeof winner);
    }
}

// All pixels of the band that starts at row0 that the triangle covers, edges included.
GHA_MULTIVERSION void fill(const Triangle &shared, int64_t index, int row0, Nearest &seen) {
    const Triangle t = shared; // a copy, that what is written cannot change: it stays in registers
    const double *x = t.x, *y = t.y;
    // Where each edge crosses a row bounds the columns worth testing: long thin triangles (strands
    // of hair) cover little of their bounding boxes. The slack is far more than rounding and
    // leaves the exact test to decide.
    const bool wide = t.x1 - t.x0 >= GROUP;
    double slope[3], towards[3], largest = 0.0;
    for (int k = 0; wide && k < 3; ++k) {
        const int a = (k + 1) % 3, b = (k + 2) % 3;
        const double rise = y[b] - y[a];
        const bool level = std::abs(rise) < 1e-3; // crosses a row anywhere or nowhere: no bound
        towards[k] = level ? 0.0 : -rise * t.inverse_area; // sign of weight k's change along a row
        slope[k] = level ? 0.0 : (x[b] - x[a]) / rise;
        largest = std::max(largest, std::abs(x[k]) + std::abs(y[k]));
    }
    const double slack = 0.01 + 1e-9 * largest;
    const int top = std::max(t.y0, row0), bottom = std::min(t.y1, row0 + BAND - 1);
    for (int rows = top; rows <= bottom; rows += GROUP) {
        D4 low = D4{} + t.x0, high = D4{} + t.x1;
        for (int k = 0; wide && k < 3; ++k) {
            const int a = (k + 1) % 3;
            const D4 crossing = x[a] + (rows + CENTRES - y[a]) * slope[k] - 0.5;
            if (towards[k] > 0) low = low < crossing - slack ? crossing - slack : low;
            if (towards[k] < 0) high = high > crossing + slack ? crossing + slack : high;
        }
        for (int k = 0; k < std::min(GROUP, bottom + 1 - rows); ++k)
            if (low[k] <= high[k]) // both lie in 0 .. width - 1
                fill_row(t, index, rows + k, static_cast<int>(std::ceil(low[k])),
                         static_cast<int>(high[k]), (rows + k - row0) * seen.stride, seen);
    }
}

struct Buffers {
    int64_t *face;
    float *barycentric, *depth;
};

// Weights and depth, for what is seen alone: no division is spent on what lies behind.
GHA_MULTIVERSION void resolve(const std::vector<Triangle> &triangles, int row0, int row1, int width,
                              const Nearest &seen, const Buffers &out) {
    for (int row = row0; row < row1; ++row)
        for (int column = 0; column < width; ++column) {
            const int place = (row - row0) * seen.stride + column;
            const double sum = seen.inverse_depth[place];
            if (!(sum > 0)) continue;
            const int64_t pixel = static_cast<int64_t>(row) * width + column;
            const Triangle &t = triangles[seen.triangle[place]];
            double b[3];
            flat_weights(t, column + 0.5, row + 0.5, b);
            out.face[pixel] = t.face;
            out.depth[pixel] = static_cast<float>(1.0 / sum);
            for (int k = 0; k < 3; ++k)
                out.barycentric[3 * pixel + k] =
                    static_cast<float>(b[k] * t.inverse_depth[k] / sum);
        }
}

void rasterize_triangles(Array<const double, nb::shape<-1, 3>> screen,
                         Array<const int64_t, nb::shape<-1, 3>> faces, double near,
                         Array<int64_t, nb::shape<-1, -1>> face_index,
                         Array<float, nb::shape<-1, -1, 3>> barycentric,
                         Array<float, nb::shape<-1, -1>> depth) {
    nb::gil_scoped_release unlocked;
    const int height = static_cast<int>(face_index.shape(0));
    const int width = static_cast<int>(face_index.shape(1));
    const double *points = screen.data();
    const int bands = (height + BAND - 1) / BAND;
    std::vector<Triangle> triangles;
    triangles.reserve(faces.shape(0));
    std::vector<std::vector<int32_t>> bins(bands);
    for (int64_t face = 0; face < static_cast<int64_t>(faces.shape(0)); ++face) {
        Triangle t;
        bool usable = true;
        for (int corner = 0; corner < 3; ++corner) {
            const double *p = points + 3 * faces.data()[3 * face + corner];
            usable &= p[2] > near && std::isfinite(p[0]) && std::isfinite(p[1]);
            t.x[corner] = p[0];
            t.y[corner] = p[1];
            t.inverse_depth[corner] = p[2];
        }
        const double area =
            (t.x[1] - t.x[0]) * (t.y[2] - t.y[0]) - (t.x[2] - t.x[0]) * (t.y[1] - t.y[0]);
        if (!usable || !(std::abs(area) > 1e-12)) continue;
        const auto [left, right] = std::minmax({t.x[0], t.x[1], t.x[2]});
        const auto [top, bottom] = std::minmax({t.y[0], t.y[1], t.y[2]});
        if (!pixel_range(left, right, width, t.x0, t.x1)) continue;
        if (!pixel_range(top, bottom, height, t.y0, t.y1)) continue;
        t.inverse_area = 1.0 / area;
        for (double &depth : t.inverse_depth) depth = 1.0 / depth;
        t.face = face;
        for (int band = t.y0 / BAND; band <= t.y1 / BAND; ++band)
            bins[band].push_back(static_cast<int32_t>(triangles.size()));
        triangles.push_back(t);
    }
    const Buffers out{face_index.data(), barycentric.data(), depth.data()};
#pragma omp parallel for schedule(dynamic)
    for (int band = 0; band < bands; ++band) {
        const int row0 = band * BAND, row1 = std::min(height, row0 + BAND);
        Nearest seen(width);
        for (int32_t index : bins[band]) fill(triangles[index], index, row0, seen);
        resolve(triangles, row0, row1, width, seen, out);
    }
}

// Squared distance from (px, py) to the segment a-b, given as x y x y.
GHA_INLINE double squared_distance(const double *s, double px, double py) {
    const double dx = s[2] - s[0], dy = s[3] - s[1], length = dx * dx + dy * dy;
    const double along = length > 0 ? ((px - s[0]) * dx + (py - s[1]) * dy) / length : 0.0;
    const double t = std::min(1.0, std::max(0.0, along));
    const double ex = s[0] + t * dx - px, ey = s[1] + t * dy - py;
    return ex * ex + ey * ey;
}

void nearest_segments(Array<const double, nb::shape<-1, 4>> segments, double radius,
                      Array<int64_t, nb::shape<-1, -1>> nearest) {
    nb::gil_scoped_release unlocked;
    const int height = static_cast<int>(nearest.shape(0));
    const int width = static_cast<int>(nearest.shape(1));
    std::vector<double> best(static_cast<size_t>(width) * height, radius * radius);
    for (int64_t index = 0; index < static_cast<int64_t>(segments.shape(0)); ++index) {
        const double *s = segments.data() + 4 * index;
        int x0, x1, y0, y1;
        if (!pixel_range(std::min(s[0], s[2]) - radius, std::max(s[0], s[2]) + radius, width, x0, x1))
            continue;
        if (!pixel_range(std::min(s[1], s[3]) - radius, std::max(s[1], s[3]) + radius, height, y0, y1))
            continue;
        for (int row = y0; row <= y1; ++row)
            for (int column = x0; column <= x1; ++column) {
                const int64_t pixel = static_cast<int64_t>(row) * width + column;
                const double distance = squared_distance(s, column + 0.5, row + 0.5);
                if (distance < best[pixel]) {
                    best[pixel] = distance;
                    nearest.data()[pixel] = index;
                }
            }
    }
}

} // namespace

void bind_mesh_rasterisation(nb::module_ &m) {
    m.def("rasterize_triangles", &rasterize_triangles,
          "Z-buffer: screen [V, 3] (x px, y px, depth m), faces [F, 3], into preset buffers.");
    m.def("nearest_segments", &nearest_segments,
          "Index of the nearest of segments [S, 4] (px) within a radius, into a preset buffer.");
}
