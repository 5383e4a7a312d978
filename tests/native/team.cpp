// SPDX-License-Identifier: Apache-2.0
// An OpenMP runtime of four functions, as much as core/parallel.cpp looks up: threads that sanitizers understand, and
// that any target has. Built as libgomp-team.so, whose name is one that the lookup accepts.
#include <thread>
#include <vector>

namespace {
thread_local int self = 0, team = 1;
}

extern "C" {
__attribute__((visibility("default"))) void GOMP_parallel(void (*fn)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  const auto member = [=](int number) {
    self = number, team = static_cast<int>(threads);
    fn(data);
    self = 0, team = 1;
  };
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(member, static_cast<int>(i));
  member(0);
  for (std::thread& other : others) other.join();
}
__attribute__((visibility("default"))) int omp_get_thread_num() { return self; }
__attribute__((visibility("default"))) int omp_get_num_threads() { return team; }
__attribute__((visibility("default"))) int omp_in_parallel() { return team > 1; }
}
