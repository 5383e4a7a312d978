// SPDX-License-Identifier: Apache-2.0
// What kernels stand on: indices, barriers, shuffles, shared memory, storage types, 16-byte packs. With math.cuh,
// mma.cuh and copy.cuh beside it, the only place that names CUDA's built-in variables and functions, so that one source
// compiles with nvcc, with NVRTC, which sees no system headers, and with a C++ compiler for the host (tests/cuda_shim),
// where every kernel runs without a GPU. Blocks are one-dimensional; every kernel parameter has 8 bytes: a pointer, an
// index_t or a double.
#pragma once

#ifdef __CUDACC__

namespace ff::cuda {

using index_t = long long;  // 64 bits wherever CUDA runs; NVRTC has no <cstdint>

// Rank in the block, in the warp, and of the warp.
__device__ __forceinline__ int thread_rank() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int lane_rank() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int warp_rank() { return static_cast<int>(threadIdx.x / 32); }

__device__ __forceinline__ index_t block_x() { return blockIdx.x; }
__device__ __forceinline__ index_t block_y() { return blockIdx.y; }
__device__ __forceinline__ index_t block_z() { return blockIdx.z; }
__device__ __forceinline__ index_t blocks_x() { return gridDim.x; }

// Barrier of the block: what threads wrote before it, all read after it.
__device__ __forceinline__ void sync() { __syncthreads(); }

// Ends the launch with an error unless `holds`; a GPU does not tell `message`.
__device__ __forceinline__ void require(bool holds, const char*) {
  if (!holds) __trap();
}

// The value of the lane whose rank differs by `mask`, in all 32 lanes of a warp.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// An array in shared memory, by the number of its elements; `Shared` is what functions take it as.
#define FF_SHARED(T, name, count) __shared__ __align__(16) T name[count]

template <class T>
using Shared = T*;

// The value, of which the compiler knows nothing: what is computed with it in a loop stays there.
__device__ __forceinline__ index_t opaque(index_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

// Whether this is the last of `blocks` calls on a ticket, by one thread of as many blocks; the ticket begins and ends
// as 0. What all threads of the blocks wrote before `publish` and a barrier is then there to be read by `load_written`.
__device__ __forceinline__ void publish() { __threadfence(); }
__device__ __forceinline__ bool take_ticket(unsigned* ticket, index_t blocks) {
  const unsigned last = static_cast<unsigned>(blocks - 1);
  return atomicInc(ticket, last) == last;
}
// Past the cache of the multiprocessor, which does not see what others wrote.
template <class C>
__device__ __forceinline__ C load_written(const C* p) {
  return __ldcg(p);
}

__device__ __forceinline__ float f16_bits_to_float(unsigned short bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}
__device__ __forceinline__ unsigned short float_to_f16_bits(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// Rounded to the nearest value with 11 bits of significand.
__device__ __forceinline__ unsigned float_to_tf32_bits(float x) {
  unsigned bits;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#else
  bits = __float_as_uint(x);
#endif
  return bits;
}

}  // namespace ff::cuda

#else
#include "cuda/host.cuh"  // a host build of the kernels brings all of the above
#endif

namespace ff::cuda {

// 16-bit floats as bits: storage only, arithmetic is float. Same layout as __half and __nv_bfloat16, whose headers
// NVRTC finds only where a toolkit is installed.
struct f16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

// Type that arithmetic on T is done in.
template <class T>
struct Compute {
  using type = T;
};
template <>
struct Compute<f16> {
  using type = float;
};
template <>
struct Compute<bf16> {
  using type = float;
};
template <class T>
using compute_t = typename Compute<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ float widen(f16 x) { return f16_bits_to_float(x.bits); }

// To storage, rounding to nearest even; NaN stays NaN.
template <class T>
__device__ __forceinline__ T narrow(compute_t<T> x) {
  return x;
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) {
  return {float_to_f16_bits(x)};
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
  bf16 y;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else  // before Ampere there is no such instruction
  const unsigned bits = __float_as_uint(x);
  y.bits = x == x ? static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : 0x7fffu;
#endif
  return y;
}

// Rank of this thread in the grid, and the number of threads, for grid-stride loops over kThreads-wide blocks.
template <int kThreads>
__device__ __forceinline__ index_t grid_rank() {
  return block_x() * kThreads + thread_rank();
}
template <int kThreads>
__device__ __forceinline__ index_t grid_size() {
  return blocks_x() * kThreads;
}

// i / n and the rest, for 0 <= i and 0 < n: in 32 bits where both fit, since a GPU divides 64 bits by a long routine.
struct Split {
  index_t whole, rest;
};
__device__ __forceinline__ Split split(index_t i, index_t n) {
  if (((i | n) >> 32) == 0) {
    const unsigned whole = static_cast<unsigned>(i) / static_cast<unsigned>(n);
    return {whole, static_cast<unsigned>(i) - whole * static_cast<unsigned>(n)};
  }
  const index_t whole = i / n;
  return {whole, i - whole * n};
}

// kVec neighbours, moved by one instruction.
template <class T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  static_assert(sizeof(T) * kVec <= 16, "a thread moves at most 16 bytes at once");
  T at[kVec];
};

// The first min(left, kVec) elements at p, which is aligned to the pack; the others are zero.
template <int kVec, class T>
__device__ __forceinline__ Pack<T, kVec> load(const T* __restrict__ p, index_t left) {
  if (left >= kVec) return *reinterpret_cast<const Pack<T, kVec>*>(p);
  Pack<T, kVec> v{};
#pragma unroll
  for (int i = 0; i < kVec; ++i)
    if (i < left) v.at[i] = p[i];
  return v;
}

template <int kVec, class T>
__device__ __forceinline__ void store(T* __restrict__ p, const Pack<T, kVec>& v, index_t left) {
  if (left >= kVec) {
    *reinterpret_cast<Pack<T, kVec>*>(p) = v;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i)
    if (i < left) p[i] = v.at[i];
}

// Sum over the 32 lanes, in every lane, always in the same order.
template <class C>
__device__ __forceinline__ C warp_sum(C value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

}  // namespace ff::cuda
