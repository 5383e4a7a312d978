// SPDX-License-Identifier: Apache-2.0
// A normalisation's tensors as they come from Python.
#pragma once
#include <pybind11/stl.h>

#include <array>

#include "core/bind.h"

namespace ff {

// weight, bias, mean, var, stats, d_weight, d_bias
using NormList = std::array<Address, 7>;

inline NormParams norm_params(const NormList& v, double eps) {
  return {pointer(v[0]), pointer(v[1]), pointer(v[2]), pointer(v[3]), eps, pointer(v[4]), pointer(v[5]), pointer(v[6])};
}

}  // namespace ff
