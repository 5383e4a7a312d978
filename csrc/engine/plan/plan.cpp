// SPDX-License-Identifier: Apache-2.0
#include "engine/plan/plan.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "engine/graph/file.h"
#include "engine/low_tiles.h"
#include "engine/threads.h"

namespace ff::engine {
namespace {

using Clock = std::chrono::steady_clock;

// Guards every plan's idle contexts. Held across fork(), so that a child never finds it taken by a thread that it has
// not.
std::mutex contexts;

void guard_fork() {
  static const int registered =
      pthread_atfork([] { contexts.lock(); }, [] { contexts.unlock(); }, [] { contexts.unlock(); });
  (void)registered;
}

size_t elements(const Shape& s) {
  return static_cast<size_t>(s.channels) * static_cast<size_t>(s.height) * static_cast<size_t>(s.width);
}

size_t pixel_bytes(Pixels type) { return type == Pixels::uint8 ? 1 : sizeof(float); }

// Zeros (of bytes what stands for zero) around the rows and blocks that a part has written.
void clear_border(const Slot& s, float* data, Part part, bool all_blocks) {
  const int planes = (s.channels + s.pixel - 1) / s.pixel, b0 = all_blocks ? 0 : part.b0,
            b1 = all_blocks ? planes : part.b1;
  const auto size = static_cast<ptrdiff_t>(size_of(s.type));
  const int zero = s.type == Type::uint8 ? static_cast<int>(s.quant.zero) : 0;
  for (int b = b0; b < b1; ++b) {
    char* first = reinterpret_cast<char*>(data) + (s.origin + b * s.block) * size;
    const auto clear = [&](ptrdiff_t from, ptrdiff_t count) {
      std::memset(first + from * size, zero, static_cast<size_t>(count * size));
    };
    const ptrdiff_t left = ptrdiff_t{s.left} * s.pixel, right = ptrdiff_t{s.right} * s.pixel,
                    width = ptrdiff_t{s.width} * s.pixel;
    if (part.y0 == 0) clear(-left - s.top * s.row, s.top * s.row);
    for (int y = part.y0; y < part.y1; ++y) clear(y * s.row - left, left), clear(y * s.row + width, right);
    if (part.y1 == s.height) clear(s.height * s.row - left, s.bottom * s.row);
  }
}

int units(int length, int unit) { return (length + unit - 1) / unit; }

// Expected time on one thread: products at three quarters of the peak (two of 16 lanes a cycle, 4 GHz), bytes from the
// second-level cache, a call.
double seconds_of(const Step& step, int lanes) {
  const double products = step.products > 0 ? step.products : step.macs;
  return products / (6e9 * lanes) + step.bytes / 80e9 + 2e-7;
}

// Packed weights may take so many bytes, and so many for each of the file's: Winograd's algorithm takes four floats for
// one, and few outputs are filled up to whole vectors.
constexpr size_t kPackedWeights = size_t{256} << 20, kPackedShare = 8;

// Below this a step is not worth two barriers.
constexpr double kLeastSeconds = 4e-7;
// Below this an image is not worth workers that have gone to sleep: they take about as long to wake.
constexpr double kLeastImage = 9e-5;
// Between these, the pace of earlier runs tells.
constexpr double kLeastPaced = 2e-5, kMostPaced = 4e-4;

// Share `i` of `n` along the axis that splits most evenly; rows on a tie. False: nothing to do.
bool share(const Step& step, int i, int n, Part* part) {
  *part = {0, step.height, 0, step.blocks};
  if (n == 1) return true;
  if (step.solo) return i == 0;
  const int bands = units(step.height, step.band), panels = units(step.blocks, step.panel);
  const auto waste = [n](int units) { return static_cast<double>((units + n - 1) / n * n) / units; };
  const bool rows = step.by_rows && (!step.by_blocks || waste(bands) <= waste(panels));
  const int count = rows ? bands : panels, from = count * i / n, to = count * (i + 1) / n;
  if (rows)
    part->y0 = from * step.band, part->y1 = std::min(to * step.band, step.height);
  else
    part->b0 = from * step.panel, part->b1 = std::min(to * step.panel, step.blocks);
  return from < to;
}

void run_part(const Step& step, const Frame& frame, Part part) {
  step.run(frame, frame.map(step.x), frame.map(step.y), part);
  if (step.clears_border) clear_border(step.y, frame.buffer(step.y), part, !step.by_blocks);
}

}  // namespace

// The memory of one call: an arena for each thread that works on an image of its own.
struct Plan::Context {
  void grow(int count, const Layout& layout, bool fenced) {
    arenas.reserve(static_cast<size_t>(count));
    while (static_cast<int>(arenas.size()) < count) arenas.emplace_back(layout, fenced);
    for (Arena& arena : arenas) arena.poison();
  }
  const Arena& at(int arena) const { return arenas[static_cast<size_t>(arena)]; }

  std::vector<Arena> arenas;
};

struct Plan::Job {
  const Plan* plan;
  const Context* context;
  const char* images;
  Pixels type;
  idx batch;
  float* const* outputs;
  Barrier* barrier;
  std::atomic<idx> next{0};
  std::vector<std::vector<double>>* times = nullptr;

  // Image i in arena `arena`; `places` gives room for the addresses of its outputs.
  Frame frame(idx i, int arena, int thread, float** places) const {
    for (size_t o = 0; o < plan->outputs_.size(); ++o)
      places[o] = outputs[o] + static_cast<size_t>(i) * elements(plan->outputs_[o]);
    const char* image = images + static_cast<size_t>(i) * elements(plan->input_) * pixel_bytes(type);
    return {context->at(arena).buffers(), context->at(thread).scratch(), image, type, places};
  }
};

Plan::Plan(const void* file, size_t size, const PlanOptions& options)
    : threads_(options.threads), isa_(options.isa), fenced_(options.fenced) {
  guard_fork();
  File parsed = parse_file(file, size);
  Graph& graph = parsed.graph;
  input_ = graph.values[static_cast<size_t>(graph.input)];
  for (const int output : graph.outputs) outputs_.push_back(graph.values[static_cast<size_t>(output)]);
  for (const auto* values : {&options.bytes.scale, &options.bytes.shift})
    if (!values->empty() && values->size() != static_cast<size_t>(input_.channels))
      throw std::invalid_argument("EnginePlan: scale, shift: expected " + std::to_string(input_.channels) +
                                  " values, one for each channel, got " + std::to_string(values->size()));
  BuildOptions build_options{options.isa};
  build_options.type = options.type, build_options.strict = options.strict, build_options.apart = options.apart;
  build_options.strip_bytes = options.strip_bytes, build_options.most_weights = kPackedWeights + kPackedShare * size;
  program_ = build(std::move(graph), build_options, options.bytes);
  metadata_ = std::move(parsed.metadata);
  const Kernels& kernels = kernels_of(options.isa);
  const int lanes = kernels.lanes;
  way_ = options.type == Type::float32 ? "float32" : kernels.tiles(options.type)->way;
  for (Step& step : program_->steps) {
    step.seconds = seconds_of(step, lanes);
    step.solo = (!step.by_rows && !step.by_blocks) || (step.seconds < kLeastSeconds && !options.image_threads);
  }
  double seconds = 0;
  for (const Step& step : program_->steps) seconds += step.seconds;
  image_threads_ = options.image_threads   ? std::min(options.image_threads, threads_)
                   : seconds < kLeastPaced ? 1
                                           : threads_;
  paced_ = !options.image_threads && image_threads_ > 1 && seconds < kMostPaced;
  worth_waking_ = seconds >= kLeastImage;
}

Plan::~Plan() = default;

std::unique_ptr<Plan::Context> Plan::acquire(int arenas) const {
  std::unique_ptr<Context> context;
  {
    const std::lock_guard<std::mutex> lock(contexts);
    if (!idle_.empty()) context = std::move(idle_.back()), idle_.pop_back();
  }
  if (!context) context = std::make_unique<Context>();
  context->grow(arenas, program_->layout, fenced_);
  return context;
}

void Plan::release(std::unique_ptr<Context> context) const {
  const std::lock_guard<std::mutex> lock(contexts);
  idle_.push_back(std::move(context));
}

void Plan::by_image(void* data, int thread, int) {
  Job& job = *static_cast<Job*>(data);
  float* places[kMostOutputs];
  for (idx i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.batch;) {
    const Frame frame = job.frame(i, thread, thread, places);
    for (const Step& step : job.plan->program_->steps) run_part(step, frame, {0, step.height, 0, step.blocks});
  }
}

void Plan::within_image(void* data, int thread, int threads) {
  Job& job = *static_cast<Job*>(data);
  Barrier& barrier = *job.barrier;
  float* places[kMostOutputs];
  const auto& steps = job.plan->program_->steps;
  for (idx i = 0; i < job.batch; ++i) {
    const Frame frame = job.frame(i, 0, thread, places);
    Clock::time_point before = Clock::now();
    for (size_t s = 0; s < steps.size(); ++s) {
      Part part;
      if (share(steps[s], thread, threads, &part)) run_part(steps[s], frame, part);
      // Steps of one thread follow each other without waiting.
      if (threads > 1 && !(steps[s].solo && s + 1 < steps.size() && steps[s + 1].solo)) barrier.wait(threads);
      if (!job.times || thread) continue;
      const Clock::time_point now = Clock::now();
      (*job.times)[s].push_back(std::chrono::duration<double>(now - before).count());
      before = now;
    }
  }
}

void Plan::run(const void* images, Pixels type, idx batch, float* const* outputs) const {
  if (batch < 1) return;
  const bool apart = batch > 1 && (batch >= threads_ || image_threads_ == 1);
  const bool paced = paced_ && batch == 1;
  const Pace::Run turn = paced ? pace_.begin(worth_waking_) : Pace::Run{true, false, {}};
  const int threads = static_cast<int>(std::min<idx>(apart ? batch : turn.together ? image_threads_ : 1, threads_));
  std::unique_ptr<Context> context = acquire(threads);
  Barrier barrier;
  Job job{this, context.get(), static_cast<const char*>(images), type, batch, outputs, &barrier};
  run_on_team(threads, apart ? by_image : within_image, &job);
  release(std::move(context));
  if (paced) pace_.end(turn);
}

std::vector<StepTime> Plan::profile(const void* image, Pixels type, int repeats) const {
  std::vector<std::vector<float>> room;
  std::vector<float*> outputs;
  for (const Shape& s : outputs_) room.emplace_back(elements(s)), outputs.push_back(room.back().data());
  const auto& steps = program_->steps;
  std::vector<std::vector<double>> times(steps.size());
  std::unique_ptr<Context> context = acquire(image_threads_);
  for (int i = 0; i < repeats; ++i) {
    Barrier barrier;
    Job job{this, context.get(), static_cast<const char*>(image), type, 1, outputs.data(), &barrier};
    job.times = &times;
    run_on_team(image_threads_, within_image, &job);
  }
  release(std::move(context));
  std::vector<StepTime> result;
  for (size_t s = 0; s < steps.size(); ++s) {
    const Step& step = steps[s];
    auto& t = times[s];
    std::nth_element(t.begin(), t.begin() + static_cast<ptrdiff_t>(t.size() / 2), t.end());
    const int tasks = std::max(
        {1, step.by_rows ? units(step.height, step.band) : 1, step.by_blocks ? units(step.blocks, step.panel) : 1});
    result.push_back({step.name, step.node, t.empty() ? 0. : t[t.size() / 2], step.macs, step.bytes, tasks});
  }
  return result;
}

void Plan::values(const void* image, Pixels type, const std::vector<float*>& to) const {
  const std::vector<Slot>& values = program_->values;
  if (values.empty()) throw std::invalid_argument("EnginePlan.values: expected a plan whose steps are apart");
  for (const Slot& s : values)
    if (s.type != Type::float32) throw std::invalid_argument("EnginePlan.values: expected a plan in float32");
  if (to.size() != values.size())
    throw std::invalid_argument("EnginePlan.values: to: expected " + std::to_string(values.size()) + " places, got " +
                                std::to_string(to.size()));
  std::vector<std::vector<float>> room;
  std::vector<float*> outputs;
  for (const Shape& s : outputs_)
    room.emplace_back(static_cast<size_t>(elements(s))), outputs.push_back(room.back().data());
  std::unique_ptr<Context> context = acquire(1);
  Job job{this, context.get(), static_cast<const char*>(image), type, 1, outputs.data(), nullptr};
  const auto copy = [](const Slot& s, const Frame& frame, float* place) {
    const Map m = frame.map(s);
    for (int c = 0; c < s.channels; ++c)
      for (int y = 0; y < s.height; ++y)
        for (int x = 0; x < s.width; ++x)
          *place++ = m.data[c / s.pixel * s.block + y * s.row + x * s.pixel + c % s.pixel];
  };
  float* places[kMostOutputs];
  const Frame frame = job.frame(0, 0, 0, places);
  for (const Step& step : program_->steps) {
    run_part(step, frame, {0, step.height, 0, step.blocks});
    for (size_t v = 0; v < values.size(); ++v)
      if (step.y.buffer >= 0 && values[v].buffer == step.y.buffer) copy(values[v], frame, to[v]);
  }
  release(std::move(context));
}

}  // namespace ff::engine
