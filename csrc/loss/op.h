// SPDX-License-Identifier: Apache-2.0
// Losses of a batch; all tensors dense, one loss each.
//   centre   ½ sum_n |x[n] - c[y[n]]|²
//   triplet  mean over anchors of max(0, margin + |a - p| - |a - n|), p the farthest of the class, n the nearest of
//   another cross-entropy  -sum_nk f[n,k]·log softmax(l[n])[k] / total, with f[n,k] = weight[k]·(target[n,k]·(1 - s) +
//   s/K)
//            target[n,k] = 1 where k is the label, and total = sum_n weight[y[n]]; or soft targets, and total = N
#pragma once
#include "core/types.h"

namespace ff {

// std::out_of_range unless all labels are in [0, classes).
struct LabelParams {
  idx count, classes;
  const idx* labels;  // [count]

  FF_REQUIRED(count, classes, labels)
  FF_OPTIONAL()
};

struct CenterParams {
  idx count, dim, classes;
  const void* features;            // [count][dim]
  const idx* labels;               // [count], all in [0, classes)
  const void* centers;             // [classes][dim]
  void* loss;                      // [1]
  const void* dloss;               // [1]
  void *d_features, *d_centers;    // null where not wanted
  int threads;

  FF_REQUIRED(count, dim, classes, features, labels, centers, threads)
  FF_OPTIONAL(loss, dloss, d_features, d_centers)
};

struct TripletParams {
  idx count, dim;
  const void* features;  // [count][dim]
  const idx* labels;     // [count], any values
  double margin;
  void* loss;            // [1]
  idx* pairs;            // [count][2]: hardest positive and negative, -1 without; null in inference
  void* slopes;          // [count][2]: d loss / d distance, positive, over the distance; null in inference
  const void* dloss;     // [1]
  void* d_features;      // [count][dim]
  int threads;

  FF_REQUIRED(count, dim, features, pairs, slopes, threads)
  FF_OPTIONAL(labels, margin, loss, dloss, d_features)
};

struct CrossEntropyParams {
  idx count, classes;
  const void* logits;   // [count][classes]
  const idx* labels;    // [count], all in [0, classes), or null
  const void* targets;  // [count][classes], where labels is null
  const void* weight;   // [classes] or null: 1
  double smoothing;
  void* loss;           // [1]
  void* d_logits;       // [count][classes]: gradient of the loss; null in inference
  int threads;

  FF_REQUIRED(count, classes, logits, labels, targets, weight, smoothing, loss, d_logits, threads)
  FF_OPTIONAL()
};

}  // namespace ff
