#include "kernels.h"

void bind_mesh_rasterisation(nb::module_ &) {}
