// SPDX-License-Identifier: Apache-2.0
// Activations, element by element, in storage order (formulas in simd/math.h).
//   forward   y[i] = act(x[i])
//   backward  dx[i] = dy[i] · act'(x[i])
#pragma once
#include "core/types.h"

namespace ff {

struct ActivationParams {
  const void* x;   // [count]
  const void* dy;  // [count], backward only
  void* out;       // [count]: y or dx
  idx count;
  Act act;
  int threads;

  FF_REQUIRED(x, out, count, act, threads)
  FF_OPTIONAL(dy)
};

}  // namespace ff
