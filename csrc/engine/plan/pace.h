// SPDX-License-Identifier: Apache-2.0
// Whether a short image is quicker on all threads or on one, by trying. What threads hand to each other costs 30 to 300
// ns a line, by where the system, or a virtual machine's host, puts them at the moment: for FGW-FER 51 or 120 µs on two
// threads, always 70 on one. Runs that follow each other closely are timed, and now and then the slower way is tried.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "engine/threads.h"

namespace ff::engine {

class Pace {
 public:
  using Clock = std::chrono::steady_clock;
  struct Run {
    bool together, counts;
    Clock::time_point start;
  };

  // How the next run is to be done; straight after another one, or after a pause, in which workers went to sleep.
  Run begin(bool together_after_pause) {
    const Clock::time_point now = Clock::now();
    const auto pause = now.time_since_epoch() - Clock::duration(ended_.load(std::memory_order_relaxed));
    if (pause > std::chrono::microseconds(spin())) return {together_after_pause, false, now};
    const uint32_t turn = turn_.fetch_add(1, std::memory_order_relaxed) % kTurns;
    const float one = seconds_[0].load(std::memory_order_relaxed), all = seconds_[1].load(std::memory_order_relaxed);
    const bool faster = all < one, trial = turn < 2;
    return {faster != trial, turn > 0 && turn != 2, now};  // the first run after a change wakes workers
  }

  void end(const Run& run) {
    const Clock::time_point now = Clock::now();
    ended_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
    if (!run.counts) return;
    std::atomic<float>& seconds = seconds_[run.together];
    const float before = seconds.load(std::memory_order_relaxed),
                taken = std::chrono::duration<float>(now - run.start).count();
    // An interruption must not decide.
    seconds.store(before == 0.f ? taken : before + (std::min(taken, 2 * before) - before) / 4,
                  std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kTurns = 128;
  std::atomic<uint32_t> turn_{0};
  std::atomic<float> seconds_[2] = {{0.f}, {0.f}};  // on one thread, on all
  std::atomic<Clock::rep> ended_{0};
};

}  // namespace ff::engine
