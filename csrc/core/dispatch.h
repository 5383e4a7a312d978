// SPDX-License-Identifier: Apache-2.0
// The kernels of kernels.inc behind one name each: the active ISA's version runs, and is counted.
#pragma once
#include "core/isa.h"
#include "core/types.h"

namespace ff {

struct KernelInfo {
  const char* name;
  const idx* calls;  // [Isa::count], calls since the process started
};

// All kernels in the order of kernels.inc.
const KernelInfo* kernel_table(int* count);

}  // namespace ff
