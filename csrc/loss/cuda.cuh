// SPDX-License-Identifier: Apache-2.0
// Centre, batch-hard triplet and cross-entropy loss (reference/loss.py has the equations). Sums have no atomics: each
// gradient gathers what belongs to it. A label outside its classes stops the kernel, as torch's do.
#pragma once

#include "cuda/image.cuh"

namespace ff::cuda {

constexpr int kLossThreads = 256;

// A label inside [0, classes), or the end of the launch.
__device__ __forceinline__ index_t checked(index_t label, index_t classes) {
  require(label >= 0 && label < classes, "a label is outside its classes");
  return label;
}

// losses [samples]: ½ |x - c|² of each, a warp a sample.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    center_fwd(const T* __restrict__ x, const index_t* __restrict__ labels, const compute_t<T>* __restrict__ centers,
               compute_t<T>* __restrict__ losses, index_t samples, index_t width, index_t classes) {
  using C = compute_t<T>;
  const index_t n = block_x() * (kLossThreads / 32) + warp_rank();
  if (n >= samples) return;
  const C* const center = centers + checked(labels[n], classes) * width;
  C sum = C(0);
  for (index_t d = lane_rank(); d < width; d += 32) {
    const C diff = widen(x[n * width + d]) - center[d];
    sum += diff * diff;
  }
  sum = warp_sum(sum);
  if (lane_rank() == 0) losses[n] = C(0.5) * sum;
}

// dx = (x - c)·dloss (samples, width).
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    center_bwd(const T* __restrict__ x, const index_t* __restrict__ labels, const compute_t<T>* __restrict__ centers,
               const T* __restrict__ dloss, T* __restrict__ dx, index_t count, index_t width, index_t classes) {
  for (index_t i = grid_rank<kLossThreads>(); i < count; i += grid_size<kLossThreads>()) {
    const Split at = split(i, width);
    dx[i] = narrow<T>((widen(x[i]) - centers[checked(labels[at.whole], classes) * width + at.rest]) * widen(dloss[0]));
  }
}

// dcenters (classes, width) = the class's sum of (c - x)·dloss, in the order of the samples.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    center_bwd_centers(const T* __restrict__ x, const index_t* __restrict__ labels,
                       const compute_t<T>* __restrict__ centers, const T* __restrict__ dloss,
                       compute_t<T>* __restrict__ dcenters, index_t count, index_t samples, index_t width,
                       index_t classes) {
  using C = compute_t<T>;
  for (index_t i = grid_rank<kLossThreads>(); i < count; i += grid_size<kLossThreads>()) {
    const Split at = split(i, width);
    C sum = C(0);
    for (index_t n = 0; n < samples; ++n)
      if (checked(labels[n], classes) == at.whole)
        sum -= (widen(x[n * width + at.rest]) - centers[i]) * widen(dloss[0]);
    dcenters[i] = sum;
  }
}

// Distances [samples][2] of each anchor to its farthest sample of the same label and to the nearest of another, and
// which these are, [samples][2]; both -1 without either. A block an anchor, a warp a pair.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    triplet_pairs(const T* __restrict__ x, const index_t* __restrict__ labels, compute_t<T>* __restrict__ distances,
                  index_t* __restrict__ pairs, index_t samples, index_t width) {
  using C = compute_t<T>;
  constexpr int kWarps = kLossThreads / 32;
  FF_SHARED(C, values, 2 * kWarps);
  FF_SHARED(index_t, places, 2 * kWarps);
  const index_t a = block_x();
  First<C> far{C(0), -1}, near{C(0), -1};  // the nearest as the largest of the negated
  for (index_t other = warp_rank(); other < samples; other += kWarps) {
    if (other == a) continue;
    C sum = C(0);
    for (index_t d = lane_rank(); d < width; d += 32) {
      const C diff = widen(x[a * width + d]) - widen(x[other * width + d]);
      sum += diff * diff;
    }
    const C distance = sqrt(warp_sum(sum));
    if (labels[other] == labels[a])
      far.take(distance, other);
    else
      near.take(-distance, other);
  }
  if (lane_rank() == 0) {
    values[2 * warp_rank()] = far.value, values[2 * warp_rank() + 1] = near.value;
    places[2 * warp_rank()] = far.at, places[2 * warp_rank() + 1] = near.at;
  }
  sync();
  if (thread_rank() > 0) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    far.take(values[2 * warp], places[2 * warp]);
    near.take(values[2 * warp + 1], places[2 * warp + 1]);
  }
  const bool both = far.at >= 0 && near.at >= 0;
  distances[2 * a] = far.value, distances[2 * a + 1] = -near.value;
  pairs[2 * a] = both ? far.at : -1, pairs[2 * a + 1] = both ? near.at : -1;
}

// The mean of max(0, margin + far - near) over anchors that have both, and slopes [samples][2]: that mean's derivatives
// by the distances, made positive, over the distance. One block.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    triplet_loss(const compute_t<T>* __restrict__ distances, const index_t* __restrict__ pairs, T* __restrict__ loss,
                 compute_t<T>* __restrict__ slopes, index_t samples, double margin) {
  using C = compute_t<T>;
  FF_SHARED(C, states, 2 * kLossThreads);
  FF_SHARED(C, share, 1);
  const auto hinge = [&](index_t n) { return static_cast<C>(margin) + distances[2 * n] - distances[2 * n + 1]; };
  reduce_rows<2, kLossThreads, C>(
      0, samples, 0, 1, states, {C(0), C(0)},
      [&](C(&state)[2], index_t n, index_t) {
        if (pairs[2 * n] < 0) return;
        state[1] += C(1);
        const C value = hinge(n);
        if (!(value <= C(0))) state[0] += value;  // NaN, too
      },
      AddWords(),
      [&](const C(&state)[2], index_t) {
        share[0] = C(1) / (state[1] > C(1) ? state[1] : C(1));
        loss[0] = narrow<T>(state[0] * share[0]);
      });
  sync();
  for (index_t n = thread_rank(); n < samples; n += kLossThreads) {
    const bool active = pairs[2 * n] >= 0 && !(hinge(n) <= C(0));
    for (int i = 0; i < 2; ++i) {
      const C distance = distances[2 * n + i];
      slopes[2 * n + i] = active && distance != C(0) ? share[0] / distance : C(0);
    }
  }
}

// dx (samples, width): of each sample as an anchor, and as the pair of others, in the order of the anchors.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    triplet_bwd(const T* __restrict__ x, const index_t* __restrict__ pairs, const compute_t<T>* __restrict__ slopes,
                const T* __restrict__ dloss, T* __restrict__ dx, index_t count, index_t samples, index_t width) {
  using C = compute_t<T>;
  for (index_t i = grid_rank<kLossThreads>(); i < count; i += grid_size<kLossThreads>()) {
    const Split at = split(i, width);
    const C own = widen(x[i]), grad = widen(dloss[0]);
    C sum = C(0);
    for (index_t a = 0; a < samples; ++a)
      for (int which = 0; which < 2; ++which) {
        const index_t other = pairs[2 * a + which];
        const C slope = (which == 0 ? grad : -grad) * slopes[2 * a + which];
        if (other < 0 || slope == C(0)) continue;
        if (a == at.whole) sum += slope * (own - widen(x[other * width + at.rest]));
        if (other == at.whole) sum -= slope * (widen(x[a * width + at.rest]) - own);
      }
    dx[i] = narrow<T>(sum);
  }
}

// What a sample's log-probabilities are multiplied by, for labels or, soft, for a distribution over the classes.
template <class T>
struct TargetFactors {
  using C = compute_t<T>;
  const index_t* labels;  // null: soft
  const T* soft;
  const C* weight;  // null: 1
  index_t classes;
  C smoothing;

  __device__ __forceinline__ index_t label(index_t n) const { return checked(labels[n], classes); }
  __device__ __forceinline__ C scale(index_t k) const { return weight ? weight[k] : C(1); }
  __device__ __forceinline__ C operator()(index_t n, index_t k) const {
    const C target = labels ? (label(n) == k ? C(1) : C(0)) : widen(soft[n * classes + k]);
    return scale(k) * (target * (C(1) - smoothing) + smoothing / static_cast<C>(classes));
  }
};

// log(sum over the classes of exp(logit)), as the largest logit and the rest, in every lane of a warp.
template <class T>
__device__ __forceinline__ void log_total(const T* __restrict__ row, index_t classes, compute_t<T>& most,
                                          compute_t<T>& rest) {
  using C = compute_t<T>;
  most = -infinity<C>();
  for (index_t k = lane_rank(); k < classes; k += 32) most = widen(row[k]) > most ? widen(row[k]) : most;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const C other = shuffle_xor(most, mask);
    most = other > most ? other : most;
  }
  C sum = C(0);
  for (index_t k = lane_rank(); k < classes; k += 32) sum += exp(widen(row[k]) - most);
  rest = log(warp_sum(sum));
}

// terms [samples][2]: -sum of factor · log-probability, and what the sum over samples is divided by; a warp a sample.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    cross_entropy_terms(const T* __restrict__ logits, const index_t* __restrict__ labels, const T* __restrict__ soft,
                        const compute_t<T>* __restrict__ weight, compute_t<T>* __restrict__ terms, index_t samples,
                        index_t classes, double smoothing) {
  using C = compute_t<T>;
  const index_t n = block_x() * (kLossThreads / 32) + warp_rank();
  if (n >= samples) return;
  const TargetFactors<T> factors{labels, soft, weight, classes, static_cast<C>(smoothing)};
  const T* const row = logits + n * classes;
  C most, rest, sum = C(0);
  log_total(row, classes, most, rest);
  const bool alone = labels && smoothing == 0;  // classes without a factor take no part: 0 · inf
  for (index_t k = lane_rank(); k < classes; k += 32)
    if (!alone || factors.label(n) == k) sum -= factors(n, k) * (widen(row[k]) - most - rest);
  sum = warp_sum(sum);
  if (lane_rank() > 0) return;
  terms[2 * n] = sum;
  terms[2 * n + 1] = labels ? factors.scale(factors.label(n)) : C(1);
}

// The loss and its gradient (samples, classes) from the terms' sums [2]; a warp a sample.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    cross_entropy_grad(const T* __restrict__ logits, const index_t* __restrict__ labels, const T* __restrict__ soft,
                       const compute_t<T>* __restrict__ weight, const compute_t<T>* __restrict__ sums,
                       T* __restrict__ loss, T* __restrict__ grad, index_t samples, index_t classes, double smoothing) {
  using C = compute_t<T>;
  if (block_x() == 0 && thread_rank() == 0) loss[0] = narrow<T>(sums[0] / sums[1]);
  const index_t n = block_x() * (kLossThreads / 32) + warp_rank();
  if (n >= samples) return;
  const TargetFactors<T> factors{labels, soft, weight, classes, static_cast<C>(smoothing)};
  const T* const row = logits + n * classes;
  C most, rest, total = C(0);
  log_total(row, classes, most, rest);
  for (index_t k = lane_rank(); k < classes; k += 32) total += factors(n, k);
  total = warp_sum(total);
  for (index_t k = lane_rank(); k < classes; k += 32) {
    const C probability = exp(widen(row[k]) - most - rest);
    grad[n * classes + k] = narrow<T>((probability * total - factors(n, k)) / sums[1]);
  }
}

}  // namespace ff::cuda
