// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <array>

#include "coordinate/op.h"
#include "core/bind.h"

namespace ff {
namespace {

// n, h, w, c, middle, kind, act
using ShapeList = std::array<idx, 7>;
// weight, bias, mean, var, stats, d_weight, d_bias of the norm
using NormList = std::array<Address, 7>;
// weight, bias, h_weight, h_bias, w_weight, w_bias, or their gradients
using ParameterList = std::array<Address, 6>;
// pooled, at, y, gates
using SavedList = std::array<Address, 4>;

CoordinateParams attention(const ShapeList& s, const ParameterList& w, const NormList& norm, double eps, bool batch_stats,
                          const SavedList& saved, int threads) {
  CoordinateParams p{};
  p.n = s[0], p.h = s[1], p.w = s[2], p.c = s[3], p.middle = s[4];
  p.kind = static_cast<Pooling>(s[5]), p.act = static_cast<Act>(s[6]), p.batch_stats = batch_stats;
  p.weight = pointer(w[0]), p.bias = pointer(w[1]);
  p.h_weight = pointer(w[2]), p.h_bias = pointer(w[3]), p.w_weight = pointer(w[4]), p.w_bias = pointer(w[5]);
  p.norm = {pointer(norm[0]), pointer(norm[1]), pointer(norm[2]), pointer(norm[3]), eps,
            pointer(norm[4]), pointer(norm[5]), pointer(norm[6])};
  p.pooled = pointer(saved[0]), p.at = pointer(saved[1]), p.y = pointer(saved[2]), p.gates = pointer(saved[3]);
  p.threads = threads;
  return p;
}

}  // namespace

void bind_coordinate(py::module_& m) {
  m.def("cpsca_pool_fwd", [](bool wide, const std::array<idx, 4>& s, Address x, const std::array<Address, 4>& out, int threads) {
    LinePoolParams p{};
    p.n = s[0], p.h = s[1], p.w = s[2], p.c = s[3], p.x = pointer(x), p.threads = threads;
    p.row_mean = pointer(out[0]), p.row_max = pointer(out[1]), p.col_mean = pointer(out[2]), p.col_max = pointer(out[3]);
    run(cpsca_pool_fwd_f32, cpsca_pool_fwd_f64, wide, p);
  });
  m.def("cpsca_pool_bwd", [](bool wide, const std::array<idx, 4>& s, const std::array<Address, 4>& grads, Address x,
                             Address dx, int threads) {
    LinePoolParams p{};
    p.n = s[0], p.h = s[1], p.w = s[2], p.c = s[3], p.x = pointer(x), p.dx = pointer(dx), p.threads = threads;
    p.d_row_mean = pointer(grads[0]), p.d_row_max = pointer(grads[1]);
    p.d_col_mean = pointer(grads[2]), p.d_col_max = pointer(grads[3]);
    run(cpsca_pool_bwd_f32, cpsca_pool_bwd_f64, wide, p);
  });
  m.def("coordinate_attention_fwd",
        [](bool wide, bool train, const ShapeList& s, Address x, const ParameterList& w, const NormList& norm, double eps,
           bool batch_stats, Address out, const SavedList& saved, int threads) {
          CoordinateParams p = attention(s, w, norm, eps, batch_stats, saved, threads);
          p.x = pointer(x), p.out = pointer(out);
          if (train)
            run(coordinate_attention_train_f32, coordinate_attention_train_f64, wide, p);
          else
            run(coordinate_attention_fwd_f32, coordinate_attention_fwd_f64, wide, p);
        });
  m.def("coordinate_attention_bwd",
        [](bool wide, const ShapeList& s, Address dout, Address x, const SavedList& saved, const ParameterList& w,
           const NormList& norm, bool batch_stats, Address dx, const ParameterList& d, int threads) {
          CoordinateParams p = attention(s, w, norm, 0, batch_stats, saved, threads);
          p.dout = pointer(dout), p.x = pointer(x), p.dx = pointer(dx), p.d_weight = pointer(d[0]), p.d_bias = pointer(d[1]);
          p.d_h_weight = pointer(d[2]), p.d_h_bias = pointer(d[3]), p.d_w_weight = pointer(d[4]), p.d_w_bias = pointer(d[5]);
          run(coordinate_attention_bwd_f32, coordinate_attention_bwd_f64, wide, p);
        });
}

}  // namespace ff
