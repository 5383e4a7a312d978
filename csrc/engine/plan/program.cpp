// SPDX-License-Identifier: Apache-2.0
#include "engine/plan/program.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/huge_pages.h"
#include "engine/plan/lower.h"

namespace ff::engine {
namespace {

constexpr size_t kLine = 64;  // bytes
constexpr size_t kChunk = size_t{2} << 20;
// Of the buffers of one image. The networks take up to 6 MB; a file that asks for more than this is refused before
// anything is allocated.
constexpr size_t kMostArena = size_t{1} << 30;

template <class T, size_t N>
const T& of(Isa isa, const T& (*const (&tables)[N])()) {
  return tables[static_cast<size_t>(isa)]();
}

// What the input's affine map makes of uint8 images, after what these are normalised with.
Normalisation both(Normalisation bytes, const Normalisation& image) {
  if (image.scale.empty()) return bytes;
  if (bytes.scale.empty()) return {image.scale, image.shift};
  for (size_t c = 0; c < image.scale.size(); ++c) {
    bytes.scale[c] *= image.scale[c];
    bytes.shift[c] = bytes.shift[c] * image.scale[c] + image.shift[c];
  }
  return bytes;
}

}  // namespace

const Kernels& kernels_of(Isa isa) {
  static const auto all = [] {
    std::vector<Kernels> each;
#define FF_TABLE(name)                            \
  each.push_back(FF_OPS_##name::engine_floats()); \
  FF_LOW_##name::take_engine_low(each.back());    \
  each.back().bfloat16 = &FF_BFLOAT16_##name::engine_bfloat16(), each.back().bytes = &FF_BYTES_##name::engine_bytes();
    FF_EACH_ISA(FF_TABLE)
#undef FF_TABLE
    return each;
  }();
  return all[static_cast<size_t>(isa)];
}

const Glue& glue_of(Isa isa) {
#define FF_TABLE(name) FF_OPS_##name::engine_glue,
  static const Glue& (*const tables[])() = {FF_EACH_ISA(FF_TABLE)};
#undef FF_TABLE
  return of(isa, tables);
}

const tensors::Table& tensors_of(Isa isa) {
#define FF_TABLE(name) FF_OPS_##name::engine_tensors,
  static const tensors::Table& (*const tables[])() = {FF_EACH_ISA(FF_TABLE)};
#undef FF_TABLE
  return of(isa, tables);
}

Store::~Store() {
  for (void* block : blocks_) huge_release(block);
}

float* Store::take(size_t floats) {
  const size_t bytes = (floats * sizeof(float) + kLine - 1) / kLine * kLine;
  if (bytes > limit_ || bytes_ > limit_ - bytes)
    throw std::invalid_argument("engine file: weights: expected at most " + std::to_string(limit_) +
                                " bytes in packed form for a file of this size, got more");
  if (bytes > left_) {
    left_ = std::max(bytes, kChunk);
    blocks_.reserve(blocks_.size() + 1);
    next_ = static_cast<char*>(huge_acquire(left_));
    blocks_.push_back(next_);
  }
  auto* taken = reinterpret_cast<float*>(next_);
  next_ += bytes, left_ -= bytes, bytes_ += bytes;
  std::memset(taken, 0, bytes);
  return taken;
}

std::unique_ptr<Program> build(Graph graph, const BuildOptions& options, const Normalisation& bytes) {
  const Target target{kernels_of(options.isa), options.type, options.strict, options.strip_bytes};
  auto program = std::make_unique<Program>();
  program->weights.limit(options.most_weights);
  if (!options.apart) graph = rewritten(std::move(graph), target, program->floats);
  program->bytes = both(bytes, program->floats);
  Lowering lowering(graph, value_types(graph, target), target, glue_of(options.isa), tensors_of(options.isa),
                    !options.apart, *program);
  for (const Node& node : graph.nodes) {
    lowering.begin(node);
    std::visit([&](const auto& op) { lower(lowering, node, op); }, node.op);
  }
  lowering.finish();
  if (program->layout.bytes() > kMostArena)
    throw std::invalid_argument("engine file: values: expected at most " + std::to_string(kMostArena) +
                                " bytes at a time, got " + std::to_string(program->layout.bytes()));
  if (options.apart) program->values = lowering.values();
  return program;
}

}  // namespace ff::engine
