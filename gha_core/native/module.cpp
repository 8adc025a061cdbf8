// The extension module gha_core._native: one bind function per kernel folder.
#include "kernels.h"

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

void flush_here(bool flush) {
#if defined(__SSE2__)
    constexpr unsigned ZERO = 0x8040; // results and operands
    _mm_setcsr(flush ? _mm_getcsr() | ZERO : _mm_getcsr() & ~ZERO);
#elif defined(__aarch64__)
    constexpr uint64_t ZERO = uint64_t(1) << 24;
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    mode = flush ? mode | ZERO : mode & ~ZERO;
    asm volatile("msr fpcr, %0" : : "r"(mode));
#else
    (void)flush;
#endif
}

void flush_denormals(bool flush, int threads) {
#pragma omp parallel num_threads(threads)
    flush_here(flush);
}

} // namespace

void bind_projection(nb::module_ &m);         // gha_core/splatting/projection.cpp
void bind_splatting(nb::module_ &m);          // gha_core/splatting/kernel.cpp
void bind_mesh_rasterisation(nb::module_ &m); // gha_core/mesh_rasterisation/kernel.cpp
void bind_perceptron(nb::module_ &m);         // gha_core/perceptron/kernel.cpp

NB_MODULE(_native, m) {
    m.def("flush_denormals", &flush_denormals,
          "Whether denormal numbers are zero, in the caller and the threads that share its work.");
    bind_projection(m);
    bind_splatting(m);
    bind_mesh_rasterisation(m);
    bind_perceptron(m);
}
