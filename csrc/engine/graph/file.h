// SPDX-License-Identifier: Apache-2.0
// The engine's file (.ffe), little endian:
//   0 char[8] "FFENGINE", u32 version, u32 zero, u64 bytes of the file, u64 checksum of [32, end)
//   32 u64 offset and bytes of: metadata (UTF-8 JSON), graph, data (float32, 64-aligned); zeros up to 96
// The graph is u32: values, nodes, the input's id, outputs, their ids; per value channels, height, width; per node op,
// inputs, attributes, weights (counts), output id, input ids, i32 attributes, per weight u64 first float and u64 count.
// Behind the last node may stand the ranges that int8 plans need: u32 values, per value f32 least and f32 largest
// number; then what else they need: u32 values that stay bfloat16, their ids; u32 convolutions whose biases are
// corrected, of each its number, u32 output channels, and of each channel the f32 to add.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/graph/graph.h"

namespace ff::engine {

struct File {
  std::string metadata;
  Graph graph;  // its weights point into the parsed bytes
};

// Throws std::invalid_argument, saying what is wrong, for bytes that are not a whole and consistent file.
// `bytes` must be aligned to 4 and outlive the result.
File parse_file(const void* bytes, size_t size);

// Four lanes of 64-bit words, word i into lane i mod 4, which start at 1 to 4; then the lanes into a fifth, which
// starts at `size`: lane = (lane ^ word) · 0x9E3779B97F4A7C15, lane ^= lane >> 32. The last word is padded with zeros.
uint64_t checksum(const void* bytes, size_t size);

}  // namespace ff::engine
