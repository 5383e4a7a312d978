// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "elementwise/op.h"

namespace ff {

void bind_elementwise(py::module_& m) { bind_params<ActivationParams>(m, "ActivationParams"); }

}  // namespace ff
