// SPDX-License-Identifier: Apache-2.0
// Engine files by hand: a network that has every operation, as bytes.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/graph/file.h"

namespace {

using ff::engine::Op;

class EngineFile {
 public:
  EngineFile(uint32_t channels, uint32_t height, uint32_t width) { value(channels, height, width); }

  // Appends a node with weights of the given lengths; returns its output's number.
  uint32_t add(Op op, std::vector<uint32_t> inputs, std::vector<int32_t> attrs, std::vector<uint32_t> lengths,
               uint32_t channels, uint32_t height, uint32_t width) {
    std::vector<std::vector<float>> weights;
    for (const uint32_t count : lengths) {
      weights.emplace_back();
      for (uint32_t i = 0; i < count; ++i) weights.back().push_back(next());
    }
    return add_with(op, inputs, attrs, weights, channels, height, width);
  }
  uint32_t add_with(Op op, const std::vector<uint32_t>& inputs, const std::vector<int32_t>& attrs,
                    const std::vector<std::vector<float>>& weights, uint32_t channels, uint32_t height,
                    uint32_t width) {
    const uint32_t output = value(channels, height, width);
    ++nodes_;
    put(node_bytes_, static_cast<uint32_t>(op)), put(node_bytes_, static_cast<uint32_t>(inputs.size()));
    put(node_bytes_, static_cast<uint32_t>(attrs.size())), put(node_bytes_, static_cast<uint32_t>(weights.size())),
        put(node_bytes_, output);
    for (const uint32_t i : inputs) put(node_bytes_, i);
    for (const int32_t a : attrs) put(node_bytes_, a);
    for (const std::vector<float>& w : weights) {
      put(node_bytes_, static_cast<uint64_t>(data_.size())), put(node_bytes_, static_cast<uint64_t>(w.size()));
      data_.insert(data_.end(), w.begin(), w.end());
    }
    return output;
  }

  std::vector<uint8_t> bytes(const std::vector<uint32_t>& outputs, const std::vector<ff::engine::Range>& ranges) const {
    std::vector<uint8_t> graph;
    put(graph, values_), put(graph, nodes_), put(graph, uint32_t{0}), put(graph, static_cast<uint32_t>(outputs.size()));
    for (const uint32_t output : outputs) put(graph, output);
    graph.insert(graph.end(), value_bytes_.begin(), value_bytes_.end());
    graph.insert(graph.end(), node_bytes_.begin(), node_bytes_.end());
    if (!ranges.empty()) put(graph, static_cast<uint32_t>(ranges.size()));
    for (const auto& range : ranges) put(graph, range.least), put(graph, range.most);
    const uint64_t start = (96 + graph.size() + 63) / 64 * 64, length = data_.size() * sizeof(float);
    std::vector<uint8_t> file{'F', 'F', 'E', 'N', 'G', 'I', 'N', 'E'};
    put(file, uint32_t{1}), put(file, uint32_t{0}), put(file, start + length), put(file, uint64_t{0});
    put(file, uint64_t{96}), put(file, uint64_t{0}), put(file, uint64_t{96}),
        put(file, static_cast<uint64_t>(graph.size()));
    put(file, start), put(file, length);
    file.resize(96);
    file.insert(file.end(), graph.begin(), graph.end());
    file.resize(start);
    for (const float v : data_) put(file, v);
    seal(file);
    return file;
  }

  // The right checksum.
  static void seal(std::vector<uint8_t>& file) {
    const uint64_t sum = ff::engine::checksum(file.data() + 32, file.size() - 32);
    std::memcpy(file.data() + 24, &sum, sizeof sum);
  }

 private:
  template <class T>
  static void put(std::vector<uint8_t>& to, T v) {
    uint8_t raw[sizeof v];
    std::memcpy(raw, &v, sizeof v);
    to.insert(to.end(), raw, raw + sizeof v);
  }
  uint32_t value(uint32_t channels, uint32_t height, uint32_t width) {
    put(value_bytes_, channels), put(value_bytes_, height), put(value_bytes_, width);
    return values_++;
  }
  float next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 17, state_ ^= state_ << 5;
    return static_cast<float>(state_ >> 8) / static_cast<float>(1 << 24) - 0.5f;
  }

  uint32_t values_ = 0, nodes_ = 0, state_ = 2463534242u;
  std::vector<uint8_t> value_bytes_, node_bytes_;
  std::vector<float> data_;
};

// Every operation once or more; small, so that it runs in microseconds. Its outputs are of all kinds.
inline std::vector<uint8_t> every_operation(const std::vector<ff::engine::Range>& ranges = {}) {
  EngineFile f(3, 12, 14);
  const uint32_t scaled = f.add(Op::affine, {0}, {0}, {3, 3}, 3, 12, 14);
  const uint32_t stem = f.add(Op::conv, {scaled}, {3, 3, 1, 1, 1, 1, 1, 1, 1, 1}, {540, 20}, 20, 12, 14);
  const uint32_t wide = f.add(Op::conv, {stem}, {3, 3, 1, 1, 1, 1, 1, 1, 1, 3}, {3600, 20}, 20, 12, 14);
  const uint32_t deep = f.add(Op::conv, {wide}, {3, 3, 1, 1, 1, 1, 1, 1, 20, 1}, {180, 20}, 20, 12, 14);
  const uint32_t gated = f.add(Op::cbam, {deep}, {7, 7}, {60, 3, 60, 20, 98, 1}, 20, 12, 14);
  const uint32_t sum = f.add(Op::add, {gated, stem}, {0}, {}, 20, 12, 14);
  const uint32_t squeezed = f.add(Op::se, {sum}, {1, 4}, {80, 4, 80, 20}, 20, 12, 14);
  const uint32_t point = f.add(Op::conv, {squeezed}, {1, 1, 1, 1, 0, 0, 0, 0, 1, 5}, {480, 24}, 24, 12, 14);
  const uint32_t lines = f.add(Op::coordinate, {point}, {2}, {120, 5, 120, 24, 120, 24}, 24, 12, 14);
  const uint32_t near = f.add(Op::eca, {lines}, {}, {3}, 24, 12, 14);
  const uint32_t both = f.add(Op::scse, {near}, {1}, {288, 12, 288, 24, 24, 1}, 24, 12, 14);
  const uint32_t spatial = f.add(Op::sa, {both}, {1, 3, 5}, {30, 1}, 24, 12, 14);
  const uint32_t half = f.add(Op::csa, {spatial}, {1}, {5, 2, 1}, 24, 6, 7);
  const uint32_t most = f.add(Op::max_pool, {half}, {3, 3, 2, 2, 1, 1, 1, 1}, {}, 24, 3, 4);
  const uint32_t mean = f.add(Op::avg_pool, {half}, {3, 3, 2, 2, 1, 1, 1, 1, 1}, {}, 24, 3, 4);
  const uint32_t dot = f.add(Op::dot_attention, {most, mean}, {0}, {1}, 24, 3, 4);
  const uint32_t context = f.add(Op::additive_attention, {dot, mean}, {}, {480, 10, 10, 1}, 24, 1, 1);
  const uint32_t pooled = f.add(Op::global_pool, {dot}, {0}, {}, 24, 1, 1);
  const uint32_t joined = f.add(Op::concat, {context, pooled}, {}, {}, 48, 1, 1);
  const uint32_t logits = f.add(Op::conv, {joined}, {1, 1, 1, 1, 0, 0, 0, 0, 1, 0}, {336, 7}, 7, 1, 1);
  const uint32_t line = f.add(Op::line_pool, {mean}, {1, 0}, {}, 24, 1, 4);
  const uint32_t product = f.add(Op::mul, {mean, line}, {2}, {}, 24, 3, 4);
  const uint32_t planes = f.add(Op::channel_pool, {product}, {0}, {}, 2, 3, 4);
  const uint32_t active = f.add(Op::act, {planes}, {6}, {}, 2, 3, 4);
  return f.bytes({logits, active, product}, ranges);
}

}  // namespace
