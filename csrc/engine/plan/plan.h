// SPDX-License-Identifier: Apache-2.0
// A network ready to run: parsed, packed for one instruction set, its memory laid out. Any number of threads may call
// run() at once; each call has a context (arena and scratch) of its own, kept for the next.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/plan/pace.h"
#include "engine/plan/program.h"

namespace ff::engine {

struct StepTime {
  std::string name;
  int node;
  double seconds, macs, bytes;  // of one image
  int tasks;                    // parts that may run at the same time
};

struct PlanOptions {
  Isa isa;
  int threads = 1;        // at least 1
  int image_threads = 0;  // of these, at most so many on one image; 0: as many as pay
  Type type = Type::float32;  // what dense convolutions compute in, see BuildOptions
  bool strict = false;    // no Winograd and no Strassen convolutions: float32's own rounding alone
  bool apart = false;     // each value by a step of its own, for values()
  bool fenced = false;    // for tests: see Arena
  double strip_bytes = kStripBytes;
  Normalisation bytes;    // of uint8 images
};

class Plan {
 public:
  // From the bytes of a file, which are not needed afterwards. Throws std::invalid_argument for bytes that are no
  // engine file.
  Plan(const void* file, size_t size, const PlanOptions& options);
  ~Plan();

  // image [batch][C][H][W] of `type`; outputs [batch][C][H][W] each. Does not allocate once as many contexts as there
  // are concurrent callers exist.
  void run(const void* images, Pixels type, idx batch, float* const* outputs) const;
  // The median time of each step over `repeats` runs of one image.
  std::vector<StepTime> profile(const void* image, Pixels type, int repeats) const;

  // Each value of the graph but its input, of one image, [C][H][W] each. Only for plans whose steps are apart.
  void values(const void* image, Pixels type, const std::vector<float*>& to) const;

  const std::string& metadata() const { return metadata_; }
  const Shape& input() const { return input_; }
  const std::vector<Shape>& outputs() const { return outputs_; }
  size_t steps() const { return program_->steps.size(); }
  size_t arena_bytes() const { return program_->layout.bytes(); }
  size_t weight_bytes() const { return program_->weights.bytes(); }
  int threads() const { return threads_; }
  // The instruction that multiplies in dense convolutions of the plan's type, and whose it is.
  const char* way() const { return way_; }
  Isa isa() const { return isa_; }
  // Threads that one image is split over; of a short one, where that turns out to be quicker.
  int image_threads() const { return image_threads_; }

 private:
  struct Context;
  struct Job;
  std::unique_ptr<Context> acquire(int arenas) const;
  void release(std::unique_ptr<Context> context) const;
  void run_steps(const Frame& frame) const;
  static void by_image(void* job, int thread, int threads);
  static void within_image(void* job, int thread, int threads);

  std::string metadata_;
  Shape input_;
  std::vector<Shape> outputs_;
  std::unique_ptr<Program> program_;
  int threads_, image_threads_;
  Isa isa_;
  const char* way_;
  bool fenced_, paced_ = false, worth_waking_ = false;
  mutable Pace pace_;  // of single images
  mutable std::vector<std::unique_ptr<Context>> idle_;
};

}  // namespace ff::engine
