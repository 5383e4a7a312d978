// SPDX-License-Identifier: Apache-2.0
#include "engine/threads.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <vector>

#include "core/system.h"

namespace ff::engine {
namespace {

std::atomic<int> spin_us{50};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Returns once word is not `value`: spins, then sleeps. `sleepers` tells who changes the word that somebody sleeps:
// both sides store, then load, sequentially consistent, so that one of them sees the other.
void wait_while(std::atomic<uint32_t>& word, uint32_t value, std::atomic<uint32_t>& sleepers) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point end{};
  for (int i = 0; word.load(std::memory_order_acquire) == value; ++i) {
    pause();
    if (i % 64 != 63) continue;
    const Clock::time_point now = Clock::now();
    if (i == 63) end = now + std::chrono::microseconds(spin_us.load(std::memory_order_relaxed));
    if (now < end) continue;
    sleepers.fetch_add(1);
    while (word.load() == value) sleep_while(word, value);
    sleepers.fetch_sub(1);
    return;
  }
}

void wake(std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers, int threads) {
  if (sleepers.load()) sleep_end(word, threads);
}

class Team;

struct Worker {
  alignas(64) std::atomic<uint32_t> ticket{0};  // changes when there is a job for this worker
  std::atomic<uint32_t> sleeping{0};
  Team* team = nullptr;
  int thread = 0;
};

class Team {
 public:
  bool acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }

  // By the thread that has acquired the team.
  void run(int most, JobFn fn, void* context) {
    while (static_cast<int>(workers_.size()) < most - 1 && start()) {
    }
    const int workers = std::min(most - 1, static_cast<int>(workers_.size()));
    fn_ = fn, context_ = context, threads_ = workers + 1;
    left_.store(static_cast<uint32_t>(workers), std::memory_order_relaxed);
    for (int i = 0; i < workers; ++i) {
      Worker& worker = *workers_[static_cast<size_t>(i)];
      worker.ticket.fetch_add(1);
      wake(worker.ticket, worker.sleeping, 1);
    }
    fn(context, 0, threads_);
    for (uint32_t left; (left = left_.load(std::memory_order_acquire)) != 0;) wait_while(left_, left, waiting_);
  }

 private:
  bool start() {
    auto worker = std::make_unique<Worker>();
    worker->team = this, worker->thread = static_cast<int>(workers_.size()) + 1;
    workers_.reserve(workers_.size() + 1);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, serve, worker.get()) != 0) return false;
    pthread_detach(thread);
    workers_.push_back(std::move(worker));
    return true;
  }

  static void* serve(void* data) {
    Worker& worker = *static_cast<Worker*>(data);
    Team& team = *worker.team;
    for (uint32_t seen = 0;; ++seen) {
      wait_while(worker.ticket, seen, worker.sleeping);
      team.fn_(team.context_, worker.thread, team.threads_);
      team.left_.fetch_sub(1);
      wake(team.left_, team.waiting_, 1);
    }
    return nullptr;
  }

  std::atomic<bool> busy_{false};
  JobFn fn_ = nullptr;
  void* context_ = nullptr;
  int threads_ = 1;
  std::vector<std::unique_ptr<Worker>> workers_;
  alignas(64) std::atomic<uint32_t> left_{0};
  std::atomic<uint32_t> waiting_{0};
};

// Never destroyed: workers may outlive static destructors. A forked child has no workers, so it leaves the parent's
// team behind and makes its own.
std::atomic<Team*> current{nullptr};

Team& team() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
  (void)registered;
  Team* found = current.load(std::memory_order_acquire);
  if (found) return *found;
  auto* fresh = new Team;
  if (current.compare_exchange_strong(found, fresh)) return *fresh;
  delete fresh;
  return *found;
}

}  // namespace

void Barrier::wait(int members) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(members)) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1);
    wake(phase_, sleepers_, members);
  } else {
    wait_while(phase_, phase, sleepers_);
  }
}

void run_on_team(int most, JobFn fn, void* context) {
  if (most > 1) {
    Team& shared = team();
    if (shared.acquire()) {
      shared.run(most, fn, context);
      shared.release();
      return;
    }
  }
  fn(context, 0, 1);
}

void set_spin(int microseconds) { spin_us.store(microseconds, std::memory_order_relaxed); }
int spin() { return spin_us.load(std::memory_order_relaxed); }

}  // namespace ff::engine
