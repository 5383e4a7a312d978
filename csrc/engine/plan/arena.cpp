// SPDX-License-Identifier: Apache-2.0
#include "engine/plan/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "core/huge_pages.h"

namespace ff::engine {
namespace {

// So many buffers, the largest, share memory by first fit, which compares each with all before it. The networks have
// a few hundred; the rest of a file that has more share by sizes, in a time that grows with their number alone.
constexpr size_t kFitted = 2048;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// First fit, largest buffer first: a buffer lies where no buffer alive at the same time does. Returns the end of all.
size_t first_fit(const std::vector<Buffer>& buffers, const size_t* begin, const size_t* end,
                 std::vector<size_t>& offsets) {
  size_t most = 0;
  std::vector<size_t> placed;  // by offset
  for (const size_t* i = begin; i != end; ++i) {
    const Buffer& b = buffers[*i];
    size_t offset = 0;
    for (const size_t other : placed) {
      const Buffer& o = buffers[other];
      if (o.last < b.first || b.last < o.first || offsets[other] >= offset + b.floats) continue;
      offset = std::max(offset, offsets[other] + o.floats);
    }
    offsets[*i] = offset;
    most = std::max(most, offset + b.floats);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset,
                                   [&](size_t at, size_t other) { return at < offsets[other]; }),
                  *i);
  }
  return most;
}

// From step to step: a buffer takes the place of one of the same power of two that is free, or a new one from `start`
// on.
size_t by_size(const std::vector<Buffer>& buffers, const size_t* begin, const size_t* end, size_t start,
               std::vector<size_t>& offsets) {
  constexpr size_t kSizes = 64;
  const auto size_class = [](size_t floats) {
    size_t c = 0;
    while (size_t{1} << c < floats) ++c;
    return c;
  };
  int steps = 0;
  for (const size_t* i = begin; i != end; ++i) steps = std::max(steps, buffers[*i].last + 1);
  std::vector<std::vector<size_t>> starting(static_cast<size_t>(steps)), ending(static_cast<size_t>(steps)),
      spare(kSizes);
  for (const size_t* i = begin; i != end; ++i) {
    starting[static_cast<size_t>(buffers[*i].first)].push_back(*i);
    ending[static_cast<size_t>(buffers[*i].last)].push_back(*i);
  }
  for (size_t step = 0; step < starting.size(); ++step) {
    for (const size_t i : starting[step]) {
      const size_t c = size_class(buffers[i].floats);
      if (spare[c].empty()) {
        offsets[i] = start, start += size_t{1} << c;
      } else {
        offsets[i] = spare[c].back(), spare[c].pop_back();
      }
    }
    for (const size_t i : ending[step]) spare[size_class(buffers[i].floats)].push_back(offsets[i]);
  }
  return start;
}

}  // namespace

Layout lay_out(const std::vector<Buffer>& buffers, size_t scratch) {
  Layout layout;
  layout.scratch = scratch, layout.offsets.assign(buffers.size(), 0);
  for (const Buffer& b : buffers) layout.sizes.push_back(b.floats);
  std::vector<size_t> order(buffers.size());
  std::iota(order.begin(), order.end(), size_t{0});
  order.erase(std::remove_if(order.begin(), order.end(), [&](size_t i) { return buffers[i].first < 0; }), order.end());
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return buffers[a].floats > buffers[b].floats; });
  const size_t *begin = order.data(), *fitted = begin + std::min(kFitted, order.size()), *end = begin + order.size();
  layout.arena = by_size(buffers, fitted, end, first_fit(buffers, begin, fitted, layout.offsets), layout.offsets);
  return layout;
}

Arena::Arena(const Layout& layout, bool fenced) : layout_(&layout), buffers_(layout.sizes.size()) {
  if (!fenced) {
    auto* memory = static_cast<float*>(memory_ = huge_acquire(layout.bytes() + 64));
    for (size_t i = 0; i < buffers_.size(); ++i) buffers_[i] = memory + layout.offsets[i];
    scratch_ = memory + layout.arena;
    return;
  }
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto pages = [&](size_t floats) { return round_up(std::max(floats, size_t{1}) * sizeof(float), page) + page; };
  for (const size_t floats : layout.sizes) mapped_ += pages(floats);
  mapped_ += pages(layout.scratch);
  memory_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  char* at = static_cast<char*>(memory_);
  const auto fence = [&](size_t floats) {
    at += pages(floats);
    mprotect(at - page, page, PROT_NONE);
    return reinterpret_cast<float*>(at - page - round_up(floats * sizeof(float), 64));
  };
  for (size_t i = 0; i < buffers_.size(); ++i) buffers_[i] = fence(layout.sizes[i]);
  scratch_ = fence(layout.scratch);
}

Arena::Arena(Arena&& other) noexcept
    : layout_(other.layout_), memory_(std::exchange(other.memory_, nullptr)), mapped_(other.mapped_),
      buffers_(std::move(other.buffers_)), scratch_(other.scratch_) {}

Arena::~Arena() {
  if (!memory_) return;
  if (mapped_)
    munmap(memory_, mapped_);
  else
    huge_release(memory_);
}

void Arena::poison() {
  if (!mapped_) return;
  for (size_t i = 0; i < buffers_.size(); ++i)
    std::memset(static_cast<void*>(buffers_[i]), 0xff, layout_->sizes[i] * sizeof(float));
  std::memset(static_cast<void*>(scratch_), 0xff, layout_->scratch * sizeof(float));
}

}  // namespace ff::engine
