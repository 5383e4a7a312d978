// SPDX-License-Identifier: Apache-2.0
// Pooling. Activations are NHWC, dense.
//   max_pool2d   y[n,i,j,c] = max_kl x[n, i·sh + k - top, j·sw + l - left, c] over the window's elements inside the
//   image global       avg[n,c] = mean over the image, max[n,c] = its maximum
// NaN is the largest value. Where several elements are equal the first, row by row, is the maximum (the last NaN), as
// in torch; its place is kept for backward: k·kw + l in the window, or the pixel in the image.
#pragma once
#include "core/types.h"

namespace ff {

struct MaxPoolParams {
  idx n, h, w, c, oh, ow;
  int kh, kw, sh, sw, top, left;
  const void* x;     // [n,h,w,c]
  void* y;           // [n,oh,ow,c]
  void* positions;   // [n,oh,ow,c], uint8 where kh·kw <= 256, else int32; written by training, read by backward
  const void* dy;    // [n,oh,ow,c]
  void* dx;          // [n,h,w,c]
  int threads;

  FF_REQUIRED(n, h, w, c, oh, ow, kh, kw, sh, sw, top, left, positions, threads)
  FF_OPTIONAL(x, y, dy, dx)
};

struct GlobalPoolParams {
  idx n, pixels, c;
  const void* x;         // [n,pixels,c]
  void *avg, *max;       // [n,c], or null where not wanted
  int32_t* positions;    // [n,c] with max; read by backward
  const void *d_avg, *d_max;  // [n,c] or null
  void* dx;              // [n,pixels,c]
  int threads;

  FF_REQUIRED(n, pixels, c, threads)
  FF_OPTIONAL(x, avg, max, positions, d_avg, d_max, dx)
};

}  // namespace ff
