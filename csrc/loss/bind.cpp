// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>
#include <string>

#include "core/bind.h"
#include "loss/op.h"

namespace ff {
namespace {

void check_labels(const LabelParams& p) {
  for (idx n = 0; n < p.count; ++n)
    if (p.labels[n] < 0 || p.labels[n] >= p.classes)
      throw std::out_of_range("labels: expected 0 <= label < " + std::to_string(p.classes) + ", got " +
                              std::to_string(p.labels[n]));
}

}  // namespace

void bind_loss(py::module_& m) {
  bind_params<CenterParams>(m, "CenterParams");
  bind_params<TripletParams>(m, "TripletParams");
  bind_params<CrossEntropyParams>(m, "CrossEntropyParams");
  bind_params<LabelParams>(m, "LabelParams");
  const ParamsType& params = bind::params_type<LabelParams>();
  bind::add_kernel(m, "check_labels_f32", params, bind::run<LabelParams, check_labels>);
  bind::add_kernel(m, "check_labels_f64", params, bind::run<LabelParams, check_labels>);
}

}  // namespace ff
