// SPDX-License-Identifier: Apache-2.0
// The threads of the engine: one small team for the process, whose workers start when first needed, spin a bounded time
// after a job and then sleep. A second caller does not wait for the team but runs alone; a forked child starts its own.
// The affinity of no thread is ever changed.
#pragma once
#include <atomic>
#include <cstdint>

namespace ff::engine {

// Lets threads wait for each other, again and again.
class Barrier {
 public:
  // Returns once `members` threads have called it.
  void wait(int members);

 private:
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::atomic<uint32_t> sleepers_{0};
};

// `thread` of `threads`, 0 being the caller.
using JobFn = void (*)(void* context, int thread, int threads);

// Runs fn on the caller and on up to most - 1 workers; `threads` may be any number from 1 on.
void run_on_team(int most, JobFn fn, void* context);

// How long workers and barriers spin before they sleep. Default 50 µs.
void set_spin(int microseconds);
int spin();

}  // namespace ff::engine
