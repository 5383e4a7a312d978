// SPDX-License-Identifier: Apache-2.0
// Activations: vectorised over storage order, parallel over blocks of it. The family to copy when adding one.
#include "elementwise/op.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kBlock = 16384;  // elements a task: 64 KiB of float32 in and out

template <class T, class Body>
FF_INLINE void for_blocks(const ActivationParams& p, const Body& body) {
  for_tasks(ceil_div(p.count, kBlock), p.threads, [&](idx task) {
    const idx first = task * kBlock;
    body(first, min_idx(kBlock, p.count - first));
  });
}

template <class T>
FF_INLINE void forward(const ActivationParams& p) {
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.out);
  with_act(p.act, [&](auto act) {
    for_blocks<T>(p, [&](idx first, idx count) {
      for_lanes<T>(count, [&](idx i, idx n) {
        store_n<T>(y + first + i, activate<decltype(act)::value, T>(load_n<T>(x + first + i, n)), n);
      });
    });
  });
}

template <class T>
FF_INLINE void backward(const ActivationParams& p) {
  const T* x = static_cast<const T*>(p.x);
  const T* dy = static_cast<const T*>(p.dy);
  T* dx = static_cast<T*>(p.out);
  with_act(p.act, [&](auto act) {
    for_blocks<T>(p, [&](idx first, idx count) {
      for_lanes<T>(count, [&](idx i, idx n) {
        const vec<T> grad = load_n<T>(dy + first + i, n), at = load_n<T>(x + first + i, n);
        store_n<T>(dx + first + i, activate_grad<decltype(act)::value, T>(grad, at), n);
      });
    });
  });
}

}  // namespace

void activation_fwd_f32(const ActivationParams& p) { forward<float>(p); }
void activation_fwd_f64(const ActivationParams& p) { forward<double>(p); }
void activation_bwd_f32(const ActivationParams& p) { backward<float>(p); }
void activation_bwd_f64(const ActivationParams& p) { backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
