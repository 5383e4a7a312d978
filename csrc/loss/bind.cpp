// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"
#include "loss/op.h"

namespace ff {
namespace {

const idx* indices(Address address) { return static_cast<const idx*>(pointer(address)); }

}  // namespace

void bind_loss(py::module_& m) {
  m.def("first_outside", [](Address labels, idx count, idx classes) {
    const idx* values = indices(labels);
    for (idx n = 0; n < count; ++n)
      if (values[n] < 0 || values[n] >= classes) return n;
    return idx{-1};
  });
  m.def("center_loss_fwd", [](bool wide, idx count, idx dim, idx classes, Address features, Address labels,
                              Address centers, Address loss, int threads) {
    CenterParams p{};
    p.count = count, p.dim = dim, p.classes = classes, p.features = pointer(features), p.labels = indices(labels);
    p.centers = pointer(centers), p.loss = pointer(loss), p.threads = threads;
    run(center_loss_fwd_f32, center_loss_fwd_f64, wide, p);
  });
  m.def("center_loss_bwd", [](bool wide, idx count, idx dim, idx classes, Address dloss, Address features,
                              Address labels, Address centers, Address d_features, Address d_centers, int threads) {
    CenterParams p{};
    p.count = count, p.dim = dim, p.classes = classes, p.features = pointer(features), p.labels = indices(labels);
    p.centers = pointer(centers), p.dloss = pointer(dloss), p.d_features = pointer(d_features);
    p.d_centers = pointer(d_centers), p.threads = threads;
    run(center_loss_bwd_f32, center_loss_bwd_f64, wide, p);
  });
  m.def("triplet_loss_fwd", [](bool wide, idx count, idx dim, Address features, Address labels, double margin,
                               Address loss, Address pairs, Address slopes, int threads) {
    TripletParams p{};
    p.count = count, p.dim = dim, p.features = pointer(features), p.labels = indices(labels), p.margin = margin;
    p.loss = pointer(loss), p.pairs = static_cast<idx*>(pointer(pairs)), p.slopes = pointer(slopes);
    p.threads = threads;
    run(triplet_loss_fwd_f32, triplet_loss_fwd_f64, wide, p);
  });
  m.def("triplet_loss_bwd", [](bool wide, idx count, idx dim, Address dloss, Address features, Address pairs,
                               Address slopes, Address d_features, int threads) {
    TripletParams p{};
    p.count = count, p.dim = dim, p.features = pointer(features), p.pairs = static_cast<idx*>(pointer(pairs));
    p.slopes = pointer(slopes), p.dloss = pointer(dloss), p.d_features = pointer(d_features), p.threads = threads;
    run(triplet_loss_bwd_f32, triplet_loss_bwd_f64, wide, p);
  });
  m.def("cross_entropy_fwd", [](bool wide, idx count, idx classes, Address logits, Address labels, Address targets,
                                Address weight, double smoothing, Address loss, Address d_logits, int threads) {
    CrossEntropyParams p{};
    p.count = count, p.classes = classes, p.logits = pointer(logits), p.labels = indices(labels);
    p.targets = pointer(targets), p.weight = pointer(weight), p.smoothing = smoothing, p.loss = pointer(loss);
    p.d_logits = pointer(d_logits), p.threads = threads;
    run(cross_entropy_fwd_f32, cross_entropy_fwd_f64, wide, p);
  });
}

}  // namespace ff
