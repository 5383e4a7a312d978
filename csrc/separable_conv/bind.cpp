// SPDX-License-Identifier: Apache-2.0
#include "norm/bind.h"
#include "separable_conv/op.h"

namespace ff {
namespace {

// n, h, w, c, oh, ow, kh, kw, sh, sw, top, left
using ShapeList = std::array<idx, 12>;

DepthwiseShape shape(const ShapeList& v) {
  return {v[0], v[1], v[2], v[3], v[4], v[5], static_cast<int>(v[6]), static_cast<int>(v[7]),
          static_cast<int>(v[8]), static_cast<int>(v[9]), static_cast<int>(v[10]), static_cast<int>(v[11])};
}

}  // namespace

void bind_separable_conv(py::module_& m) {
  m.def("depthwise_conv2d_fwd",
        [](bool wide, const ShapeList& s, Address x, Address w, Address bias, Address y, int threads) {
          DepthwiseParams p{};
          p.shape = shape(s), p.x = pointer(x), p.w = pointer(w), p.bias = pointer(bias), p.y = pointer(y);
          p.threads = threads;
          run(depthwise_conv2d_fwd_f32, depthwise_conv2d_fwd_f64, wide, p);
        });
  m.def("depthwise_conv2d_bwd",
        [](bool wide, const ShapeList& s, Address dy, Address x, Address w, Address dx, Address dw, Address db, int threads) {
          DepthwiseParams p{};
          p.shape = shape(s), p.dy = pointer(dy), p.x = pointer(x), p.w = pointer(w);
          p.dx = pointer(dx), p.dw = pointer(dw), p.db = pointer(db), p.threads = threads;
          run(depthwise_conv2d_bwd_f32, depthwise_conv2d_bwd_f64, wide, p);
        });
  m.def("depthwise_norm_fwd",
        [](bool wide, bool train, const ShapeList& s, Address x, Address w, Address bias, const NormList& n, double eps,
           int act, bool batch_stats, Address out, Address y, int threads, const LinkList& link) {
          DepthwiseParams p{};
          p.shape = shape(s), p.x = pointer(x), p.w = pointer(w), p.bias = pointer(bias), p.norm = norm_params(n, eps);
          p.act = static_cast<Act>(act), p.batch_stats = batch_stats, p.out = pointer(out), p.y = pointer(y);
          p.threads = threads, p.before = before_params(link);
          if (train)
            run(depthwise_norm_train_f32, depthwise_norm_train_f64, wide, p);
          else
            run(depthwise_norm_fwd_f32, depthwise_norm_fwd_f64, wide, p);
        });
  m.def("depthwise_norm_bwd",
        [](bool wide, const ShapeList& s, Address dout, Address x, Address y, Address w, const NormList& n, int act,
           bool batch_stats, Address dx, Address dw, Address db, int threads, const LinkList& link) {
          DepthwiseParams p{};
          p.shape = shape(s), p.dout = pointer(dout), p.x = pointer(x), p.y = pointer(y), p.w = pointer(w);
          p.norm = norm_params(n, 0), p.act = static_cast<Act>(act), p.batch_stats = batch_stats;
          p.dx = pointer(dx), p.dw = pointer(dw), p.db = pointer(db), p.threads = threads;
          p.before = before_params(link);
          run(depthwise_norm_bwd_f32, depthwise_norm_bwd_f64, wide, p);
        });
  m.def("pointwise_conv2d_fwd",
        [](bool wide, idx rows, idx in, idx out, Address x, Address w, Address bias, Address y, int threads) {
          PointwiseParams p{};
          p.rows = rows, p.in = in, p.out = out, p.x = pointer(x), p.w = pointer(w), p.bias = pointer(bias);
          p.y = pointer(y), p.threads = threads;
          run(pointwise_conv2d_fwd_f32, pointwise_conv2d_fwd_f64, wide, p);
        });
  m.def("pointwise_conv2d_bwd", [](bool wide, idx rows, idx in, idx out, Address dy, Address x, Address w, Address dx,
                                   Address dw, Address db, int threads) {
    PointwiseParams p{};
    p.rows = rows, p.in = in, p.out = out, p.dy = pointer(dy), p.x = pointer(x), p.w = pointer(w);
    p.dx = pointer(dx), p.dw = pointer(dw), p.db = pointer(db), p.threads = threads;
    run(pointwise_conv2d_bwd_f32, pointwise_conv2d_bwd_f64, wide, p);
  });
  m.def("separable_conv2d_fwd",
        [](bool wide, bool train, const ShapeList& s, idx out_channels, Address x, Address dw, Address dw_bias,
           const NormList& n1, double eps1, int act1, Address pw, Address pw_bias, const NormList& n2, double eps2,
           int act2, bool batch_stats, Address out, Address y1, Address y2, int threads, const LinkList& link) {
          SeparableParams p{};
          p.shape = shape(s), p.out_channels = out_channels, p.x = pointer(x), p.dw = pointer(dw);
          p.dw_bias = pointer(dw_bias), p.norm1 = norm_params(n1, eps1), p.act1 = static_cast<Act>(act1);
          p.pw = pointer(pw), p.pw_bias = pointer(pw_bias), p.norm2 = norm_params(n2, eps2), p.act2 = static_cast<Act>(act2);
          p.batch_stats = batch_stats, p.out = pointer(out), p.y1 = pointer(y1), p.y2 = pointer(y2);
          p.threads = threads, p.before = before_params(link), p.deferred = deferred_params(link);
          if (train)
            run(separable_conv2d_train_f32, separable_conv2d_train_f64, wide, p);
          else
            run(separable_conv2d_fwd_f32, separable_conv2d_fwd_f64, wide, p);
        });
  m.def("separable_conv2d_bwd",
        [](bool wide, const ShapeList& s, idx out_channels, Address dout, Address x, Address y1, Address y2, Address dw,
           const NormList& n1, int act1, Address pw, const NormList& n2, int act2, bool batch_stats, Address dx,
           Address d_dw, Address d_dw_bias, Address d_pw, Address d_pw_bias, int threads, const LinkList& link) {
          SeparableParams p{};
          p.shape = shape(s), p.out_channels = out_channels, p.dout = pointer(dout), p.x = pointer(x);
          p.y1 = pointer(y1), p.y2 = pointer(y2), p.dw = pointer(dw), p.pw = pointer(pw);
          p.norm1 = norm_params(n1, 0), p.act1 = static_cast<Act>(act1), p.norm2 = norm_params(n2, 0), p.act2 = static_cast<Act>(act2);
          p.batch_stats = batch_stats, p.dx = pointer(dx), p.d_dw = pointer(d_dw), p.d_dw_bias = pointer(d_dw_bias);
          p.d_pw = pointer(d_pw), p.d_pw_bias = pointer(d_pw_bias), p.threads = threads;
          p.before = before_params(link), p.deferred = deferred_params(link);
          run(separable_conv2d_bwd_f32, separable_conv2d_bwd_f64, wide, p);
        });
}

}  // namespace ff
