// SPDX-License-Identifier: Apache-2.0
#include "core/scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace ff {
namespace {

constexpr size_t kHuge = size_t{2} << 20;

struct Block {
  void* data = nullptr;
  size_t size = 0;

  ~Block() { release(); }

  void release() {
    std::free(data);
    data = nullptr;
    size = 0;
  }

  void grow(size_t bytes) {
    release();
    const size_t align = bytes > kHuge / 2 ? kHuge : 64;
    const size_t rounded = (bytes + align - 1) / align * align;
    void* fresh = nullptr;
    if (posix_memalign(&fresh, align, rounded) != 0) throw std::bad_alloc();
    if (align == kHuge) madvise(fresh, rounded, MADV_HUGEPAGE);
    data = fresh;
    size = rounded;
  }
};

thread_local Block blocks[static_cast<int>(Scratch::count)];

}  // namespace

void* scratch_reserve(Scratch kind, size_t bytes) {
  Block& block = blocks[static_cast<int>(kind)];
  if (block.size < bytes) block.grow(bytes);
  return block.data;
}

void scratch_release() {
  for (Block& block : blocks) block.release();
}

}  // namespace ff
