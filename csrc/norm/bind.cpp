// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "norm/op.h"

namespace ff {
namespace {

template <class T>
void update_running(const RunningParams& p) {
  const T *stats = static_cast<const T*>(p.stats), momentum = static_cast<T>(p.momentum);
  T *mean = static_cast<T*>(p.mean), *var = static_cast<T*>(p.var);
  for (idx c = 0; c < p.channels; ++c) {
    mean[c] += momentum * (stats[c] - mean[c]);
    var[c] += momentum * (stats[2 * p.channels + c] - var[c]);
  }
}

}  // namespace

void bind_norm(py::module_& m) {
  bind_params<NormParams>(m, "NormParams");
  bind_params<BatchNormParams>(m, "BatchNormParams");
  bind_params<RunningParams>(m, "RunningParams");
  const ParamsType& params = bind::params_type<RunningParams>();
  bind::add_kernel(m, "update_running_f32", params, bind::run<RunningParams, update_running<float>>);
  bind::add_kernel(m, "update_running_f64", params, bind::run<RunningParams, update_running<double>>);
}

}  // namespace ff
