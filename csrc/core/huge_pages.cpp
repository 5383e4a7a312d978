// SPDX-License-Identifier: Apache-2.0
#include "core/huge_pages.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#include "core/system.h"

namespace ff {
namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kLargest = size_t{1} << 62;  // rounding a size up to pages cannot overflow

struct Blocks {
  std::mutex mutex;
  std::multimap<size_t, void*> idle;       // by size
  std::unordered_map<void*, size_t> used;  // sizes
  size_t used_bytes = 0, idle_bytes = 0, peak_bytes = 0;
};

// Never destroyed: tensors may be freed after static destructors have run. Made when the library is loaded.
Blocks* const blocks = new Blocks;

// The lock is held across fork(): another thread may hold it at that moment, and the child, which does not have that
// thread, would wait for it for ever.
[[maybe_unused]] const int registered =
    pthread_atfork([] { blocks->mutex.lock(); }, [] { blocks->mutex.unlock(); }, [] { blocks->mutex.unlock(); });

void* map_aligned(size_t bytes) {
  const size_t room = bytes + kPage;
  void* raw = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  const auto start = reinterpret_cast<uintptr_t>(raw), aligned = (start + kPage - 1) / kPage * kPage;
  if (aligned > start) munmap(raw, aligned - start);
  if (start + room > aligned + bytes) munmap(reinterpret_cast<void*>(aligned + bytes), start + room - aligned - bytes);
  void* block = reinterpret_cast<void*>(aligned);
  advise_huge_pages(block, bytes);
  return block;
}

// Gives idle blocks back, largest first, until at most `keep` bytes stay.
void trim_to(Blocks& p, size_t keep) {
  while (p.idle_bytes > keep) {
    const auto last = std::prev(p.idle.end());
    munmap(last->second, last->first);
    p.idle_bytes -= last->first;
    p.idle.erase(last);
  }
}

// Bytes that may stay idle: half more than the largest total ever in use at once, less what is in use. Sizes change
// within a training step; with room for the largest total alone, 44 blocks of a step of FGW-FER cost 1 ms of page
// faults.
size_t idle_room(const Blocks& p) { return p.peak_bytes + p.peak_bytes / 2 - p.used_bytes; }

}  // namespace

void* huge_acquire(size_t bytes) {
  if (bytes > kLargest) throw std::bad_alloc();
  bytes = (bytes + kPage - 1) / kPage * kPage;
  Blocks& p = *blocks;
  const std::lock_guard<std::mutex> lock(p.mutex);
  void* block = nullptr;
  size_t size = bytes;
  const auto fit = p.idle.lower_bound(bytes);
  if (fit != p.idle.end() && fit->first <= bytes + bytes / 4) {
    size = fit->first, block = fit->second;
    p.idle_bytes -= size;
    p.idle.erase(fit);
  } else {
    block = map_aligned(bytes);
  }
  p.used[block] = size;
  p.used_bytes += size;
  if (p.used_bytes > p.peak_bytes) p.peak_bytes = p.used_bytes;
  trim_to(p, idle_room(p));
  return block;
}

void huge_release(void* block) {
  Blocks& p = *blocks;
  const std::lock_guard<std::mutex> lock(p.mutex);
  const auto found = p.used.find(block);
  if (found == p.used.end()) return;
  p.used_bytes -= found->second;
  p.idle_bytes += found->second;
  p.idle.emplace(found->second, block);
  p.used.erase(found);
  trim_to(p, idle_room(p));
}

void huge_trim() {
  Blocks& p = *blocks;
  const std::lock_guard<std::mutex> lock(p.mutex);
  trim_to(p, 0);
  p.peak_bytes = p.used_bytes;
}

}  // namespace ff
