// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "separable_conv/op.h"

namespace ff {

void bind_separable_conv(py::module_& m) {
  bind_params<NormParams>(m, "NormParams");
  bind_params<LinkedInputParams>(m, "LinkedInputParams");
  bind_params<LinkedOutputParams>(m, "LinkedOutputParams");
  bind_params<DepthwiseShape>(m, "DepthwiseShape");
  bind_params<DepthwiseParams>(m, "DepthwiseParams");
  bind_params<PointwiseParams>(m, "PointwiseParams");
  bind_params<SeparableParams>(m, "SeparableParams");
}

}  // namespace ff
