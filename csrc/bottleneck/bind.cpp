// SPDX-License-Identifier: Apache-2.0
#include "bottleneck/op.h"
#include "norm/bind.h"

namespace ff {
namespace {

// n, h, w, c, oh, ow, kh, kw, sh, sw, top, left, in, out
using ShapeList = std::array<idx, 14>;
using Norms = std::array<NormList, 3>;
using Weights = std::array<Address, 3>;  // expansion, depthwise, projection

BottleneckParams params(const ShapeList& v, const Weights& w, const Norms& norms, const std::array<double, 3>& eps, int act,
                        bool batch_stats, bool residual, int threads) {
  BottleneckParams p{};
  p.shape = {v[0], v[1], v[2], v[3], v[4], v[5], static_cast<int>(v[6]), static_cast<int>(v[7]),
             static_cast<int>(v[8]), static_cast<int>(v[9]), static_cast<int>(v[10]), static_cast<int>(v[11])};
  p.in = v[12], p.out = v[13], p.expand = pointer(w[0]), p.dw = pointer(w[1]), p.project = pointer(w[2]);
  p.norm1 = norm_params(norms[0], eps[0]), p.norm2 = norm_params(norms[1], eps[1]), p.norm3 = norm_params(norms[2], eps[2]);
  p.act = static_cast<Act>(act), p.batch_stats = batch_stats, p.residual = residual, p.threads = threads;
  return p;
}

}  // namespace

void bind_bottleneck(py::module_& m) {
  m.def("inverted_bottleneck_fwd",
        [](bool wide, bool train, const ShapeList& s, Address x, const Weights& w, const Norms& norms,
           const std::array<double, 3>& eps, int act, bool batch_stats, bool residual, Address result, Address y1, Address y2,
           Address covariance, int threads) {
          BottleneckParams p = params(s, w, norms, eps, act, batch_stats, residual, threads);
          p.x = pointer(x), p.result = pointer(result), p.y1 = pointer(y1), p.y2 = pointer(y2);
          p.covariance = pointer(covariance);
          if (train)
            run(inverted_bottleneck_train_f32, inverted_bottleneck_train_f64, wide, p);
          else
            run(inverted_bottleneck_fwd_f32, inverted_bottleneck_fwd_f64, wide, p);
        });
  m.def("inverted_bottleneck_bwd",
        [](bool wide, const ShapeList& s, Address dout, Address x, Address y1, Address y2, Address covariance, const Weights& w,
           const Norms& norms, int act, bool batch_stats, bool residual, Address dx, const Weights& d_w, int threads) {
          BottleneckParams p = params(s, w, norms, {}, act, batch_stats, residual, threads);
          p.dout = pointer(dout), p.x = pointer(x), p.y1 = pointer(y1), p.y2 = pointer(y2), p.covariance = pointer(covariance);
          p.dx = pointer(dx), p.d_expand = pointer(d_w[0]), p.d_dw = pointer(d_w[1]), p.d_project = pointer(d_w[2]);
          run(inverted_bottleneck_bwd_f32, inverted_bottleneck_bwd_f64, wide, p);
        });
}

}  // namespace ff
