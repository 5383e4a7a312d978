// SPDX-License-Identifier: Apache-2.0
// The memory of one image on its way through a plan: its buffers, and scratch for the thread that works on it.
#pragma once
#include <cstddef>
#include <vector>

namespace ff::engine {

// Where a plan's buffers lie, in floats. Buffers that are not alive at the same time may overlap.
struct Layout {
  std::vector<size_t> offsets, sizes;  // by buffer
  size_t arena = 0, scratch = 0;
  size_t bytes() const { return (arena + scratch) * sizeof(float); }
};

// A buffer that steps read or write, from the first of them to the last; -1: none does.
struct Buffer {
  size_t floats;
  int first, last;
};

// Places for `buffers`, as few floats as first fit finds.
Layout lay_out(const std::vector<Buffer>& buffers, size_t scratch);

class Arena {
 public:
  // fenced: each buffer has pages of its own that end where its last line ends, before a page that nobody may touch.
  // Then what a step reads or writes beside its buffers ends the program.
  Arena(const Layout& layout, bool fenced);
  ~Arena();
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&&) = delete;

  float* const* buffers() const { return buffers_.data(); }
  float* scratch() const { return scratch_; }
  // Fills a fenced arena with NaN (bytes of 255): what a step reads before another has written it then tells.
  void poison();

 private:
  const Layout* layout_;
  void* memory_ = nullptr;
  size_t mapped_ = 0;  // bytes of a fenced arena
  std::vector<float*> buffers_;
  float* scratch_ = nullptr;
};

}  // namespace ff::engine
