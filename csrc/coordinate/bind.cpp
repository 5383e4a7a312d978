// SPDX-License-Identifier: Apache-2.0
#include "coordinate/op.h"
#include "core/bind.h"

namespace ff {

void bind_coordinate(py::module_& m) {
  bind_params<NormParams>(m, "NormParams");
  bind_params<LinePoolParams>(m, "LinePoolParams");
  bind_params<CoordinateParams>(m, "CoordinateParams");
}

}  // namespace ff
