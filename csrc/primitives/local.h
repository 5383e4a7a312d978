// SPDX-License-Identifier: Apache-2.0
// The primitives as code of one ISA sees them: its own tables, and vectors of a constant size. Passes, which are
// compiled once and define FF_PASSES, see those of the running ISA and its size; the same headers serve both.
#pragma once
#ifdef FF_PASSES
#include "core/arena.h"
#include "core/tasks.h"
#include "primitives/table.h"
#else
#include "primitives/depthwise.h"
#include "primitives/gemm.h"
#include "primitives/norm.h"
#include "primitives/table.h"
#include "simd/arena.h"
#endif

namespace ff {
namespace FF_ISA {

#ifdef FF_PASSES

namespace {

template <class T>
FF_INLINE const GemmKernels<T>& gemm_kernels() {
  return primitives<T>().gemm;
}
template <class T>
FF_INLINE const NormKernels<T>& norm_kernels() {
  return primitives<T>().norm;
}
template <class T>
FF_INLINE const DepthwiseKernels<T>& depthwise_kernels() {
  return primitives<T>().depthwise;
}
template <class T>
FF_INLINE idx lane_count() {
  return primitives<T>().registers.bytes / static_cast<idx>(sizeof(T));
}
template <class T>
FF_INLINE int register_count() {
  return primitives<T>().registers.count;
}
template <class T>
FF_INLINE idx round_up_lanes(idx n) {
  const idx L = lane_count<T>();
  return ceil_div(n, L) * L;
}
FF_INLINE void stream_fence() { primitives<float>().norm.fence(); }

// As ff::for_tasks, on this op's ISA in every thread.
template <class Body>
FF_INLINE void for_tasks(idx tasks, int threads, const Body& body) {
  const Isa isa = running_isa();
  ff::for_tasks(tasks, threads, [&](idx task) {
    const IsaScope scope(isa);
    body(task);
  });
}

// dst = src, zeros up to a whole last vector; src null: zeros.
template <class T>
FF_INLINE void copy_padded(T* dst, const T* src, idx n) {
  for (idx i = 0; i < n; ++i) dst[i] = src ? src[i] : T(0);
  for (idx i = n, end = round_up_lanes<T>(n); i < end; ++i) dst[i] = T(0);
}

#else

extern const Registers registers;
extern const GemmKernels<float> gemm_f32;
extern const GemmKernels<double> gemm_f64;
extern const NormKernels<float> norm_f32;
extern const NormKernels<double> norm_f64;
extern const DepthwiseKernels<float> depthwise_f32;
extern const DepthwiseKernels<double> depthwise_f64;

namespace {

template <class T>
FF_INLINE const GemmKernels<T>& gemm_kernels() {
  if constexpr (sizeof(T) == sizeof(float))
    return gemm_f32;
  else
    return gemm_f64;
}
template <class T>
FF_INLINE const NormKernels<T>& norm_kernels() {
  if constexpr (sizeof(T) == sizeof(float))
    return norm_f32;
  else
    return norm_f64;
}
template <class T>
FF_INLINE const DepthwiseKernels<T>& depthwise_kernels() {
  if constexpr (sizeof(T) == sizeof(float))
    return depthwise_f32;
  else
    return depthwise_f64;
}
template <class T>
constexpr idx lane_count() {
  return lanes<T>;
}
template <class T>
constexpr int register_count() {
  return kRegisters;
}

#endif

// The tables' functions under short names.
template <class T, bool TransA>
FF_INLINE void gemm(const Gemm<T>& product) {
  (TransA ? gemm_kernels<T>().multiply_transposed : gemm_kernels<T>().multiply)(product);
}
template <class T>
FF_INLINE void pack_transposed(T* packed, const T* w, const T* scale, idx cols, idx depth, idx panel) {
  gemm_kernels<T>().pack_transposed(packed, w, scale, cols, depth, panel);
}
template <class T>
FF_INLINE void pack_rows(T* packed, const T* w, idx cols, idx depth, idx panel) {
  gemm_kernels<T>().pack_rows(packed, w, cols, depth, panel);
}
template <class T>
FF_INLINE void affine_act_rows(T* dst, idx dst_stride, const T* src, idx src_stride, idx rows, idx channels,
                               const T* scale, const T* shift, Act act, bool streamed = false) {
  norm_kernels<T>().affine_act(dst, dst_stride, src, src_stride, rows, channels, scale, shift, act, streamed);
}
template <class T>
FF_INLINE void moments_rows(const T* src, idx stride, idx rows, idx channels, T* mean, T* m2, T* copy = nullptr,
                            idx copy_stride = 0) {
  norm_kernels<T>().moments(src, stride, rows, channels, mean, m2, copy, copy_stride);
}
template <class T>
FF_INLINE void sums_rows(const T* g, idx stride, idx rows, idx channels, T* sum_g) {
  norm_kernels<T>().sums(g, stride, rows, channels, sum_g);
}
template <class T>
FF_INLINE void act_grad_rows(T* g, idx g_stride, const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows,
                             idx channels, const NormAct<T>& norm, T* sum_g, T* sum_gx, bool streamed = false,
                             bool scaled = false) {
  norm_kernels<T>().act_grad(g, g_stride, dz, dz_stride, y, y_stride, rows, channels, norm, sum_g, sum_gx, streamed,
                             scaled);
}
template <class T>
FF_INLINE void norm_act_grad_rows(T* dst, idx dst_stride, const T* dz, idx dz_stride, const T* y, idx y_stride,
                                  idx rows, idx channels, const NormAct<T>& norm, const NormGrad<T>& grad) {
  norm_kernels<T>().norm_act_grad(dst, dst_stride, dz, dz_stride, y, y_stride, rows, channels, norm, grad);
}
template <class T>
FF_INLINE RowKernels<T> row_kernels(const DepthwiseShape& s) {
  return depthwise_kernels<T>().rows(s);
}
template <class T>
FF_INLINE void pack_depthwise(T* packed, const T* w, const T* scale, idx channels, idx taps) {
  depthwise_kernels<T>().pack(packed, w, scale, channels, taps);
}

// Vectors in the panel that starts with `left` vectors to go: pairs, and a last one of 3 where the registers allow.
template <class T>
FF_INLINE int panel_vectors(idx left) {
  if (register_count<T>() == 32 && left == 3) return 3;
  return left >= 2 ? 2 : 1;
}

// Elements of packed B for `cols` columns of `depth`.
template <class T>
FF_INLINE idx packed_size(idx cols, idx depth) {
  return round_up_lanes<T>(cols) * depth;
}

template <class T>
FF_INLINE idx panel_count(idx vectors) {
  return register_count<T>() == 32 && vectors >= 3 ? vectors / 2 : ceil_div(vectors, 2);
}

// Whether a tensor of `count` elements in rows of `channels` is written past the caches: it would not stay in them
// until it is read again, and an ordinary store reads the line that it overwrites (copy of 256 MB: 63 instead of 40
// GB/s).
template <class T>
FF_INLINE bool streamable(const T* p, idx count, idx channels) {
  constexpr idx kStreamBytes = 16 << 20;
  return count * static_cast<idx>(sizeof(T)) > kStreamBytes && channels % lane_count<T>() == 0 &&
         reinterpret_cast<uintptr_t>(p) % (static_cast<size_t>(lane_count<T>()) * sizeof(T)) == 0;
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
