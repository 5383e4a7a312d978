// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "elementwise/op.h"

namespace ff {

void bind_elementwise(py::module_& m) {
  m.def("activation_fwd", [](bool wide, Address x, Address y, idx count, int act, int threads) {
    run(activation_fwd_f32, activation_fwd_f64, wide,
        {pointer(x), nullptr, pointer(y), count, static_cast<Act>(act), threads});
  });
  m.def("activation_bwd", [](bool wide, Address dy, Address x, Address dx, idx count, int act, int threads) {
    run(activation_bwd_f32, activation_bwd_f64, wide,
        {pointer(x), pointer(dy), pointer(dx), count, static_cast<Act>(act), threads});
  });
}

}  // namespace ff
