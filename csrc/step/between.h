// SPDX-License-Identifier: Apache-2.0
// The passes of step/op.h. They move memory, so they are compiled once, for any CPU.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/parallel.h"
#include "step/op.h"

namespace ff {
namespace step {

constexpr idx kBlock = idx{64} << 10;  // bytes a task

template <class Body>
void for_blocks(idx bytes, int threads, Body body) {
  const idx tasks = (bytes + kBlock - 1) / kBlock;
  struct Context {
    idx bytes;
    Body body;
  } context{bytes, body};
  parallel_for(
      tasks, threads,
      [](void* data, idx task) {
        const Context& c = *static_cast<const Context*>(data);
        const idx first = task * kBlock;
        c.body(first, std::min(kBlock, c.bytes - first));
      },
      &context);
}

template <class T>
void add(const AddParams& p) {
  for_blocks(p.count * static_cast<idx>(sizeof(T)), p.threads, [&p](idx first, idx bytes) {
    typedef T Vector __attribute__((vector_size(64)));
    const char *a = static_cast<const char*>(p.a) + first, *b = static_cast<const char*>(p.b) + first;
    char* out = static_cast<char*>(p.out) + first;
    idx at = 0;
    for (; at + 64 <= bytes; at += 64) {
      Vector x, y;
      std::memcpy(&x, a + at, 64), std::memcpy(&y, b + at, 64);
      x += y;
      std::memcpy(out + at, &x, 64);
    }
    for (; at < bytes; at += static_cast<idx>(sizeof(T))) {
      T x, y;
      std::memcpy(&x, a + at, sizeof x), std::memcpy(&y, b + at, sizeof y);
      x += y;
      std::memcpy(out + at, &x, sizeof x);
    }
  });
}

template <class T>
void scale(const ScaleParams& p) {
  const T *a = static_cast<const T*>(p.a), b = *static_cast<const T*>(p.b);
  T* out = static_cast<T*>(p.out);
  for (idx i = 0; i < p.count; ++i) out[i] = a[i] * b;
}

template <class Word>
void strided_copy(const StridedCopyParams& p) {
  const Word* from = static_cast<const Word*>(p.source);
  Word* to = static_cast<Word*>(p.target);
  for (idx i = 0; i < p.n0; ++i)
    for (idx j = 0; j < p.n1; ++j)
      for (idx k = 0; k < p.n2; ++k) {
        const Word* source = from + i * p.source0 + j * p.source1 + k * p.source2;
        Word* target = to + i * p.target0 + j * p.target1 + k * p.target2;
        for (idx l = 0; l < p.n3; ++l) target[l * p.target3] = source[l * p.source3];
      }
}

inline void copy(const CopyParams& p) {
  for_blocks(p.bytes, p.threads, [&p](idx first, idx bytes) {
    std::memcpy(static_cast<char*>(p.target) + first, static_cast<const char*>(p.source) + first,
                static_cast<std::size_t>(bytes));
  });
}

template <class T>
void fill(const FillParams& p) {
  std::fill_n(static_cast<T*>(p.out), p.count, static_cast<T>(p.value));
}

template <class T>
void tick(const CountParams& p) {
  *static_cast<T*>(p.counter) += static_cast<T>(p.by);
}

inline void count_up(const CountParams& p) { *static_cast<idx*>(p.counter) += p.by; }

}  // namespace step
}  // namespace ff
