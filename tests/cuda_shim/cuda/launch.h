// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/launch.h on the host: every thread of the grid in turn. Good for kernels whose threads do not cooperate.
#pragma once
#include <cstdint>

#include "cuda/device.cuh"

namespace ff::cuda {

inline bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// At most three blocks, so that larger inputs go round the grid-stride loop.
inline unsigned grid_blocks(index_t items, int threads) {
  const index_t needed = (items + threads - 1) / threads;
  return static_cast<unsigned>(needed < 3 ? needed : 3);
}

template <class... Params, class... Args>
void launch(const char*, void (*kernel)(Params...), unsigned blocks, int threads, void*, Args... args) {
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < static_cast<unsigned>(threads); ++threadIdx.x) kernel(args...);
}

}  // namespace ff::cuda
