// SPDX-License-Identifier: Apache-2.0
// A normalisation's tensors as they come from Python.
#pragma once
#include <pybind11/stl.h>

#include <array>

#include "core/bind.h"
#include "norm/op.h"

namespace ff {

// weight, bias, mean, var, stats, d_weight, d_bias
using NormList = std::array<Address, 7>;

inline NormParams norm_params(const NormList& v, double eps) {
  return {pointer(v[0]), pointer(v[1]), pointer(v[2]), pointer(v[3]), eps, pointer(v[4]), pointer(v[5]), pointer(v[6])};
}

// weight, bias, stats, d_weight, d_bias, d_stats of the norm before, its activation; then whether the last norm is deferred,
// and its d_stats
using LinkList = std::array<Address, 9>;

inline BeforeParams before_params(const LinkList& v) {
  return {pointer(v[0]), pointer(v[1]), pointer(v[2]), static_cast<Act>(v[6]), pointer(v[3]), pointer(v[4]), pointer(v[5])};
}

inline DeferredParams deferred_params(const LinkList& v) { return {v[7] != 0, pointer(v[8])}; }

}  // namespace ff
