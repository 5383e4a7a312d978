// SPDX-License-Identifier: Apache-2.0
#include "attention/op.h"
#include "core/bind.h"

namespace ff {

void bind_attention(py::module_& m) {
  m.def("dot_product_attention_fwd",
        [](bool wide, idx batch, idx queries, idx keys, idx depth, idx width, Address q, Address k, Address v,
           Address scale, double factor, Address out, Address stats, int threads) {
          DotProductParams p{};
          p.batch = batch, p.queries = queries, p.keys = keys, p.depth = depth, p.width = width;
          p.q = pointer(q), p.k = pointer(k), p.v = pointer(v), p.scale = pointer(scale), p.factor = factor;
          p.out = pointer(out), p.stats = pointer(stats), p.threads = threads;
          run(dot_product_attention_fwd_f32, dot_product_attention_fwd_f64, wide, p);
        });
  m.def("dot_product_attention_bwd",
        [](bool wide, idx batch, idx queries, idx keys, idx depth, idx width, Address dout, Address q, Address k,
           Address v, Address scale, double factor, Address out, Address stats, Address dq, Address dk, Address dv,
           Address dscale, int threads) {
          DotProductParams p{};
          p.batch = batch, p.queries = queries, p.keys = keys, p.depth = depth, p.width = width;
          p.q = pointer(q), p.k = pointer(k), p.v = pointer(v), p.scale = pointer(scale), p.factor = factor;
          p.out = pointer(out), p.stats = pointer(stats), p.dout = pointer(dout);
          p.dq = pointer(dq), p.dk = pointer(dk), p.dv = pointer(dv), p.dscale = pointer(dscale), p.threads = threads;
          run(dot_product_attention_bwd_f32, dot_product_attention_bwd_f64, wide, p);
        });
  m.def("additive_attention_fwd",
        [](bool wide, idx batch, idx tokens, idx dim, idx hidden, Address x, Address h, Address weight, Address bias,
           Address v, Address v_bias, Address out, Address u, Address weights, int threads) {
          AdditiveParams p{};
          p.batch = batch, p.tokens = tokens, p.dim = dim, p.hidden = hidden, p.x = pointer(x), p.h = pointer(h);
          p.weight = pointer(weight), p.bias = pointer(bias), p.v = pointer(v), p.v_bias = pointer(v_bias);
          p.out = pointer(out), p.u = pointer(u), p.weights = pointer(weights), p.threads = threads;
          run(additive_attention_fwd_f32, additive_attention_fwd_f64, wide, p);
        });
  m.def("additive_attention_bwd",
        [](bool wide, idx batch, idx tokens, idx dim, idx hidden, Address dout, Address x, Address h, Address weight,
           Address v, Address u, Address weights, Address dx, Address dh, Address d_weight, Address d_bias, Address d_v,
           Address d_v_bias, int threads) {
          AdditiveParams p{};
          p.batch = batch, p.tokens = tokens, p.dim = dim, p.hidden = hidden, p.x = pointer(x), p.h = pointer(h);
          p.dout = pointer(dout), p.weight = pointer(weight), p.v = pointer(v), p.u = pointer(u);
          p.weights = pointer(weights), p.dx = pointer(dx), p.dh = pointer(dh), p.d_weight = pointer(d_weight);
          p.d_bias = pointer(d_bias), p.d_v = pointer(d_v), p.d_v_bias = pointer(d_v_bias), p.threads = threads;
          run(additive_attention_bwd_f32, additive_attention_bwd_f64, wide, p);
        });
}

}  // namespace ff
