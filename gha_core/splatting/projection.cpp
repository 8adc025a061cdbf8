// The projection of Gaussians and its gradient on CPU cores. The specification is projection.py.
//
// In double throughout: the gradients of long needles cancel, and this is little work beside the
// compositing. Gaussians are worked on LANES at a time, so that loops vectorise (not
// by `omp simd`, which keeps structures in memory and so prevents it).
// The cameras' gradients are summed per chunk and then over the chunks in their order, so the bits
// do not depend on the number of threads.
#include "kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

// As in projection.py.
constexpr double NEAR = 0.01;
constexpr double DILATION = 0.3;
constexpr double MARGIN = 0.15;
constexpr double MAX_VARIANCE = 1e12;
constexpr double LARGEST = 1e6;
constexpr double MIN_QUATERNION = 1e-12;
constexpr float MIN_ALPHA = 1.0f / 255.0f;

constexpr int LANES = 8;    // Gaussians that are worked on at once
constexpr int CHUNK = 1024; // Gaussians of one job
constexpr int CAMERA = 17;  // gradient entries of a camera: turn (9), shift (3), fx skew cx fy cy

struct Vec {
    double x, y, z;
};

struct Matrix {
    Vec u, v, w; // rows
};

GHA_INLINE Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
GHA_INLINE Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
GHA_INLINE Vec operator*(double s, Vec a) { return {s * a.x, s * a.y, s * a.z}; }
GHA_INLINE Vec operator*(Vec a, Vec b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
GHA_INLINE Vec cross(Vec a, Vec b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
GHA_INLINE double dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
GHA_INLINE Vec product(const Matrix &m, Vec a) { return {dot(m.u, a), dot(m.v, a), dot(m.w, a)}; }
// The transposed matrix times a.
GHA_INLINE Vec combine(const Matrix &m, Vec a) { return a.x * m.u + a.y * m.v + a.z * m.w; }

struct Camera {
    Matrix turn;
    Vec shift;
    double fx, skew, cx, fy, cy;
    double low_x, high_x, low_y, high_y; // the image directions at which the Jacobian is taken

    Camera(const float *K, const float *w2c, int width, int height)
        : turn{{w2c[0], w2c[1], w2c[2]}, {w2c[4], w2c[5], w2c[6]}, {w2c[8], w2c[9], w2c[10]}},
          shift{w2c[3], w2c[7], w2c[11]}, fx(K[0]), skew(K[1]), cx(K[2]), fy(K[4]), cy(K[5]),
          low_x(-(cx + MARGIN * width) / fx), high_x((width - cx + MARGIN * width) / fx),
          low_y(-(cy + MARGIN * height) / fy), high_y((height - cy + MARGIN * height) / fy) {}
};

struct Inputs {
    const float *means, *quaternions, *scales, *opacities;
    int count, width, height;
    std::vector<Camera> cameras;
};

// LANES Gaussians, as they come.
struct Lanes {
    double mean[3][LANES], quaternion[4][LANES], scale[3][LANES];
    double usable[LANES]; // 0 or 1

    Lanes(const Inputs &in, int first) {
        for (int k = 0; k < LANES; k++) {
            const size_t i = std::min(first + k, in.count - 1);
            for (int c = 0; c < 3; c++) mean[c][k] = in.means[3 * i + c];
            for (int c = 0; c < 4; c++) quaternion[c][k] = in.quaternions[4 * i + c];
            for (int c = 0; c < 3; c++) scale[c][k] = in.scales[3 * i + c];
            double most = 0.0, turn = 0.0;
            bool number = true; // comparisons with NaN are false
            for (const auto &value : {mean[0][k], mean[1][k], mean[2][k], scale[0][k],
                                      scale[1][k], scale[2][k], double(in.opacities[i])}) {
                most = std::max(most, std::fabs(value));
                number &= value == value;
            }
            for (int c = 0; c < 4; c++) {
                turn = std::max(turn, std::fabs(quaternion[c][k]));
                number &= quaternion[c][k] == quaternion[c][k];
            }
            usable[k] = number & (most < LARGEST) & (turn < LARGEST) & (turn > MIN_QUATERNION) &
                        (in.opacities[i] >= MIN_ALPHA) & (first + k < in.count);
            if (usable[k] == 0.0) { // anything that is harmless
                for (int c = 0; c < 3; c++) mean[c][k] = scale[c][k] = 0.0;
                for (int c = 0; c < 4; c++) quaternion[c][k] = c == 0;
            }
        }
    }
};

// A Gaussian in the world; `axes` is the rotation with its columns scaled.
struct Gaussian {
    Vec mean, scale;
    double length, w, x, y, z; // of the quaternion; its unit direction
    Matrix rotation, axes;
};

GHA_INLINE Gaussian gaussian_of(const Lanes &in, int k) {
    Gaussian g;
    g.mean = {in.mean[0][k], in.mean[1][k], in.mean[2][k]};
    g.scale = {in.scale[0][k], in.scale[1][k], in.scale[2][k]};
    const double a = in.quaternion[0][k], b = in.quaternion[1][k];
    const double c = in.quaternion[2][k], d = in.quaternion[3][k];
    g.length = std::sqrt(a * a + b * b + c * c + d * d);
    const double inverse = 1.0 / g.length;
    const double w = g.w = a * inverse, x = g.x = b * inverse;
    const double y = g.y = c * inverse, z = g.z = d * inverse;
    g.rotation = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                  {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                  {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
    g.axes = {g.rotation.u * g.scale, g.rotation.v * g.scale, g.rotation.w * g.scale};
    return g;
}

// What a camera sees of a Gaussian.
struct Seen {
    double depth, z;       // camera z; the same, or 1 if it is too near
    double x, y;           // direction
    double along_x, along_y; // the same, limited
    double u, v;           // px
    Vec row_u, row_v;      // of the Jacobian times the turn
    Vec factor_u, factor_v;
    double uu, uv, vv;     // covariance, dilated
    Vec normal;            // their cross product
    double determinant;
    bool visible;
};

GHA_INLINE Seen look(const Camera &c, Vec mean, const Matrix &axes) {
    Seen s;
    const Vec local = product(c.turn, mean) + c.shift;
    s.depth = local.z;
    const bool in_front = s.depth > NEAR;
    s.z = in_front ? s.depth : 1.0;
    const double inverse = 1.0 / s.z;
    s.x = local.x * inverse, s.y = local.y * inverse;
    s.u = c.fx * s.x + c.skew * s.y + c.cx;
    s.v = c.fy * s.y + c.cy;
    s.along_x = s.x > c.low_x ? s.x : c.low_x;
    s.along_x = s.along_x < c.high_x ? s.along_x : c.high_x;
    s.along_y = s.y > c.low_y ? s.y : c.low_y;
    s.along_y = s.along_y < c.high_y ? s.along_y : c.high_y;
    const Vec across = c.turn.v - s.along_y * c.turn.w;
    s.row_u = inverse * (c.fx * (c.turn.u - s.along_x * c.turn.w) + c.skew * across);
    s.row_v = (c.fy * inverse) * across;
    s.factor_u = combine(axes, s.row_u);
    s.factor_v = combine(axes, s.row_v);
    const double uu = dot(s.factor_u, s.factor_u), vv = dot(s.factor_v, s.factor_v);
    const bool bounded = (uu < MAX_VARIANCE) & (vv < MAX_VARIANCE);
    s.uu = uu + DILATION;
    s.uv = dot(s.factor_u, s.factor_v);
    s.vv = vv + DILATION;
    s.normal = cross(s.factor_u, s.factor_v);
    s.determinant = DILATION * (uu + vv + DILATION) + dot(s.normal, s.normal);
    const bool in_range = (std::fabs(s.u) < LARGEST) & (std::fabs(s.v) < LARGEST);
    s.visible = in_front & bounded & in_range;
    return s;
}

struct Outputs {
    float *means2d, *conics, *depths;
    bool *visible;
};

} // namespace

// Not in the anonymous namespace: target_clones needs linkage.
GHA_MULTIVERSION void project_chunk(const Inputs &in, int begin, int end, const Outputs &out) {
    for (int first = begin; first < end; first += LANES) {
        const Lanes lanes(in, first);
        const int count = std::min(LANES, end - first);
        for (size_t view = 0; view < in.cameras.size(); view++) {
            const Camera camera = in.cameras[view];
            double found[7][LANES];
#pragma GCC ivdep
            for (int k = 0; k < LANES; k++) {
                const Gaussian g = gaussian_of(lanes, k);
                const Seen s = look(camera, g.mean, g.axes);
                const double shown = s.visible ? lanes.usable[k] : 0.0;
                const double inverse = 1.0 / s.determinant;
                found[0][k] = shown > 0.0 ? s.u : 0.0;
                found[1][k] = shown > 0.0 ? s.v : 0.0;
                found[2][k] = shown > 0.0 ? s.vv * inverse : 0.0;
                found[3][k] = shown > 0.0 ? -s.uv * inverse : 0.0;
                found[4][k] = shown > 0.0 ? s.uu * inverse : 0.0;
                found[5][k] = s.depth;
                found[6][k] = shown;
            }
            for (int k = 0; k < count; k++) {
                const size_t at = view * in.count + first + k;
                for (int c = 0; c < 2; c++) out.means2d[2 * at + c] = float(found[c][k]);
                for (int c = 0; c < 3; c++) out.conics[3 * at + c] = float(found[2 + c][k]);
                out.depths[at] = float(found[5][k]);
                out.visible[at] = found[6][k] > 0.0;
            }
        }
    }
}

namespace {

struct Gradients {
    const float *means2d, *conics, *depths; // given
    float *means, *quaternions, *scales;    // wanted
};

// [views][CAMERA] of LANES partial sums each.
using CameraSums = std::vector<std::array<std::array<double, LANES>, CAMERA>>;

} // namespace

GHA_MULTIVERSION void project_chunk_backward(const Inputs &in, const bool *visible, int begin,
                                             int end, const Gradients &gradient,
                                             CameraSums &sums) {
    for (int first = begin; first < end; first += LANES) {
        const Lanes lanes(in, first);
        const int count = std::min(LANES, end - first);
        double by_mean[3][LANES] = {}, by_axes[9][LANES] = {};
        for (size_t view = 0; view < in.cameras.size(); view++) {
            double given[6][LANES] = {}; // u v, conic, depth; stays zero for what is not seen
            bool any = false;
            for (int k = 0; k < count; k++) {
                const size_t at = view * in.count + first + k;
                if (!visible[at]) continue;
                any = true;
                for (int c = 0; c < 2; c++) given[c][k] = gradient.means2d[2 * at + c];
                for (int c = 0; c < 3; c++) given[2 + c][k] = gradient.conics[3 * at + c];
                given[5][k] = gradient.depths[at];
            }
            if (!any) continue;
            const Camera c = in.cameras[view];
            double(*const camera)[LANES] = reinterpret_cast<double(*)[LANES]>(&sums[view]);
#pragma GCC ivdep
            for (int k = 0; k < LANES; k++) {
                const Gaussian g = gaussian_of(lanes, k);
                const Seen s = look(c, g.mean, g.axes);
                const double gu = given[0][k], gv = given[1][k];

                // Conic = adjugate / determinant -> covariance.
                const double inverse = 1.0 / s.determinant;
                const double by_determinant =
                    -(given[2][k] * s.vv - given[3][k] * s.uv + given[4][k] * s.uu) * inverse *
                    inverse;
                const double by_uu = given[4][k] * inverse + by_determinant * DILATION;
                const double by_vv = given[2][k] * inverse + by_determinant * DILATION;
                const double by_uv = -given[3][k] * inverse;
                const Vec by_normal = 2.0 * by_determinant * s.normal;

                // Covariance = inner products of the factors = rows times axes.
                const Vec by_u = 2.0 * by_uu * s.factor_u + by_uv * s.factor_v +
                                 cross(s.factor_v, by_normal);
                const Vec by_v = 2.0 * by_vv * s.factor_v + by_uv * s.factor_u +
                                 cross(by_normal, s.factor_u);
                const Vec axes_u = s.row_u.x * by_u + s.row_v.x * by_v;
                const Vec axes_v = s.row_u.y * by_u + s.row_v.y * by_v;
                const Vec axes_w = s.row_u.z * by_u + s.row_v.z * by_v;
                by_axes[0][k] += axes_u.x, by_axes[1][k] += axes_u.y, by_axes[2][k] += axes_u.z;
                by_axes[3][k] += axes_v.x, by_axes[4][k] += axes_v.y, by_axes[5][k] += axes_v.z;
                by_axes[6][k] += axes_w.x, by_axes[7][k] += axes_w.y, by_axes[8][k] += axes_w.z;

                // Rows = Jacobian times turn.
                const double per_z = 1.0 / s.z;
                const Vec row_u = per_z * product(g.axes, by_u);
                const Vec row_v = per_z * product(g.axes, by_v);
                const Vec across = c.turn.v - s.along_y * c.turn.w;
                const Vec outer = c.skew * row_u + c.fy * row_v;
                double by_fx = dot(row_u, c.turn.u - s.along_x * c.turn.w);
                double by_skew = dot(row_u, across);
                double by_fy = dot(row_v, across);
                const double along_x = -c.fx * dot(row_u, c.turn.w);
                const double along_y = -dot(outer, c.turn.w);
                double by_z = -(dot(row_u, s.row_u) + dot(row_v, s.row_v));

                // The direction, or the border that limits it.
                const bool left = s.x < c.low_x, right = s.x > c.high_x;
                const bool above = s.y < c.low_y, below = s.y > c.high_y;
                const double edge_x = (left | right ? along_x : 0.0) / c.fx;
                const double edge_y = (above | below ? along_y : 0.0) / c.fy;
                by_fx -= s.along_x * edge_x;
                by_fy -= s.along_y * edge_y;

                // Mean in the picture, and depth.
                const double by_x = (left | right ? 0.0 : along_x) + c.fx * gu;
                const double by_y = (above | below ? 0.0 : along_y) + c.skew * gu + c.fy * gv;
                by_fx += gu * s.x;
                by_skew += gu * s.y;
                by_fy += gv * s.y;
                by_z += given[5][k] - (by_x * s.x + by_y * s.y) * per_z;
                const Vec local = {by_x * per_z, by_y * per_z, by_z};
                const Vec mean = combine(c.turn, local);
                by_mean[0][k] += mean.x, by_mean[1][k] += mean.y, by_mean[2][k] += mean.z;

                const Vec turn_u = local.x * g.mean + c.fx * row_u;
                const Vec turn_v = local.y * g.mean + outer;
                const Vec turn_w =
                    local.z * g.mean - (c.fx * s.along_x) * row_u - s.along_y * outer;
                camera[0][k] += turn_u.x, camera[1][k] += turn_u.y, camera[2][k] += turn_u.z;
                camera[3][k] += turn_v.x, camera[4][k] += turn_v.y, camera[5][k] += turn_v.z;
                camera[6][k] += turn_w.x, camera[7][k] += turn_w.y, camera[8][k] += turn_w.z;
                camera[9][k] += local.x, camera[10][k] += local.y, camera[11][k] += local.z;
                camera[12][k] += by_fx, camera[13][k] += by_skew, camera[14][k] += gu - edge_x;
                camera[15][k] += by_fy, camera[16][k] += gv - edge_y;
            }
        }

        double wanted[10][LANES]; // mean, scale, quaternion
#pragma GCC ivdep
        for (int k = 0; k < LANES; k++) {
            const Gaussian g = gaussian_of(lanes, k);
            const Vec u = {by_axes[0][k], by_axes[1][k], by_axes[2][k]};
            const Vec v = {by_axes[3][k], by_axes[4][k], by_axes[5][k]};
            const Vec w = {by_axes[6][k], by_axes[7][k], by_axes[8][k]};
            const Vec scale = u * g.rotation.u + v * g.rotation.v + w * g.rotation.w;
            const Vec a = u * g.scale, b = v * g.scale, c = w * g.scale; // by the rotation's rows
            const double qw =
                2 * (g.x * (c.y - b.z) + g.y * (a.z - c.x) + g.z * (b.x - a.y));
            const double qx = 2 * (g.y * (a.y + b.x) + g.z * (a.z + c.x) -
                                   2 * g.x * (b.y + c.z) + g.w * (c.y - b.z));
            const double qy = 2 * (g.x * (a.y + b.x) + g.z * (b.z + c.y) -
                                   2 * g.y * (a.x + c.z) + g.w * (a.z - c.x));
            const double qz = 2 * (g.x * (a.z + c.x) + g.y * (b.z + c.y) -
                                   2 * g.z * (a.x + b.y) + g.w * (b.x - a.y));
            const double radial = qw * g.w + qx * g.x + qy * g.y + qz * g.z;
            const double inverse = 1.0 / g.length;
            for (int i = 0; i < 3; i++) wanted[i][k] = by_mean[i][k];
            wanted[3][k] = scale.x, wanted[4][k] = scale.y, wanted[5][k] = scale.z;
            wanted[6][k] = (qw - radial * g.w) * inverse;
            wanted[7][k] = (qx - radial * g.x) * inverse;
            wanted[8][k] = (qy - radial * g.y) * inverse;
            wanted[9][k] = (qz - radial * g.z) * inverse;
        }
        for (int k = 0; k < count; k++) {
            const size_t at = first + k;
            for (int i = 0; i < 3; i++) gradient.means[3 * at + i] = float(wanted[i][k]);
            for (int i = 0; i < 3; i++) gradient.scales[3 * at + i] = float(wanted[3 + i][k]);
            for (int i = 0; i < 4; i++) gradient.quaternions[4 * at + i] = float(wanted[6 + i][k]);
        }
    }
}

namespace {

using In1 = Array<const float, nb::ndim<1>>;
using In2 = Array<const float, nb::ndim<2>>;
using In3 = Array<const float, nb::ndim<3>>;
using Out2 = Array<float, nb::ndim<2>>;
using Out3 = Array<float, nb::ndim<3>>;

Inputs inputs_of(const In2 &means, const In2 &quaternions, const In2 &scales,
                 const In1 &opacities, const In3 &K, const In3 &w2c, int width, int height) {
    Inputs in{means.data(), quaternions.data(), scales.data(), opacities.data(),
              int(means.shape(0)), width, height, {}};
    for (size_t view = 0; view < K.shape(0); view++)
        in.cameras.emplace_back(K.data() + 9 * view, w2c.data() + 16 * view, width, height);
    return in;
}

void project_forward(In2 means, In2 quaternions, In2 scales, In1 opacities, In3 K, In3 w2c,
                     int width, int height, Out3 means2d, Out3 conics, Out2 depths,
                     Array<bool, nb::ndim<2>> visible, int threads) {
    const Inputs in = inputs_of(means, quaternions, scales, opacities, K, w2c, width, height);
    const Outputs out{means2d.data(), conics.data(), depths.data(), visible.data()};
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int begin = 0; begin < in.count; begin += CHUNK)
        project_chunk(in, begin, std::min(begin + CHUNK, in.count), out);
}

void project_backward(In2 means, In2 quaternions, In2 scales, In1 opacities, In3 K, In3 w2c,
                      int width, int height, Array<const bool, nb::ndim<2>> visible,
                      In3 grad_means2d, In3 grad_conics, In2 grad_depths, Out2 grad_means,
                      Out2 grad_quaternions, Out2 grad_scales, Out3 grad_K, Out3 grad_w2c,
                      int threads) {
    const Inputs in = inputs_of(means, quaternions, scales, opacities, K, w2c, width, height);
    const Gradients gradient{grad_means2d.data(), grad_conics.data(),      grad_depths.data(),
                             grad_means.data(),   grad_quaternions.data(), grad_scales.data()};
    const size_t views = in.cameras.size();
    nb::gil_scoped_release release;
    const int chunks = (in.count + CHUNK - 1) / CHUNK;
    std::vector<CameraSums> sums(chunks, CameraSums(views));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int chunk = 0; chunk < chunks; chunk++)
        project_chunk_backward(in, visible.data(), chunk * CHUNK,
                               std::min((chunk + 1) * CHUNK, in.count), gradient, sums[chunk]);
    for (size_t view = 0; view < views; view++) {
        double total[CAMERA] = {};
        for (const CameraSums &chunk : sums)
            for (int i = 0; i < CAMERA; i++)
                for (double lane : chunk[view][i]) total[i] += lane;
        float *const by_w2c = grad_w2c.data() + 16 * view, *const by_K = grad_K.data() + 9 * view;
        std::fill_n(by_w2c, 16, 0.0f);
        std::fill_n(by_K, 9, 0.0f);
        for (int row = 0; row < 3; row++) {
            for (int column = 0; column < 3; column++)
                by_w2c[4 * row + column] = float(total[3 * row + column]);
            by_w2c[4 * row + 3] = float(total[9 + row]);
        }
        std::copy_n(total + 12, 3, by_K);
        std::copy_n(total + 15, 2, by_K + 4);
    }
}

} // namespace

void bind_projection(nb::module_ &m) {
    m.def("project_forward", &project_forward,
          "Project N Gaussians into V views: means2d, conics, depths, visible are written in place. "
          "Called by gha_core/splatting/native.py only.");
    m.def("project_backward", &project_backward,
          "Gradients of project_forward, written in place into the last five arrays.");
}
