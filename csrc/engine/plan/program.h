// SPDX-License-Identifier: Apache-2.0
// The steps of a plan, its packed weights and its layout, made from a graph.
#pragma once
#include <memory>
#include <vector>

#include "core/isa.h"
#include "engine/plan/arena.h"
#include "engine/plan/step.h"
#include "engine/rewrite/rewrite.h"

namespace ff::engine {

// Packed weights, on huge pages; addresses stay.
class Store {
 public:
  ~Store();
  Store() = default;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  // 64-byte aligned, zeros. Throws std::invalid_argument beyond the limit.
  float* take(size_t floats);
  size_t bytes() const { return bytes_; }
  void limit(size_t bytes) { limit_ = bytes; }

 private:
  std::vector<void*> blocks_;
  char* next_ = nullptr;
  size_t left_ = 0, bytes_ = 0, limit_ = SIZE_MAX;
};

struct Program {
  std::vector<Step> steps;
  Layout layout;
  Store weights;
  Normalisation floats, bytes;  // of images by type
  std::vector<Slot> values;     // of the graph; only where steps are apart
};

struct BuildOptions {
  Isa isa;
  Type type = Type::float32;  // what dense convolutions compute in; uint8: int8
  bool strict = false;        // no Winograd and no Strassen convolutions
  bool apart = false;         // each value is made by a step of its own
  double strip_bytes = kStripBytes;
  size_t most_weights = SIZE_MAX;  // bytes of packed weights
};

const Kernels& kernels_of(Isa isa);
const tensors::Table& tensors_of(Isa isa);
const Glue& glue_of(Isa isa);

// Throws std::invalid_argument when the plan would need more memory than the engine takes, or a type is not there.
std::unique_ptr<Program> build(Graph graph, const BuildOptions& options, const Normalisation& bytes);

}  // namespace ff::engine
