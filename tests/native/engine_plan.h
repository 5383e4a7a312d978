// SPDX-License-Identifier: Apache-2.0
// The self-test of the engine's executor: a plan of every operation gives the same bits for any number of threads, for
// one image and for many, to one caller and to several; barriers and the team of threads under load.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <thread>

#include "engine/graph/file.h"
#include "engine/plan/plan.h"
#include "engine/threads.h"
#include "engine_file.h"
#include "harness.h"

namespace {

using engine::Plan;
using engine::PlanOptions;

PlanOptions plan_options(Isa isa, int threads, engine::Type type = engine::Type::float32) {
  PlanOptions options;
  options.isa = isa, options.threads = options.image_threads = threads, options.type = type;
  return options;
}

// All outputs of a batch, one after another.
std::vector<float> plan_outputs(const Plan& plan, const std::vector<float>& images, idx batch) {
  std::vector<std::vector<float>> outputs;
  std::vector<float*> places;
  for (const engine::Shape& s : plan.outputs()) outputs.emplace_back(at(batch * s.channels * s.height * s.width), NAN);
  for (auto& output : outputs) places.push_back(output.data());
  plan.run(images.data(), engine::Pixels::float32, batch, places.data());
  std::vector<float> all;
  for (const auto& output : outputs) all.insert(all.end(), output.begin(), output.end());
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void engine_plans(Isa isa, engine::Type type, const std::vector<uint8_t>& file, const std::vector<float>& images) {
  const std::string name =
      std::string(isa_name(isa)) + " engine plan of type " + std::to_string(static_cast<int>(type));
  const Plan one(file.data(), file.size(), plan_options(isa, 1, type));
  const std::vector<float> single = plan_outputs(one, images, 1), want = plan_outputs(one, images, 5);
  bool finite = true;
  for (const float v : want) finite = finite && std::isfinite(v);
  check(finite, name + ": results are finite");
  for (const int threads : {2, 3, 7}) {
    const Plan plan(file.data(), file.size(), plan_options(isa, threads, type));
    check(same_bits(plan_outputs(plan, images, 1), single),
          name + ": other bits with " + std::to_string(threads) + " threads");
    check(same_bits(plan_outputs(plan, images, 5), want),
          name + ": other bits for a batch with " + std::to_string(threads) + " threads");
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i)
      callers.emplace_back([&] {
        for (int k = 0; k < 3; ++k)
          wrong += !same_bits(plan_outputs(plan, images, 5), want) || !same_bits(plan_outputs(plan, images, 1), single);
      });
    for (std::thread& caller : callers) caller.join();
    check(wrong == 0, name + ": other bits with several callers");
    check(!plan.profile(images.data(), engine::Pixels::float32, 2).empty(), name + ": profile");
  }
}

// Least and largest number of each value of the network over the images.
std::vector<engine::Range> ranges_of(Isa isa, const std::vector<uint8_t>& file, const std::vector<float>& images,
                                     size_t batch) {
  PlanOptions apart = plan_options(isa, 1);
  apart.apart = true;
  const Plan plan(file.data(), file.size(), apart);
  const engine::File parsed = engine::parse_file(file.data(), file.size());
  std::vector<std::vector<float>> values;
  std::vector<float*> places;
  for (const engine::Shape& s : parsed.graph.values)
    values.emplace_back(static_cast<size_t>(s.channels) * static_cast<size_t>(s.height * s.width));
  for (auto& value : values) places.push_back(value.data());
  std::vector<engine::Range> ranges(values.size(), engine::Range{INFINITY, -INFINITY});
  for (size_t i = 0; i < batch; ++i) {
    const float* image = images.data() + i * images.size() / batch;
    plan.values(image, engine::Pixels::float32, places);
    std::copy_n(image, images.size() / batch, values[static_cast<size_t>(parsed.graph.input)].begin());
    for (size_t v = 0; v < values.size(); ++v) {
      const auto [least, most] = std::minmax_element(values[v].begin(), values[v].end());
      ranges[v] = {std::min(ranges[v].least, *least), std::max(ranges[v].most, *most)};
    }
  }
  return ranges;
}

void engine_plans(Isa isa) {
  Random random(5);
  const Values values = random.values(5 * 3 * 12 * 14);
  const std::vector<float> images(values.begin(), values.end());
  const std::vector<uint8_t> plain = every_operation();
  const std::vector<uint8_t> file = every_operation(ranges_of(isa, plain, images, 5));
  engine_plans(isa, engine::Type::float32, file, images);
  for (const engine::Type type : {engine::Type::bfloat16, engine::Type::uint8}) engine_plans(isa, type, file, images);
  bool raised = false;
  try {
    const Plan plan(file.data(), file.size() - 4, plan_options(isa, 1));
  } catch (const std::invalid_argument&) {
    raised = true;
  }
  check(raised, std::string(isa_name(isa)) + " engine plan: a short file is refused");
}

struct Rounds {
  engine::Barrier barrier;
  std::atomic<int> arrived{0}, wrong{0};
};

// Every thread finds all others at the same round; with and without time to spin.
void engine_threads() {
  const int before = engine::spin();
  for (const int microseconds : {before, 0})
    for (const int most : {1, 2, 3, 5}) {
      engine::set_spin(microseconds);
      for (int job = 0; job < 20; ++job) {
        Rounds rounds;
        engine::run_on_team(
            most,
            [](void* data, int, int threads) {
              Rounds& r = *static_cast<Rounds*>(data);
              for (int round = 1; round <= 20; ++round) {
                r.arrived.fetch_add(1, std::memory_order_relaxed);
                if (threads > 1) r.barrier.wait(threads);
                r.wrong += r.arrived.load(std::memory_order_relaxed) != round * threads;
                if (threads > 1) r.barrier.wait(threads);
              }
            },
            &rounds);
        check(rounds.wrong == 0 && rounds.arrived == 20 * most,
              "engine threads: rounds of " + std::to_string(most) + " threads");
      }
    }
  engine::set_spin(before);
}

}  // namespace
