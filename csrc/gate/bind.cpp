// SPDX-License-Identifier: Apache-2.0
#include "gate/op.h"
#include "norm/bind.h"

namespace ff {
namespace {

// n, h, w, c, hidden units or taps, act, gate_act, linear, pool
using ShapeList = std::array<idx, 9>;
// w1, b1, w2, b2, sw, sb, or their gradients
using ParameterList = std::array<Address, 6>;

GateParams gate(const ShapeList& s, const ParameterList& w, Address x, Address means, Address pixels, int threads) {
  GateParams p{};
  p.n = s[0], p.h = s[1], p.w = s[2], p.c = s[3], p.hidden = s[4];
  p.act = static_cast<Act>(s[5]), p.gate_act = static_cast<Act>(s[6]), p.linear = s[7] != 0, p.pool = s[8] != 0;
  p.w1 = pointer(w[0]), p.b1 = pointer(w[1]), p.w2 = pointer(w[2]), p.b2 = pointer(w[3]);
  p.sw = pointer(w[4]), p.sb = pointer(w[5]);
  p.x = pointer(x), p.means = pointer(means), p.pixels = pointer(pixels), p.threads = threads;
  return p;
}

}  // namespace

void bind_gate(py::module_& m) {
  m.def("gate_fwd", [](bool wide, bool train, const ShapeList& s, Address x, const ParameterList& w, Address out,
                       Address means, Address pixels, int threads, const LinkList& link) {
    GateParams p = gate(s, w, x, means, pixels, threads);
    p.before = before_params(link);
    p.out = pointer(out);
    if (train)
      run(gate_train_f32, gate_train_f64, wide, p);
    else
      run(gate_fwd_f32, gate_fwd_f64, wide, p);
  });
  m.def("gate_bwd", [](bool wide, const ShapeList& s, Address dout, Address x, Address means, Address pixels,
                       const ParameterList& w, Address dx, const ParameterList& d, int threads,
                       const LinkList& link) {
    GateParams p = gate(s, w, x, means, pixels, threads);
    p.before = before_params(link);
    p.dout = pointer(dout), p.dx = pointer(dx), p.d_w1 = pointer(d[0]), p.d_b1 = pointer(d[1]), p.d_w2 = pointer(d[2]);
    p.d_b2 = pointer(d[3]), p.d_sw = pointer(d[4]), p.d_sb = pointer(d[5]);
    run(gate_bwd_f32, gate_bwd_f64, wide, p);
  });
}

}  // namespace ff
