// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "pool/op.h"

namespace ff {

void bind_pool(py::module_& m) {
  bind_params<MaxPoolParams>(m, "MaxPoolParams");
  bind_params<GlobalPoolParams>(m, "GlobalPoolParams");
}

}  // namespace ff
