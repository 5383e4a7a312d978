// SPDX-License-Identifier: Apache-2.0
// Host side of a launch, included by cuda.cu files only: error check, grid size, the launch itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/device.cuh"

namespace ff::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// Blocks of a grid-stride kernel over `items`: no more than the current device holds at 2048 threads a multiprocessor.
inline unsigned grid_blocks(index_t items, int threads) {
  int device = 0;
  int multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  const index_t needed = (items + threads - 1) / threads;
  const index_t resident = static_cast<index_t>(multiprocessors) * (2048 / threads);
  return static_cast<unsigned>(needed < resident ? needed : resident);
}

// Asynchronous on `stream`, a cudaStream_t of the current device; reports what the launch itself refuses.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), unsigned blocks, int threads, void* stream, Args... args) {
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(args...);
  check(cudaGetLastError(), name);
}

}  // namespace ff::cuda
