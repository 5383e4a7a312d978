// SPDX-License-Identifier: Apache-2.0
#include "engine/graph/file.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace ff::engine {
namespace {

constexpr size_t kHeader = 96;
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostValues = 1 << 16, kMostFields = 64;

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument("engine file: " + text); }

template <class T>
T read_at(const uint8_t* bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes + offset, sizeof value);
  return value;
}

struct Section {
  size_t offset, size;
};

Section section(const uint8_t* bytes, size_t size, size_t at, const char* name) {
  const auto offset = read_at<uint64_t>(bytes, at), length = read_at<uint64_t>(bytes, at + 8);
  if (offset < kHeader || offset > size || length > size - offset)
    fail(std::string(name) + ": expected a part of the file's " + std::to_string(size) + " bytes, got offset " +
         std::to_string(offset) + " and " + std::to_string(length) + " bytes");
  return {static_cast<size_t>(offset), static_cast<size_t>(length)};
}

// Reads the graph section field by field; never past its end.
class Reader {
 public:
  Reader(const uint8_t* begin, size_t size) : at_(begin), end_(begin + size) {}

  template <class T>
  T next(const char* what) {
    if (static_cast<size_t>(end_ - at_) < sizeof(T)) fail(std::string("graph ends within ") + what);
    const T value = read_at<T>(at_, 0);
    at_ += sizeof(T);
    return value;
  }
  // A count of things of at least `bytes` bytes each, all of which must still fit.
  uint32_t count(const char* what, uint32_t most, size_t bytes) {
    const auto n = next<uint32_t>(what);
    if (n > most || n > static_cast<size_t>(end_ - at_) / bytes)
      fail(std::string(what) + ": expected at most " + std::to_string(most) + " that fit into the graph, got " +
           std::to_string(n));
    return n;
  }
  int id(const char* what, size_t values) {
    const auto i = next<uint32_t>(what);
    if (i >= values)
      fail(std::string(what) + ": expected a value below " + std::to_string(values) + ", got " + std::to_string(i));
    return static_cast<int>(i);
  }
  bool done() const { return at_ == end_; }

 private:
  const uint8_t *at_, *end_;
};

int extent(Reader& reader, const char* what) {
  const auto n = reader.next<uint32_t>(what);
  if (n < 1 || n > (1u << 24)) fail(std::string(what) + ": expected 1 to 16777216, got " + std::to_string(n));
  return static_cast<int>(n);
}

Weights weights(Reader& reader, const uint8_t* data, size_t floats) {
  const auto first = reader.next<uint64_t>("a weight"), count = reader.next<uint64_t>("a weight");
  if (first > floats || count > floats - first)
    fail("weight: expected a part of " + std::to_string(floats) + " floats, got first " + std::to_string(first) +
         " and count " + std::to_string(count));
  return {reinterpret_cast<const float*>(data) + first, static_cast<idx>(count)};
}

Node read_node(Reader& reader, size_t values, const uint8_t* data, size_t floats, int number) {
  Node n{};
  n.origin = number;
  const auto code = reader.next<uint32_t>("a node's op");
  const auto inputs = reader.count("a node's inputs", kMostFields, 4);
  const auto attrs = reader.count("a node's attributes", kMostFields, 4);
  const auto n_weights = reader.count("a node's weights", kMostFields, 16);
  n.output = reader.id("a node's output", values);
  for (uint32_t i = 0; i < inputs; ++i) n.inputs.push_back(reader.id("a node's input", values));
  std::vector<int> numbers;
  for (uint32_t i = 0; i < attrs; ++i) numbers.push_back(reader.next<int32_t>("an attribute"));
  std::vector<Weights> parts;
  for (uint32_t i = 0; i < n_weights; ++i) parts.push_back(weights(reader, data, floats));
  n.op = make_op(code, numbers, parts, "engine file: node " + std::to_string(number));
  return n;
}

void read_ranges(Reader& reader, Graph& g) {
  const auto count = reader.count("ranges", kMostValues, 8);
  if (count != g.values.size())
    fail("ranges: expected " + std::to_string(g.values.size()) + ", one for each value, got " + std::to_string(count));
  for (uint32_t i = 0; i < count; ++i) {
    const auto least = reader.next<float>("a range"), most = reader.next<float>("a range");
    if (!(least <= most) || !std::isfinite(least) || !std::isfinite(most))
      fail("range of value " + std::to_string(i) + ": expected finite numbers, the first not above the second, got " +
           std::to_string(least) + " and " + std::to_string(most));
    g.ranges.push_back({least, most});
  }
}

// What a convolution of bytes adds to its biases.
void read_correction(Reader& reader, Graph& g) {
  const auto node = static_cast<size_t>(reader.id("a corrected node", g.nodes.size()));
  const auto* conv = std::get_if<graph::Conv>(&g.nodes[node].op);
  const auto count = reader.count("a correction", kMostValues, 4);
  if (!g.corrections[node].empty()) fail("correction of node " + std::to_string(node) + ": expected one, got two");
  if (!conv || static_cast<idx>(count) != conv->bias.count)
    fail("correction of node " + std::to_string(node) + ": expected one for each bias of a convolution, got " +
         std::to_string(count));
  for (uint32_t i = 0; i < count; ++i) {
    const auto shift = reader.next<float>("a correction");
    if (!std::isfinite(shift)) fail("correction of node " + std::to_string(node) + ": expected finite numbers");
    g.corrections[node].push_back(shift);
  }
}

// What plans of bytes need beside ranges.
void read_byte_notes(Reader& reader, Graph& g) {
  g.halves.resize(g.values.size()), g.corrections.resize(g.nodes.size());
  const auto halves = reader.count("values that stay bfloat16", kMostValues, 4);
  for (uint32_t i = 0; i < halves; ++i)
    g.halves[static_cast<size_t>(reader.id("a value that stays bfloat16", g.values.size()))] = true;
  const auto corrections = reader.count("corrected nodes", kMostValues, 8);
  for (uint32_t i = 0; i < corrections; ++i) read_correction(reader, g);
}

Graph read_graph(const uint8_t* bytes, Section where, const uint8_t* data, size_t floats) {
  Reader reader(bytes + where.offset, where.size);
  Graph g{};
  const auto values = reader.count("values", kMostValues, 12), nodes = reader.count("nodes", kMostValues, 20);
  g.input = reader.id("the input", values);
  const auto outputs = reader.count("outputs", kMostOutputs, 4);
  for (uint32_t i = 0; i < outputs; ++i) g.outputs.push_back(reader.id("an output", values));
  for (uint32_t i = 0; i < values; ++i) {
    const int channels = extent(reader, "a value's channels"), height = extent(reader, "a value's height");
    g.values.push_back({channels, height, extent(reader, "a value's width")});
  }
  for (uint32_t i = 0; i < nodes; ++i) g.nodes.push_back(read_node(reader, values, data, floats, static_cast<int>(i)));
  if (!reader.done()) read_ranges(reader, g);
  if (!reader.done()) read_byte_notes(reader, g);
  if (!reader.done()) fail("graph: expected nothing after what plans of bytes need");
  return g;
}

}  // namespace

uint64_t checksum(const void* data, size_t size) {
  constexpr uint64_t kFactor = 0x9E3779B97F4A7C15u;
  const auto mix = [](uint64_t lane, uint64_t word) {
    lane = (lane ^ word) * kFactor;
    return lane ^ (lane >> 32);
  };
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint64_t lanes[4] = {1, 2, 3, 4};
  size_t at = 0;
  for (; at + 32 <= size; at += 32)
    for (size_t lane = 0; lane < 4; ++lane) lanes[lane] = mix(lanes[lane], read_at<uint64_t>(bytes, at + 8 * lane));
  for (size_t lane = 0; at < size; ++lane, at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, size - at < 8 ? size - at : 8);
    lanes[lane] = mix(lanes[lane], word);
  }
  uint64_t sum = size;
  for (const uint64_t lane : lanes) sum = mix(sum, lane);
  return sum;
}

File parse_file(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  if (size < kHeader) fail("expected at least " + std::to_string(kHeader) + " bytes, got " + std::to_string(size));
  if (std::memcmp(bytes, "FFENGINE", 8) != 0) fail("expected it to start with FFENGINE");
  const auto version = read_at<uint32_t>(bytes, 8);
  if (version != kVersion) fail("version: expected " + std::to_string(kVersion) + ", got " + std::to_string(version));
  const auto length = read_at<uint64_t>(bytes, 16);
  if (length != size)
    fail("expected " + std::to_string(length) + " bytes as its header says, got " + std::to_string(size));
  const uint64_t want = read_at<uint64_t>(bytes, 24), got = checksum(bytes + 32, size - 32);
  if (want != got) fail("checksum does not match: the file is damaged");
  uint64_t rest = read_at<uint32_t>(bytes, 12);
  for (size_t at = 80; at < kHeader; at += 8) rest |= read_at<uint64_t>(bytes, at);
  if (rest) fail("header: expected zeros in its unused fields");
  const Section metadata = section(bytes, size, 32, "metadata"), where = section(bytes, size, 48, "graph");
  const Section values = section(bytes, size, 64, "data");
  if (values.offset % 64 || values.size % 4) fail("data: expected a 64-aligned section of whole floats");
  File file;
  file.metadata.assign(reinterpret_cast<const char*>(bytes) + metadata.offset, metadata.size);
  file.graph = read_graph(bytes, where, bytes + values.offset, values.size / 4);
  check_graph(file.graph);
  return file;
}

}  // namespace ff::engine
