// SPDX-License-Identifier: Apache-2.0
// The extension links no OpenMP library: a second runtime beside torch's would fight it for the cores. Instead the
// entry point that every OpenMP runtime exports for GCC, GOMP_parallel, is looked up in the libraries loaded.
#include "core/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "core/system.h"

namespace ff {
namespace {

using RegionFn = void (*)(void*);
using GompParallel = void (*)(RegionFn, void*, unsigned threads, unsigned flags);
using IntFn = int (*)();

struct Runtime {
  std::string file = "none";
  GompParallel parallel = nullptr;
  IntFn thread_num = nullptr, in_parallel = nullptr, num_threads = nullptr;
};

// torch's wheels carry libgomp under its plain or a hashed name; Intel's and LLVM's runtimes export the same symbols.
bool is_runtime(const char* path) {
  const char* slash = std::strrchr(path, '/');
  const char* base = slash ? slash + 1 : path;
  for (const char* stem : {"libgomp", "libiomp5", "libomp"}) {
    const size_t length = std::strlen(stem);
    if (std::strncmp(base, stem, length) == 0 && (base[length] == '.' || base[length] == '-')) return true;
  }
  return false;
}

Runtime* load() {
  const std::string file = loaded_library(is_runtime);
  if (file.empty()) return nullptr;
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (!library) return nullptr;
  auto* runtime = new Runtime;
  runtime->file = file;
  runtime->parallel = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  runtime->thread_num = reinterpret_cast<IntFn>(dlsym(library, "omp_get_thread_num"));
  runtime->in_parallel = reinterpret_cast<IntFn>(dlsym(library, "omp_in_parallel"));
  runtime->num_threads = reinterpret_cast<IntFn>(dlsym(library, "omp_get_num_threads"));
  if (runtime->parallel && runtime->thread_num && runtime->in_parallel && runtime->num_threads) return runtime;
  delete runtime;
  return nullptr;
}

// Looked up again until found: torch may be imported after the extension.
const Runtime* runtime() {
  static std::atomic<Runtime*> found{nullptr};
  Runtime* current = found.load(std::memory_order_acquire);
  if (current) return current;
  Runtime* fresh = load();
  if (!fresh) return nullptr;
  if (found.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;
  return current;
}

// Whether this process is a forked child. OpenMP's threads do not survive a fork, but the runtime's records of them do:
// a region in the child of a process that had run one waits for ever. So a child runs alone, as PyTorch's data loader
// asks of its workers anyway. Registered when the library is loaded: the parent's regions may be torch's alone.
std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

struct Region {
  const Runtime* runtime;
  idx tasks;
  TaskFn fn;
  void* context;
};

void run_share(void* data) {
  const Region& region = *static_cast<const Region*>(data);
  const idx team = region.runtime->num_threads(), self = region.runtime->thread_num();
  const idx first = region.tasks * self / team, last = region.tasks * (self + 1) / team;
  for (idx task = first; task < last; ++task) region.fn(region.context, task);
}

}  // namespace

void parallel_for(idx tasks, int threads, TaskFn fn, void* context) {
  const bool alone = tasks <= 1 || threads <= 1 || forked.load(std::memory_order_relaxed);
  const Runtime* openmp = alone ? nullptr : runtime();
  if (!openmp || openmp->in_parallel()) {
    for (idx task = 0; task < tasks; ++task) fn(context, task);
    return;
  }
  Region region{openmp, tasks, fn, context};
  openmp->parallel(run_share, &region, static_cast<unsigned>(std::min<idx>(tasks, threads)), 0);
}

const char* openmp_runtime() {
  const Runtime* openmp = runtime();
  return openmp ? openmp->file.c_str() : "none";
}

}  // namespace ff
