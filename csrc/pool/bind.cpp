// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <array>

#include "core/bind.h"
#include "pool/op.h"

namespace ff {
namespace {

// n, h, w, c, oh, ow, kh, kw, sh, sw, top, left
using ShapeList = std::array<idx, 12>;

MaxPoolParams window(const ShapeList& v, int threads) {
  MaxPoolParams p{};
  p.n = v[0], p.h = v[1], p.w = v[2], p.c = v[3], p.oh = v[4], p.ow = v[5];
  p.kh = static_cast<int>(v[6]), p.kw = static_cast<int>(v[7]), p.sh = static_cast<int>(v[8]);
  p.sw = static_cast<int>(v[9]), p.top = static_cast<int>(v[10]), p.left = static_cast<int>(v[11]), p.threads = threads;
  return p;
}

using Kernel = void (*)(const GlobalPoolParams&);

void bind_global(py::module_& m, const char* forward_name, const char* backward_name, Kernel fwd32, Kernel fwd64,
                 Kernel bwd32, Kernel bwd64) {
  m.def(forward_name, [fwd32, fwd64](bool wide, idx n, idx pixels, idx c, Address x, Address avg, Address max,
                                     Address positions, int threads) {
    run(fwd32, fwd64, wide,
        GlobalPoolParams{n, pixels, c, pointer(x), pointer(avg), pointer(max), static_cast<int32_t*>(pointer(positions)),
                         nullptr, nullptr, nullptr, threads});
  });
  m.def(backward_name, [bwd32, bwd64](bool wide, idx n, idx pixels, idx c, Address davg, Address dmax, Address positions,
                                      Address dx, int threads) {
    run(bwd32, bwd64, wide,
        GlobalPoolParams{n, pixels, c, nullptr, nullptr, nullptr, static_cast<int32_t*>(pointer(positions)),
                         pointer(davg), pointer(dmax), pointer(dx), threads});
  });
}

}  // namespace

void bind_pool(py::module_& m) {
  m.def("max_pool2d_fwd", [](bool wide, const ShapeList& s, Address x, Address y, Address positions, int threads) {
    MaxPoolParams p = window(s, threads);
    p.x = pointer(x), p.y = pointer(y), p.positions = pointer(positions);
    if (positions)
      run(max_pool2d_train_f32, max_pool2d_train_f64, wide, p);
    else
      run(max_pool2d_fwd_f32, max_pool2d_fwd_f64, wide, p);
  });
  m.def("max_pool2d_bwd", [](bool wide, const ShapeList& s, Address dy, Address positions, Address dx, int threads) {
    MaxPoolParams p = window(s, threads);
    p.dy = pointer(dy), p.positions = pointer(positions), p.dx = pointer(dx);
    run(max_pool2d_bwd_f32, max_pool2d_bwd_f64, wide, p);
  });
  bind_global(m, "global_avg_pool_fwd", "global_avg_pool_bwd", global_avg_pool_fwd_f32, global_avg_pool_fwd_f64,
              global_avg_pool_bwd_f32, global_avg_pool_bwd_f64);
  bind_global(m, "global_max_pool_fwd", "global_max_pool_bwd", global_max_pool_fwd_f32, global_max_pool_fwd_f64,
              global_max_pool_bwd_f32, global_max_pool_bwd_f64);
  bind_global(m, "global_avg_max_pool_fwd", "global_avg_max_pool_bwd", global_avg_max_pool_fwd_f32,
              global_avg_max_pool_fwd_f64, global_avg_max_pool_bwd_f32, global_avg_max_pool_bwd_f64);
}

}  // namespace ff
