// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "gate/op.h"

namespace ff {

void bind_gate(py::module_& m) {
  bind_params<LinkedInputParams>(m, "LinkedInputParams");
  bind_params<GateParams>(m, "GateParams");
}

}  // namespace ff
