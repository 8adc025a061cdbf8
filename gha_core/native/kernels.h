// What every native kernel shares: array types at the Python boundary and run-time dispatch.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace nb = nanobind;

// Contiguous CPU buffers (NumPy arrays or anything with DLPack); not linked against torch.
template <typename T, typename... Shape>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu, Shape...>;

// One portable binary: the loader picks the widest clone that the processor has. Put it on the
// function that holds the inner loop (never on one with an OpenMP region: the outlined body would
// not be cloned), and force-inline what that loop calls.
// Feature levels, not processor names: "arch=haswell" would match that very processor only, and
// leave every AMD with the baseline.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define GHA_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define GHA_MULTIVERSION
#endif
#define GHA_INLINE inline __attribute__((always_inline))
