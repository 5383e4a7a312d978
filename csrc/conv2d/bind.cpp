// SPDX-License-Identifier: Apache-2.0
#include "conv2d/op.h"
#include "norm/bind.h"

namespace ff {
namespace {

// n, h, w, c, o, oh, ow, kh, kw, sh, sw, top, left
using ShapeList = std::array<idx, 13>;

ConvShape shape(const ShapeList& v) {
  return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], static_cast<int>(v[7]), static_cast<int>(v[8]),
          static_cast<int>(v[9]), static_cast<int>(v[10]), static_cast<int>(v[11]), static_cast<int>(v[12])};
}

// oh, ow, kh, kw, sh, sw, top, left
using PoolList = std::array<idx, 8>;

PoolShape pool(const PoolList& v) {
  return {v[0], v[1], static_cast<int>(v[2]), static_cast<int>(v[3]), static_cast<int>(v[4]), static_cast<int>(v[5]),
          static_cast<int>(v[6]), static_cast<int>(v[7])};
}

}  // namespace

void bind_conv2d(py::module_& m) {
  m.def("conv2d_fwd", [](bool wide, bool train, const ShapeList& s, Address x, Address weight, Address bias,
                         const NormList& norm, double eps, int act, bool batch_stats, Address out, Address y, int threads,
                         const PoolList& windows, Address best, Address positions, const LinkList& link) {
    Conv2dParams p{};
    p.deferred = deferred_params(link);
    p.shape = shape(s), p.x = pointer(x), p.weight = pointer(weight), p.bias = pointer(bias);
    p.norm = norm_params(norm, eps), p.act = static_cast<Act>(act), p.batch_stats = batch_stats;
    p.out = pointer(out), p.y = pointer(y), p.threads = threads;
    p.pool = pool(windows), p.best = pointer(best), p.positions = pointer(positions);
    if (train)
      run(conv2d_train_f32, conv2d_train_f64, wide, p);
    else
      run(conv2d_fwd_f32, conv2d_fwd_f64, wide, p);
  });
  m.def("conv2d_bwd", [](bool wide, const ShapeList& s, Address dout, Address x, Address y, Address weight,
                         const NormList& norm, int act, bool batch_stats, Address dx, Address d_weight, Address d_bias,
                         int threads, const PoolList& windows, Address best, Address positions, const LinkList& link) {
    Conv2dParams p{};
    p.deferred = deferred_params(link);
    p.pool = pool(windows), p.best = pointer(best), p.positions = pointer(positions);
    p.shape = shape(s), p.dout = pointer(dout), p.x = pointer(x), p.y = pointer(y), p.weight = pointer(weight);
    p.norm = norm_params(norm, 0), p.act = static_cast<Act>(act), p.batch_stats = batch_stats;
    p.dx = pointer(dx), p.d_weight = pointer(d_weight), p.d_bias = pointer(d_bias), p.threads = threads;
    run(conv2d_bwd_f32, conv2d_bwd_f64, wide, p);
  });
}

}  // namespace ff
