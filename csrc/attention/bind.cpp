// SPDX-License-Identifier: Apache-2.0
#include "attention/op.h"
#include "core/bind.h"

namespace ff {

void bind_attention(py::module_& m) {
  bind_params<DotProductParams>(m, "DotProductParams");
  bind_params<AdditiveParams>(m, "AdditiveParams");
}

}  // namespace ff
