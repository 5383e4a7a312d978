// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <array>

#include "cbam/op.h"
#include "core/bind.h"

namespace ff {
namespace {

using Kernel = void (*)(const CbamParams&);

CbamParams params(const std::array<idx, 6>& shape, const std::array<Address, 5>& channel, const std::array<Address, 5>& spatial,
                  double eps, bool batch_stats, const std::array<Address, 5>& saved, int threads) {
  CbamParams p{};
  p.n = shape[0], p.h = shape[1], p.w = shape[2], p.c = shape[3], p.hidden = shape[4], p.k = static_cast<int>(shape[5]);
  p.x = pointer(channel[0]), p.w1 = pointer(channel[1]), p.b1 = pointer(channel[2]);
  p.w2 = pointer(channel[3]), p.b2 = pointer(channel[4]);
  p.weight = pointer(spatial[0]), p.norm_weight = pointer(spatial[1]), p.norm_bias = pointer(spatial[2]);
  p.norm_mean = pointer(spatial[3]), p.norm_var = pointer(spatial[4]), p.eps = eps, p.batch_stats = batch_stats;
  p.pooled = pointer(saved[0]), p.positions = static_cast<int32_t*>(pointer(saved[1])), p.planes = pointer(saved[2]);
  p.channels = static_cast<int32_t*>(pointer(saved[3])), p.stats = pointer(saved[4]), p.threads = threads;
  return p;
}

// shape: n, h, w, c, hidden, k; channel: x, w1, b1, w2, b2; spatial: weight and the norm's four; saved: pooled, positions,
// planes, channels, stats; grads: x, w1, b1, w2, b2, weight, norm weight, norm bias.
void bind_gate(py::module_& m, const char* forward_name, const char* backward_name, Kernel fwd32, Kernel fwd64,
               Kernel train32, Kernel train64, Kernel bwd32, Kernel bwd64) {
  m.def(forward_name, [=](bool wide, bool train, const std::array<idx, 6>& shape, const std::array<Address, 5>& channel,
                          const std::array<Address, 5>& spatial, double eps, bool batch_stats,
                          const std::array<Address, 5>& saved, Address out, int threads) {
    CbamParams p = params(shape, channel, spatial, eps, batch_stats, saved, threads);
    p.out = pointer(out);
    run(train ? train32 : fwd32, train ? train64 : fwd64, wide, p);
  });
  m.def(backward_name, [=](bool wide, const std::array<idx, 6>& shape, const std::array<Address, 5>& channel,
                           const std::array<Address, 5>& spatial, bool batch_stats, const std::array<Address, 5>& saved,
                           Address dout, const std::array<Address, 8>& grads, int threads) {
    CbamParams p = params(shape, channel, spatial, 0, batch_stats, saved, threads);
    p.dout = pointer(dout), p.dx = pointer(grads[0]);
    p.d_w1 = pointer(grads[1]), p.d_b1 = pointer(grads[2]), p.d_w2 = pointer(grads[3]), p.d_b2 = pointer(grads[4]);
    p.d_weight = pointer(grads[5]), p.d_norm_weight = pointer(grads[6]), p.d_norm_bias = pointer(grads[7]);
    run(bwd32, bwd64, wide, p);
  });
}

}  // namespace

void bind_cbam(py::module_& m) {
  bind_gate(m, "cbam_fwd", "cbam_bwd", cbam_fwd_f32, cbam_fwd_f64, cbam_train_f32, cbam_train_f64, cbam_bwd_f32, cbam_bwd_f64);
  bind_gate(m, "channel_gate_fwd", "channel_gate_bwd", channel_gate_fwd_f32, channel_gate_fwd_f64, channel_gate_train_f32,
            channel_gate_train_f64, channel_gate_bwd_f32, channel_gate_bwd_f64);
  bind_gate(m, "spatial_gate_fwd", "spatial_gate_bwd", spatial_gate_fwd_f32, spatial_gate_fwd_f64, spatial_gate_train_f32,
            spatial_gate_train_f64, spatial_gate_bwd_f32, spatial_gate_bwd_f64);
}

}  // namespace ff
