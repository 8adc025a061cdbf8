// The extension module gha_core._native: one bind function per kernel folder.
#include "kernels.h"

void bind_projection(nb::module_ &m);         // gha_core/splatting/projection.cpp
void bind_splatting(nb::module_ &m);          // gha_core/splatting/kernel.cpp
void bind_mesh_rasterisation(nb::module_ &m); // gha_core/mesh_rasterisation/kernel.cpp
void bind_perceptron(nb::module_ &m);         // gha_core/perceptron/kernel.cpp

NB_MODULE(_native, m) {
    bind_projection(m);
    bind_splatting(m);
    bind_mesh_rasterisation(m);
    bind_perceptron(m);
}
