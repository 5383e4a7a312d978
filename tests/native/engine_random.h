// SPDX-License-Identifier: Apache-2.0
// Plans of random networks: fused and with every step apart, in each type, with and without fewer products, for several
// batches and threads, against float64. Buffers are fenced and hold NaN before a step writes them.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>

#include "engine/plan/plan.h"
#include "engine_networks.h"

namespace {

using namespace ff;

// Floats that end at a page which nobody may touch.
class FencedFloats {
 public:
  explicit FencedFloats(size_t count)
      : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))),
        bytes_((count * sizeof(float) + page_ - 1) / page_ * page_ + page_) {
    memory_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory_ + bytes_ - page_, page_, PROT_NONE);
    data_ = reinterpret_cast<float*>(memory_ + bytes_ - page_) - count;
    std::fill(data_, data_ + count, NAN);
  }
  ~FencedFloats() { munmap(memory_, bytes_); }
  FencedFloats(const FencedFloats&) = delete;
  FencedFloats& operator=(const FencedFloats&) = delete;
  float* data() { return data_; }

 private:
  size_t page_, bytes_;
  char* memory_;
  float* data_;
};

using Outputs = std::vector<std::vector<float>>;  // by output, all images of a batch

constexpr idx kRandomBatch = 3;

struct RandomNet {
  Net net;
  std::vector<std::vector<Values>> values;  // by image, by value
  std::vector<uint8_t> file;
  std::vector<float> images;
};

double range_step(const Range& r) { return (std::max(r.most, 0.f) - std::min(r.least, 0.f)) / 255.; }

// What rounding in a type may change: the values again, where each map is off by as much as the type's rounding or
// an algorithm's, at random. In float32 that is what Winograd's algorithm may be off by.
double rounding(engine::Type type, double value, double largest, const Range& range) {
  if (type == engine::Type::float32) return 3e-6 * largest;
  if (type == engine::Type::bfloat16) return std::fabs(value) / 256 + 1e-3 * largest;
  return range_step(range) + largest / 127;  // of the map and of weights
}

// How far the outputs are off with random rounding. Each image has its own: a ReLU that cuts off all of one image, and
// so all of its rounding, leaves some of another.
std::vector<double> noisy_error(const RandomNet& r, engine::Type type, const std::vector<Range>& ranges,
                                Networks& random) {
  std::vector<double> error(r.net.outputs.size());
  for (const std::vector<Values>& exact : r.values) {
    const auto values = reference(r.net, exact[0], [&](size_t v, Values& map) {
      const double largest = naive::largest(map);
      for (double& x : map) x += (2 * random.unit() - 1) * rounding(type, x, largest, ranges[v]);
    });
    for (size_t o = 0; o < error.size(); ++o)
      for (size_t i = 0; i < values[r.net.outputs[o]].size(); ++i)
        error[o] = std::max(error[o], std::fabs(values[r.net.outputs[o]][i] - exact[r.net.outputs[o]][i]));
  }
  return error;
}

Outputs plan_run(const engine::Plan& plan, const std::vector<float>& images, idx batch) {
  std::vector<std::unique_ptr<FencedFloats>> room;
  std::vector<float*> places;
  std::vector<size_t> sizes;
  for (const Shape& s : plan.outputs()) {
    sizes.push_back(static_cast<size_t>(batch) * elements(s));
    room.push_back(std::make_unique<FencedFloats>(sizes.back()));
    places.push_back(room.back()->data());
  }
  const size_t count = static_cast<size_t>(batch) * elements(plan.input());
  FencedFloats x(count);
  std::copy_n(images.data(), count, x.data());
  plan.run(x.data(), engine::Pixels::float32, batch, places.data());
  Outputs all;
  for (size_t o = 0; o < places.size(); ++o) all.emplace_back(places[o], places[o] + sizes[o]);
  return all;
}

bool same_outputs(const Outputs& a, const Outputs& b) {
  for (size_t o = 0; o < a.size(); ++o)
    if (std::memcmp(a[o].data(), b[o].data(), std::min(a[o].size(), b[o].size()) * sizeof(float)) != 0) return false;
  return true;
}

class RandomPlans {
 public:
  RandomPlans(Isa isa, uint64_t seed, bool large) : isa_(isa), seed_(seed), random_(seed) {
    net_.net = random_.next(large);
    const size_t count = elements(net_.net.values[0]);
    ranges_.assign(net_.net.values.size(), Range{INFINITY, -INFINITY});
    for (idx i = 0; i < kRandomBatch; ++i) {
      Values image;
      for (size_t k = 0; k < count; ++k) image.push_back(static_cast<float>(4 * random_.unit() - 2));
      net_.images.insert(net_.images.end(), image.begin(), image.end());
      net_.values.push_back(reference(net_.net, image));
      for (size_t v = 0; v < ranges_.size(); ++v)
        for (const double x : net_.values.back()[v])
          ranges_[v] = {std::min(ranges_[v].least, static_cast<float>(x)),
                        std::max(ranges_[v].most, static_cast<float>(x))};
    }
    net_.file = file_of(net_.net, ranges_);
  }

  // Returns how many comparisons failed, each with a line that names the seed.
  int run() {
    for (const engine::Type type : {engine::Type::float32, engine::Type::bfloat16, engine::Type::uint8}) {
      noise_ = noisy_error(net_, type, ranges_, random_);
      for (const bool strict : {false, true}) plans(type, strict);
    }
    return failures_;
  }

 private:
  engine::PlanOptions options(engine::Type type, bool strict, int threads) const {
    engine::PlanOptions o;
    o.isa = isa_, o.type = type, o.strict = strict, o.threads = o.image_threads = threads,
    o.strip_bytes = seed_ % 2 ? 1 : engine::kStripBytes;
    return o;
  }
  Outputs run_plan(const engine::PlanOptions& o, idx batch) const {
    return plan_run(engine::Plan(net_.file.data(), net_.file.size(), o), net_.images, batch);
  }

  void plans(engine::Type type, bool strict) {
    engine::PlanOptions fenced = options(type, strict, 1);
    fenced.fenced = true;
    const Outputs fused = run_plan(fenced, kRandomBatch);
    near_reference("fused", type, strict, fused);
    if (!strict) {
      fenced.apart = true;
      near_reference("apart", type, strict, run_plan(fenced, 1));
    }
    for (const int threads : {1, 2, 3}) {
      const engine::Plan plan(net_.file.data(), net_.file.size(), options(type, strict, threads));
      for (const idx batch : {idx{1}, kRandomBatch})
        if (!same_outputs(plan_run(plan, net_.images, batch), fused))
          fail(type, strict, "other bits with " + std::to_string(threads) + " threads, batch " + std::to_string(batch));
    }
  }

  void near_reference(const char* name, engine::Type type, bool strict, const Outputs& got) {
    static const double kFloor[] = {2e-5, 0.01, 0.02};
    for (size_t o = 0; o < got.size(); ++o) {
      const size_t each = elements(net_.net.values[net_.net.outputs[o]]);
      double largest = 1e-3, error = 0;
      for (size_t i = 0; i < got[o].size(); ++i) {
        const double want = net_.values[i / each][net_.net.outputs[o]][i % each];
        largest = std::fmax(largest, std::fabs(want));
        if (!(std::fabs(got[o][i] - want) <= error))
          error = std::isnan(got[o][i]) ? INFINITY : std::fabs(got[o][i] - want);
      }
      const double allowed = kSlack * noise_[o] + kFloor[static_cast<int>(type)] * largest;
      worst = std::fmax(worst, error / allowed);
      if (!(error <= allowed))
        fail(type, strict,
             std::string(name) + ": output " + std::to_string(o) + " is off by " + std::to_string(error / largest) +
                 ", allowed " + std::to_string(allowed / largest));
    }
  }

  void fail(engine::Type type, bool strict, const std::string& what) {
    static const char* const kNames[] = {"float32", "bfloat16", "int8"};
    if (!failures_++) print();
    std::printf("FAILED random network %llu, %s %s%s: %s\n", static_cast<unsigned long long>(seed_), isa_name(isa_),
                kNames[static_cast<int>(type)], strict ? " strict" : "", what.c_str());
  }

  // The network of a failure, a node a line.
  void print() const {
    const auto text = [](const Shape& s) {
      return std::to_string(s.channels) + "x" + std::to_string(s.height) + "x" + std::to_string(s.width);
    };
    std::printf("network %llu: 0 is %s\n", static_cast<unsigned long long>(seed_), text(net_.net.values[0]).c_str());
    for (size_t i = 0; i < net_.net.nodes.size(); ++i) {
      std::printf("  %zu = op %u of", i + 1, static_cast<unsigned>(net_.net.nodes[i].op));
      for (const uint32_t input : net_.net.nodes[i].inputs) std::printf(" %u", input);
      std::printf(", attributes");
      for (const int a : net_.net.nodes[i].attrs) std::printf(" %d", a);
      std::printf(": %s\n", text(net_.net.values[i + 1]).c_str());
    }
    for (size_t o = 0; o < net_.net.outputs.size(); ++o) std::printf("  output %zu is %u\n", o, net_.net.outputs[o]);
  }

  static constexpr double kSlack = 3;
  Isa isa_;
  uint64_t seed_;
  Networks random_;
  RandomNet net_;
  std::vector<Range> ranges_;
  std::vector<double> noise_;
  int failures_ = 0;

 public:
  double worst = 0;  // error over what is allowed
};

// Networks first, first + 1, ...; every 40th is large.
int random_networks(Isa isa, uint64_t first, long count, double* worst = nullptr, uint64_t* running = nullptr) {
  int failures = 0;
  for (long i = 0; i < count; ++i) {
    if (running) *running = first + static_cast<uint64_t>(i);
    RandomPlans plans(isa, first + static_cast<uint64_t>(i), i % 40 == 39);
    failures += plans.run();
    if (worst) *worst = std::fmax(*worst, plans.worst);
  }
  return failures;
}

}  // namespace
