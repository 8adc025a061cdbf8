// Eight floats at once, by the vector extensions of GCC and Clang: one register of AVX, two of SSE
// or NEON. Plain operators work on them; a comparison gives -1 or 0 per lane.
#pragma once
#include "kernels.h"

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" // all that takes vectors is inlined
#endif

constexpr int LANES = 8;
typedef float F8 __attribute__((vector_size(4 * LANES)));
typedef int32_t I8 __attribute__((vector_size(4 * LANES)));

// For containers; aligned, since what lies across two cache lines is slow.
struct alignas(4 * LANES) Register {
    F8 lanes;
};

constexpr F8 IOTA = {0, 1, 2, 3, 4, 5, 6, 7};

GHA_INLINE F8 splat(float value) { return F8{} + value; }

GHA_INLINE F8 load(const float *from) {
    F8 lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}
GHA_INLINE void store(float *to, F8 lanes) { std::memcpy(to, &lanes, sizeof lanes); }
GHA_INLINE void store(int32_t *to, I8 lanes) { std::memcpy(to, &lanes, sizeof lanes); }

GHA_INLINE F8 minimum(F8 a, F8 b) { return a < b ? a : b; }
GHA_INLINE F8 maximum(F8 a, F8 b) { return a > b ? a : b; }
GHA_INLINE F8 square_root(F8 a) {
    for (int k = 0; k < LANES; k++) a[k] = __builtin_sqrtf(a[k]);
    return a;
}

GHA_INLINE I8 load_indices(const uint16_t *from) {
    typedef uint16_t U8 __attribute__((vector_size(2 * LANES)));
    U8 lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return __builtin_convertvector(lanes, I8);
}

// Lane k is lane `of[k]` of a.
GHA_INLINE F8 pick(F8 a, I8 of) {
#if defined(__clang__)
    F8 picked;
    for (int k = 0; k < LANES; k++) picked[k] = a[of[k]];
    return picked;
#else
    return __builtin_shuffle(a, of);
#endif
}

// Sums of eight vectors' lanes, a tree each: lane k is the sum of parts[k].
GHA_INLINE F8 sums(const Register *parts) {
    F8 twos[4], fours[2];
    for (int k = 0; k < 4; k++) {
        const F8 a = parts[2 * k].lanes, b = parts[2 * k + 1].lanes;
        twos[k] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14) +
                  __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int k = 0; k < 2; k++) {
        const F8 a = twos[2 * k], b = twos[2 * k + 1];
        fours[k] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
                   __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return __builtin_shufflevector(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

GHA_INLINE float total(F8 a) {
    const F8 b = a + __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3);
    const F8 c = b + __builtin_shufflevector(b, b, 2, 3, 0, 1, 6, 7, 4, 5);
    return c[0] + c[1];
}
GHA_INLINE int total(I8 a) {
    const I8 b = a + __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3);
    const I8 c = b + __builtin_shufflevector(b, b, 2, 3, 0, 1, 6, 7, 4, 5);
    return c[0] + c[1];
}
