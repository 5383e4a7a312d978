// SPDX-License-Identifier: Apache-2.0
#include "cbam/op.h"
#include "core/bind.h"

namespace ff {

void bind_cbam(py::module_& m) { bind_params<CbamParams>(m, "CbamParams"); }

}  // namespace ff
