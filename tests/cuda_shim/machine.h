// SPDX-License-Identifier: Apache-2.0
// A CUDA machine on the host: each thread of a block is a fiber, which runs until it meets the others. Block barriers
// and warp collectives are rendezvous that name the line they stand on, so that divergence is an error and not a hang.
#pragma once
#include <cstddef>
#include <cstdint>

namespace shim {

constexpr int kWarp = 32;
constexpr int kSlot = 64;  // bytes that a lane may hand to its warp

struct Place {
  const char* file;
  int line;
};

// Indices of the running thread.
struct Thread {
  int rank;
  std::int64_t block[3];
  std::int64_t grid[3];
};
const Thread& thread();

// Counts the block barriers of this launch; shared memory written in an epoch is read by other threads in later ones.
std::uint64_t epoch();
// The epoch that the running block began with.
std::uint64_t block_epoch();
// Counts the warp collectives that the running thread took part in since the last barrier.
std::uint64_t warp_epoch();

void block_barrier(Place place);
// Hands `bytes` at `mine` to the warp and returns the warp's slots, kSlot bytes a lane, once all lanes have come.
const unsigned char* warp_exchange(const void* mine, std::size_t bytes, Place place);

// Ends the launch with a message; the fibers are abandoned.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// From now on launches run only about so many of their blocks, 0 for all.
void sample(std::int64_t blocks);

using Body = void (*)(const std::int64_t* arguments);
// Runs the grid, block by block; the message of the first error, or nullptr.
const char* run(Body body, const std::int64_t* arguments, const std::int64_t grid[3], int threads);

}  // namespace shim
