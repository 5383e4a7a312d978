// SPDX-License-Identifier: Apache-2.0
// What cuda/device.cuh takes from CUDA, on the host machine of machine.h. Shared memory checks every access: bounds,
// reads of what no thread wrote, and accesses by two threads, one of them a write, with no barrier between.
#pragma once
#include <math.h>
#include <string.h>

#include <initializer_list>

#include "machine.h"

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are those of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }

namespace ff::cuda {

using index_t = long long;

inline int thread_rank() { return shim::thread().rank; }
inline int lane_rank() { return thread_rank() % shim::kWarp; }
inline int warp_rank() { return thread_rank() / shim::kWarp; }
inline index_t block_x() { return shim::thread().block[0]; }
inline index_t block_y() { return shim::thread().block[1]; }
inline index_t block_z() { return shim::thread().block[2]; }
inline index_t blocks_x() { return shim::thread().grid[0]; }

#define FF_HERE shim::Place here = {__builtin_FILE(), __builtin_LINE()}

inline void sync(FF_HERE) { shim::block_barrier(here); }
inline void require(bool holds, const char* message) {
  if (!holds) shim::fail("%s", message);
}

inline index_t opaque(index_t value) { return value; }
inline void publish() {}
inline bool take_ticket(unsigned* ticket, index_t blocks) {
  const bool last = *ticket + 1 == static_cast<unsigned>(blocks);
  *ticket = last ? 0 : *ticket + 1;
  return last;
}
template <class C>
C load_written(const C* p) {
  return *p;
}

template <class T>
T shuffle_xor(T value, int mask, FF_HERE) {
  const unsigned char* slots = shim::warp_exchange(&value, sizeof value, here);
  memcpy(&value, slots + (lane_rank() ^ mask) * shim::kSlot, sizeof value);
  return value;
}

// Who touched an element of shared memory last, and when.
struct Access {
  unsigned long long epoch, collectives;  // barriers of the block, and collectives of the thread's warp, before it
  int thread;

  static Access now() { return {shim::epoch(), shim::warp_epoch(), thread_rank()}; }
  // Whether neither a barrier nor a collective of the warp they share stands between this and a later access.
  bool unordered(const Access& later) const {
    if (epoch != later.epoch || thread == later.thread) return false;
    return thread / shim::kWarp != later.thread / shim::kWarp || collectives == later.collectives;
  }
};

// The elements of a shared array from some place on.
template <class T>
class Shared {
 public:
  struct State {
    T value;
    Access written, read, other;  // `other`: the last read by a thread that is not `read`'s
  };
  struct At {
    template <class Index>
    At(Index i, FF_HERE) : index(i), place(here) {}
    long long index;
    shim::Place place;
  };
  class Element {
   public:
    Element(const Shared& array, At at) : array_(array), at_(at) {}
    operator T() const { return array_.read(at_); }
    const Element& operator=(T value) const { return array_.write(at_, value), *this; }
    const Element& operator=(const Element& other) const { return *this = static_cast<T>(other); }
    const Element& operator+=(T value) const { return *this = static_cast<T>(*this) + value; }

   private:
    Shared array_;
    At at_;
  };

  Shared(const char* name, State* states, long long count, long long first = 0)
      : name_(name), states_(states), count_(count), first_(first) {}
  Element operator[](At at) const { return {*this, at}; }
  Shared operator+(long long offset) const { return {name_, states_, count_, first_ + offset}; }

 private:
  State& state(At at) const {
    const long long i = first_ + at.index;
    if (i < 0 || i >= count_)
      shim::fail("line %d: %s[%lld] is outside its %lld elements", at.place.line, name_, i, count_);
    return states_[i];
  }
  void race(At at, const char* what, const Access& before) const {
    shim::fail("line %d: %s[%lld] is %s with no barrier after thread %d's access", at.place.line, name_,
               first_ + at.index, what, before.thread);
  }
  T read(At at) const {
    State& s = state(at);
    const Access now = Access::now();
    if (s.written.epoch < shim::block_epoch())
      shim::fail("line %d: %s[%lld] is read before any thread wrote it", at.place.line, name_, first_ + at.index);
    if (s.written.unordered(now)) race(at, "read", s.written);
    (s.read.epoch == now.epoch && s.read.thread != now.thread ? s.other : s.read) = now;
    return s.value;
  }
  void write(At at, T value) const {
    State& s = state(at);
    const Access now = Access::now();
    for (const Access& before : {s.written, s.read, s.other})
      if (before.unordered(now)) race(at, "written", before);
    s.value = value;
    s.written = now;
  }

  const char* name_;
  State* states_;
  long long count_, first_;
};

#define FF_SHARED(T, name, count)                                  \
  static typename ff::cuda::Shared<T>::State name##_states[count]; \
  const ff::cuda::Shared<T> name(#name, name##_states, count)

inline float f16_bits_to_float(unsigned short bits) { return static_cast<float>(same_bits<_Float16>(bits)); }
inline unsigned float_to_tf32_bits(float x) {
  return x - x == 0 ? (__float_as_uint(x) + 0x1000u) & ~0x1fffu : __float_as_uint(x);
}
inline unsigned short float_to_f16_bits(float x) { return same_bits<unsigned short>(static_cast<_Float16>(x)); }

// A lane's four sums of a 16 x 8 tile, by the words of all lanes as csrc/cuda/mma.cuh says who has which.
template <int kPerWord, class Value>
void host_mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], const Value& value, shim::Place here) {
  unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]}, word[2];
  const unsigned char* slots = shim::warp_exchange(mine, sizeof mine, here);
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 8 * kPerWord; ++k) {
      const int row = lane_rank() / 4, column = lane_rank() % 4 * 2 + i % 2, quad = k / kPerWord % 4,
                half = k / kPerWord / 4;
      memcpy(&word[0], slots + (row * 4 + quad) * shim::kSlot + 4 * (i / 2 + 2 * half), 4);
      memcpy(&word[1], slots + (column * 4 + quad) * shim::kSlot + 4 * (4 + half), 4);
      sums[i] += value(word[0], k % kPerWord) * value(word[1], k % kPerWord);
    }
}

}  // namespace ff::cuda
