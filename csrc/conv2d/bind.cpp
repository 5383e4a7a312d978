// SPDX-License-Identifier: Apache-2.0
#include "conv2d/op.h"
#include "core/bind.h"

namespace ff {

void bind_conv2d(py::module_& m) {
  bind_params<NormParams>(m, "NormParams");
  bind_params<LinkedOutputParams>(m, "LinkedOutputParams");
  bind_params<ConvShape>(m, "ConvShape");
  bind_params<PoolShape>(m, "PoolShape");
  bind_params<Conv2dParams>(m, "Conv2dParams");
}

}  // namespace ff
