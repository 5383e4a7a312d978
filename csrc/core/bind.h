// SPDX-License-Identifier: Apache-2.0
// What every bind.cpp needs. Tensors come as addresses: the extension does not know torch, and Python owns all memory.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/gil.h"
#include "core/kernels.h"

namespace ff {

namespace py = pybind11;
using Address = std::uintptr_t;  // data_ptr(), 0 for "none"

inline void* pointer(Address address) { return reinterpret_cast<void*>(address); }

// Runs the float64 or the float32 kernel without the GIL.
template <class Params>
void run(void (*f32)(const Params&), void (*f64)(const Params&), bool wide, const Params& params) {
  const WithoutGil release;
  (wide ? f64 : f32)(params);
}

}  // namespace ff
