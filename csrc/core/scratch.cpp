// SPDX-License-Identifier: Apache-2.0
#include "core/scratch.h"

#include <cstdlib>
#include <new>
#include <vector>

#include "core/system.h"

namespace ff {
namespace {

constexpr size_t kHuge = size_t{2} << 20, kSmall = size_t{64} << 10;

// Chunks of one kind. An op that needs more than there is takes further chunks; the next op finds one chunk of their
// sum.
struct Chunks {
  struct Chunk {
    void* data;
    size_t size;
  };
  std::vector<Chunk> all;
  size_t used = 0;  // of the last chunk

  ~Chunks() { release(); }

  void release() {
    for (const Chunk& chunk : all) std::free(chunk.data);
    all.clear();
    used = 0;
  }

  void restart() {
    size_t sum = 0;
    if (all.size() > 1) {
      for (const Chunk& chunk : all) sum += chunk.size;
      release();
      add(sum);
    }
    used = 0;
  }

  void add(size_t bytes) {
    const size_t align = bytes > kHuge / 2 ? kHuge : kSmall;
    const size_t rounded = (bytes + align - 1) / align * align;
    all.reserve(all.size() + 1);
    void* fresh = nullptr;
    if (posix_memalign(&fresh, align == kHuge ? kHuge : 64, rounded) != 0) throw std::bad_alloc();
    if (align == kHuge) advise_huge_pages(fresh, rounded);
    all.push_back({fresh, rounded});
    used = 0;
  }

  void* take(size_t bytes) {
    if (all.empty() || all.back().size - used < bytes) add(bytes);
    void* data = static_cast<char*>(all.back().data) + used;
    used += bytes;
    return data;
  }
};

thread_local Chunks kinds[static_cast<int>(Scratch::count)];

}  // namespace

void scratch_restart(Scratch kind) { kinds[static_cast<int>(kind)].restart(); }

void* scratch_take(Scratch kind, size_t bytes) { return kinds[static_cast<int>(kind)].take(bytes); }

void scratch_release() {
  for (Chunks& chunks : kinds) chunks.release();
}

}  // namespace ff
