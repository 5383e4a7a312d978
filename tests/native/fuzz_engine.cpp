// SPDX-License-Identifier: Apache-2.0
// Damaged engine files: fuzz_engine [files] [seed]. Each is a good file with random changes, most of them with the
// right checksum. It must be refused with a message or run; a sanitizer sees everything else.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "engine/plan/plan.h"
#include "engine_file.h"
#include "engine_networks.h"

namespace {

using namespace ff;

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  uint64_t next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_;
  }
  size_t below(size_t n) { return n ? next() % n : 0; }

  void change(std::vector<uint8_t>& file) {
    const size_t graph = 96, data = read64(file, 64);
    switch (below(8)) {
      case 0: file[below(file.size())] ^= static_cast<uint8_t>(1u << below(8)); break;
      case 1: word(file, 8 + below(22) * 4); break;                      // header
      case 2:
      case 3:
      case 4: word(file, graph + below((data - graph) / 4) * 4); break;
      case 5: float_bits(file, data); break;
      case 6: move(file); break;
      default: resize(file);
    }
  }

 private:
  static uint64_t read64(const std::vector<uint8_t>& file, size_t at) {
    uint64_t v = 0;
    if (at + 8 <= file.size()) std::memcpy(&v, file.data() + at, 8);
    return v < 96 || v > file.size() ? file.size() : v;
  }
  void word(std::vector<uint8_t>& file, size_t at) {
    static const uint32_t kEdges[] = {0,     1,      2,       3,         7,          16,         0x7f,      0xff,
                                      0x100, 0xffff, 0x10000, 0x1000000, 0x7fffffff, 0x80000000, 0xffffffff};
    if (at + 4 > file.size()) return;
    uint32_t v;
    std::memcpy(&v, file.data() + at, 4);
    const uint32_t to =
        below(2) ? kEdges[below(sizeof kEdges / sizeof *kEdges)] : v + static_cast<uint32_t>(below(9)) - 4;
    std::memcpy(file.data() + at, &to, 4);
  }
  void float_bits(std::vector<uint8_t>& file, size_t data) {
    static const uint32_t kFloats[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 1, 0x80000000};
    const size_t floats = (file.size() - data) / 4;
    if (!floats) return;
    std::memcpy(file.data() + data + below(floats) * 4, &kFloats[below(6)], 4);
  }
  void move(std::vector<uint8_t>& file) {
    const size_t n = 4 + below(60), from = below(file.size()), to = below(file.size());
    for (size_t i = 0; i < n && from + i < file.size() && to + i < file.size(); ++i) file[to + i] = file[from + i];
  }
  void resize(std::vector<uint8_t>& file) {
    file.resize(below(4) ? below(file.size()) : file.size() + below(200));
    const uint64_t size = file.size();
    if (below(2) && size >= 24) std::memcpy(file.data() + 16, &size, 8);
  }

  uint64_t state_;
};

// Whether the file made a plan, which then has run.
bool runs(const std::vector<uint8_t>& file, int type) {
  engine::PlanOptions options;
  options.isa = active_isa();
  options.type = static_cast<engine::Type>(type);
  try {
    const engine::Plan plan(file.data(), file.size(), options);
    const engine::Shape& s = plan.input();
    size_t floats = static_cast<size_t>(s.channels) * s.height * s.width;
    std::vector<std::vector<float>> outputs;
    std::vector<float*> places;
    for (const engine::Shape& o : plan.outputs()) {
      outputs.emplace_back(static_cast<size_t>(o.channels) * o.height * o.width);
      floats += outputs.back().size();
    }
    if (floats + plan.arena_bytes() / 4 > 1 << 22) return true;  // correct, and too slow to run
    for (auto& output : outputs) places.push_back(output.data());
    const std::vector<float> image(floats, 0.5f);
    plan.run(image.data(), engine::Pixels::float32, 1, places.data());
    return true;
  } catch (const std::invalid_argument& error) {
    if (!*error.what()) std::abort();
    return false;
  }
}

// A file of operations that only random networks have.
std::vector<uint8_t> some_network(uint64_t seed) {
  const Net net = Networks(seed).next(false);
  return file_of(net, std::vector<engine::Range>(net.values.size(), engine::Range{-2.f, 2.f}));
}

}  // namespace

int main(int count, char** arguments) {
  const long files = count > 1 ? std::atol(arguments[1]) : 100000;
  Mutator mutator(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
  const std::vector<uint8_t> good = every_operation(std::vector<engine::Range>(25, engine::Range{-2.f, 2.f}));
  for (int type = 0; type < 3; ++type)
    if (!runs(good, type)) {
      std::printf("the file to start from is refused\n");
      return 1;
    }
  long accepted = 0;
  for (long i = 0; i < files; ++i) {
    std::vector<uint8_t> file = i % 2 ? some_network(1 + static_cast<uint64_t>(i) / 32) : good;
    for (size_t changes = 1 + mutator.below(3); changes > 0; --changes)
      if (!file.empty()) mutator.change(file);
    if (mutator.below(16) && file.size() >= 32) EngineFile::seal(file);
    file.shrink_to_fit();
    accepted += runs(file, static_cast<int>(i % 3));
  }
  std::printf("%ld damaged files: %ld refused, %ld run\n", files, files - accepted, accepted);
  return accepted && accepted < files ? 0 : 1;
}
