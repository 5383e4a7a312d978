// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <vector>

namespace shim {
namespace {

constexpr std::size_t kStack = 128 << 10;
constexpr std::int64_t kMostBlocks[3] = {2147483647, 65535, 65535};  // as CUDA's

enum class State { ready, at_barrier, at_warp, done };

struct Fiber {
  ucontext_t start;  // entered once; then it goes on from where it left, by jumps, which cost no system call
  jmp_buf context;
  bool started;
  State state;
  Place place;
  std::uint64_t collectives;
};

struct Warp {
  alignas(16) unsigned char slots[2][kWarp * kSlot];  // two: a lane that runs ahead may not overwrite what others read
};

struct Machine {
  jmp_buf scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned char* stacks = nullptr;
  std::size_t stacked = 0;
  Body body = nullptr;
  const std::int64_t* arguments = nullptr;
  Thread current{};
  std::uint64_t epoch = 1, block_epoch = 1;
  std::int64_t most = 0;
  bool failed = false;
  char message[512];
};
Machine machine;

void leave(State state) {
  Fiber& fiber = machine.fibers[machine.current.rank];
  fiber.state = state;
  if (_setjmp(fiber.context) == 0) _longjmp(machine.scheduler, 1);
}

void enter() {
  for (;;) {  // a block a round
    machine.body(machine.arguments);
    leave(State::done);
  }
}

__attribute__((noinline)) void resume(int rank) {
  machine.current.rank = rank;
  Fiber& fiber = machine.fibers[rank];
  if (_setjmp(machine.scheduler)) return;
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

void wait(State state, Place place) {
  machine.fibers[machine.current.rank].place = place;
  leave(state);
}

// Fibers for a launch: those there are, unless more are needed or an error left them in the midst of a kernel.
void prepare(int threads) {
  if (machine.failed || threads > static_cast<int>(machine.fibers.size())) {
    const std::size_t bytes = kStack * threads;
    if (machine.stacks) munmap(machine.stacks, machine.stacked);
    machine.stacks = static_cast<unsigned char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    machine.stacked = bytes;
    machine.fibers.resize(threads);
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = machine.fibers[i];
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = machine.stacks + kStack * i;
      fiber.start.uc_stack.ss_size = kStack;
      fiber.started = false;
      makecontext(&fiber.start, enter, 0);
    }
  }
  machine.warps.resize(threads / kWarp);
  machine.failed = false;
}

bool same(Place a, Place b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

void report(const char* format, ...) {
  va_list list;
  va_start(list, format);
  std::vsnprintf(machine.message, sizeof machine.message, format, list);
  va_end(list);
  machine.failed = true;
}

// Whether all fibers [first, first + count) wait in `state` on one line; reports those that wait on two.
bool together(State state, int first, int count, const char* what) {
  const Fiber& leader = machine.fibers[first];
  for (int i = first; i < first + count; ++i)
    if (machine.fibers[i].state != state) return false;
  for (int i = first; i < first + count; ++i)
    if (!same(machine.fibers[i].place, leader.place)) {
      report("divergent %s: thread %d is at line %d, thread %d at line %d", what, first, leader.place.line, i,
             machine.fibers[i].place.line);
      return false;
    }
  return true;
}

void release(int first, int count) {
  for (int i = first; i < first + count; ++i) machine.fibers[i].state = State::ready;
}

// Lets those go on whom everyone has joined; whether there were any.
bool meet(int threads) {
  bool any = false;
  for (int first = 0; first < threads; first += kWarp)
    if (together(State::at_warp, first, kWarp, "warp collective")) {
      for (int i = first; i < first + kWarp; ++i) ++machine.fibers[i].collectives;
      release(first, kWarp);
      any = true;
    }
  if (!machine.failed && together(State::at_barrier, 0, threads, "barrier")) {
    ++machine.epoch;
    for (int i = 0; i < threads; ++i) machine.fibers[i].collectives = 0;
    release(0, threads);
    any = true;
  }
  return any;
}

// Whether a block is run: the first, the last, and evenly spread ones between, up to about `most`, 0 for all.
bool sampled(std::int64_t block, std::int64_t blocks) {
  if (machine.most == 0 || blocks <= machine.most || block == 0 || block == blocks - 1) return true;
  const std::int64_t every = blocks / machine.most;
  return block % every == block / every % every;  // not always the same column of a grid
}

void run_block(int threads) {
  for (int i = 0; i < threads; ++i) machine.fibers[i].collectives = 0;
  release(0, threads);
  machine.block_epoch = ++machine.epoch;
  for (;;) {
    int done = 0;
    for (int i = 0; i < threads && !machine.failed; ++i) {
      if (machine.fibers[i].state == State::ready) resume(i);
      done += machine.fibers[i].state == State::done;
    }
    if (machine.failed || done == threads) return;
    if (meet(threads)) continue;
    for (int i = 0; i < threads && !machine.failed; ++i)
      if (machine.fibers[i].state == State::at_barrier || machine.fibers[i].state == State::at_warp)
        report("divergent %s: thread %d waits at line %d for threads that never come",
               machine.fibers[i].state == State::at_barrier ? "barrier" : "warp collective", i,
               machine.fibers[i].place.line);
    return;
  }
}

}  // namespace

const Thread& thread() { return machine.current; }
std::uint64_t epoch() { return machine.epoch; }
std::uint64_t block_epoch() { return machine.block_epoch; }
std::uint64_t warp_epoch() { return machine.fibers[machine.current.rank].collectives; }

void block_barrier(Place place) { wait(State::at_barrier, place); }

const unsigned char* warp_exchange(const void* mine, std::size_t bytes, Place place) {
  const int rank = machine.current.rank;
  Fiber& fiber = machine.fibers[rank];
  unsigned char* slots = machine.warps[rank / kWarp].slots[fiber.collectives % 2];
  if (bytes > kSlot) fail("a lane handed %zu bytes to its warp, more than %d", bytes, kSlot);
  std::memcpy(slots + rank % kWarp * kSlot, mine, bytes);
  wait(State::at_warp, place);
  return slots;
}

void fail(const char* format, ...) {
  char text[384];
  va_list list;
  va_start(list, format);
  std::vsnprintf(text, sizeof text, format, list);
  va_end(list);
  const Thread& at = machine.current;
  report("%s (thread %d of block %lld, %lld, %lld)", text, at.rank, static_cast<long long>(at.block[0]),
         static_cast<long long>(at.block[1]), static_cast<long long>(at.block[2]));
  _longjmp(machine.scheduler, 1);
  __builtin_unreachable();
}

void sample(std::int64_t blocks) { machine.most = blocks; }

const char* run(Body body, const std::int64_t* arguments, const std::int64_t grid[3], int threads) {
  machine.body = body;
  machine.arguments = arguments;
  if (threads < kWarp || threads > 1024 || threads % kWarp) {
    report("expected 32 to 1024 threads in whole warps, got %d", threads);
    return machine.message;
  }
  for (int i = 0; i < 3; ++i)
    if (grid[i] < 1 || grid[i] > kMostBlocks[i]) {
      report("grid side %d: expected 1 to %lld blocks, got %lld", i, static_cast<long long>(kMostBlocks[i]),
             static_cast<long long>(grid[i]));
      return machine.message;
    }
  prepare(threads);
  std::memcpy(machine.current.grid, grid, sizeof machine.current.grid);
  const std::int64_t blocks = grid[0] * grid[1] * grid[2];
  for (std::int64_t z = 0; z < grid[2]; ++z)
    for (std::int64_t y = 0; y < grid[1]; ++y)
      for (std::int64_t x = 0; x < grid[0]; ++x) {
        if (!sampled(x + grid[0] * (y + grid[1] * z), blocks)) continue;
        machine.current.block[0] = x, machine.current.block[1] = y, machine.current.block[2] = z;
        run_block(threads);
        if (machine.failed) return machine.message;
      }
  return nullptr;
}

}  // namespace shim
