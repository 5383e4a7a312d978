// SPDX-License-Identifier: Apache-2.0
// What stands between the kernels of a recorded training step (fastfer/step): sums, copies and counters that torch
// computed while the step was recorded. Each gives the very bits of torch's own operator.
#pragma once
#include "core/types.h"

namespace ff {

// out = a + b; out may be a.
struct AddParams {
  idx count;
  const void *a, *b;
  void* out;  // [count] each
  int threads;

  FF_REQUIRED(count, a, b, out, threads)
  FF_OPTIONAL()
};

// out = a · b[0]
struct ScaleParams {
  idx count;
  const void *a, *b;
  void* out;  // [count]

  FF_REQUIRED(count, a, b, out)
  FF_OPTIONAL()
};

// Elements of 4 or 8 bytes, whatever they are, in four loops with steps in elements: the layout of a small tensor
// changes.
struct StridedCopyParams {
  idx n0, n1, n2, n3, source0, source1, source2, source3, target0, target1, target2, target3;
  const void* source;
  void* target;

  FF_REQUIRED(n0, n1, n2, n3, source0, source1, source2, source3, target0, target1, target2, target3, source, target)
  FF_OPTIONAL()
};

struct CopyParams {
  idx bytes;
  const void* source;
  void* target;
  int threads;

  FF_REQUIRED(bytes, source, target, threads)
  FF_OPTIONAL()
};

struct FillParams {
  idx count;
  double value;
  void* out;  // [count]

  FF_REQUIRED(count, value, out)
  FF_OPTIONAL()
};

// A counter, += by: of 64 bits, or of optimisers, which count in floats.
struct CountParams {
  idx by;
  void* counter;

  FF_REQUIRED(by, counter)
  FF_OPTIONAL()
};

}  // namespace ff
