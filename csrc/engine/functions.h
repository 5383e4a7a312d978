// SPDX-License-Identifier: Apache-2.0
// The functions of elements that the engine knows, by their codes in a file. fastfer/engine/functions.py names them.
#pragma once

namespace ff {
namespace engine {

// Of x and the numbers a and b.
enum class UnaryOp : int {
  abs,          // |x|
  sqrt,
  rsqrt,        // 1 / sqrt(x)
  reciprocal,   // 1 / x
  exp,
  log,
  square,
  power,        // x^a
  tanh,
  erf,
  gelu,         // x · Φ(x)
  gelu_tanh,    // its approximation with tanh
  elu,          // x > 0 ? b·x : a·(exp(x) - 1)
  leaky_relu,   // x > 0 ? x : a·x, a for each channel: PReLU
  mish,         // x · tanh(softplus(x))
  softplus,     // a·x > b ? x : log(1 + exp(a·x)) / a
  softsign,     // x / (1 + |x|)
  log_sigmoid,
  clamp,        // at least a, at most b
  at_least,     // a
  at_most,      // b
  threshold,    // x > a ? x : b
  hard_shrink,  // |x| > a ? x : 0
  soft_shrink,  // towards 0 by a
  sign,
  floor,
  ceil,
  round,        // to even
  trunc,
  is_nan,       // 1 or 0, as all of the following
  equal,        // x == a
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  sin,          // numbers again; codes stay what they were
  cos,
  count
};

// Of x and y; comparisons give 1 or 0.
enum class BinaryOp : int {
  add,
  sub,
  mul,
  div,
  maximum,
  minimum,
  power,
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  leaky_relu,  // x > 0 ? x : y·x
  count
};

// Of the elements along axes. argmax and argmin give the first place, counted in (C, H, W) order.
enum class ReduceOp : int {
  sum,
  mean,
  maximum,
  minimum,
  product,
  norm1,
  norm2,
  variance,
  deviation,
  argmax,
  argmin,
  log_sum_exp,
  count
};

// How a map is read between its pixels, and what stands outside of it.
enum class Sampling : int { bilinear, nearest, bicubic, count };
enum class Outside : int { zeros, border, reflection, count };

}  // namespace engine
}  // namespace ff
