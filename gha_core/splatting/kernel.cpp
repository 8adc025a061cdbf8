#include "kernels.h"

void bind_splatting(nb::module_ &) {}
