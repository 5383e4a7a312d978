// SPDX-License-Identifier: Apache-2.0
// The primitives of every ISA behind one table each, and the ISA that an op's passes call: chosen once at the op's
// entry, the same in all of its tasks. Passes are compiled once, for any CPU; what is hot in them is in these tables.
#pragma once
#include "core/isa.h"
#include "primitives/depthwise.h"
#include "primitives/gemm.h"
#include "primitives/norm.h"

namespace ff {

// Of one ISA.
struct Registers {
  int bytes, count;  // of a vector; vectors
};

template <class T>
struct Primitives {
  Registers registers;
  GemmKernels<T> gemm;
  NormKernels<T> norm;
  DepthwiseKernels<T> depthwise;
};

// Of the running ISA.
template <class T>
const Primitives<T>& primitives();

Isa running_isa();

// Passes run on `isa` from here to the end of the block, in this thread.
class IsaScope {
 public:
  explicit IsaScope(Isa isa);
  ~IsaScope();
  IsaScope(const IsaScope&) = delete;
  IsaScope& operator=(const IsaScope&) = delete;

 private:
  Isa before_;
};

}  // namespace ff
