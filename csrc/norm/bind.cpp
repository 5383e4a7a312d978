// SPDX-License-Identifier: Apache-2.0
#include "norm/bind.h"
#include "norm/op.h"

namespace ff {

void bind_norm(py::module_& m) {
  m.def("batch_norm_fwd", [](bool wide, bool train, idx rows, idx channels, Address x, const NormList& norm, double eps,
                             int act, bool batch_stats, Address out, int threads) {
    BatchNormParams p{};
    p.rows = rows, p.channels = channels, p.x = pointer(x), p.norm = norm_params(norm, eps);
    p.act = static_cast<Act>(act), p.batch_stats = batch_stats, p.out = pointer(out), p.threads = threads;
    if (train)
      run(batch_norm_train_f32, batch_norm_train_f64, wide, p);
    else
      run(batch_norm_fwd_f32, batch_norm_fwd_f64, wide, p);
  });
  m.def("batch_norm_bwd", [](bool wide, idx rows, idx channels, Address dout, Address x, const NormList& norm, int act,
                             bool batch_stats, Address dx, int threads) {
    BatchNormParams p{};
    p.rows = rows, p.channels = channels, p.dout = pointer(dout), p.x = pointer(x), p.norm = norm_params(norm, 0);
    p.act = static_cast<Act>(act), p.batch_stats = batch_stats, p.out = pointer(dx), p.threads = threads;
    run(batch_norm_bwd_f32, batch_norm_bwd_f64, wide, p);
  });
}

}  // namespace ff
