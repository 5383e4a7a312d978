// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "loss/op.h"

namespace ff {
namespace {

// The first label that is not in [0, classes), or -1.
idx first_outside(std::uintptr_t labels, idx count, idx classes) {
  const idx* values = reinterpret_cast<const idx*>(labels);
  for (idx n = 0; n < count; ++n)
    if (values[n] < 0 || values[n] >= classes) return n;
  return -1;
}

}  // namespace

void bind_loss(py::module_& m) {
  bind_params<CenterParams>(m, "CenterParams");
  bind_params<TripletParams>(m, "TripletParams");
  bind_params<CrossEntropyParams>(m, "CrossEntropyParams");
  m.def("first_outside", first_outside, py::arg("labels"), py::arg("count"), py::arg("classes"));
}

}  // namespace ff
