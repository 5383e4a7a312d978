// SPDX-License-Identifier: Apache-2.0
#include "bottleneck/op.h"
#include "core/bind.h"

namespace ff {

void bind_bottleneck(py::module_& m) {
  bind_params<NormParams>(m, "NormParams");
  bind_params<DepthwiseShape>(m, "DepthwiseShape");
  bind_params<BottleneckParams>(m, "BottleneckParams");
}

}  // namespace ff
