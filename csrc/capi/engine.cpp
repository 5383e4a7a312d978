// SPDX-License-Identifier: Apache-2.0
// The C interface over Plan: arguments are checked here, and exceptions end here.
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "capi/fastfer.h"
#include "capi/metadata.h"
#include "engine/graph/file.h"
#include "engine/plan/plan.h"

using namespace ff;
using engine::Shape;

struct fastfer_engine {
  std::unique_ptr<engine::Plan> plan;
  std::vector<std::string> classes;
  bool takes_uint8;
  Isa isa;
};

namespace {

// Of this thread; no failure, not even of memory, can fail to be told.
thread_local char last_error[1024];

struct Failure {
  fastfer_status status;
  std::string text;
};

[[noreturn]] void fail(fastfer_status status, const std::string& text) { throw Failure{status, text}; }

fastfer_status told(fastfer_status status, const char* text) {
  std::snprintf(last_error, sizeof last_error, "%s", text);
  return status;
}

// Runs fn, whose exceptions become a status; std::invalid_argument is the engine's word on a file.
template <class Fn>
fastfer_status guarded(const Fn& fn) noexcept {
  try {
    fn();
    return FASTFER_OK;
  } catch (const Failure& failure) {
    return told(failure.status, failure.text.c_str());
  } catch (const std::invalid_argument& error) {
    return told(FASTFER_BAD_FILE, error.what());
  } catch (const std::bad_alloc&) {
    return told(FASTFER_NO_MEMORY, "fastfer: not enough memory");
  } catch (const std::exception& error) {
    return told(FASTFER_INTERNAL, error.what());
  } catch (...) {
    return told(FASTFER_INTERNAL, "fastfer: unknown exception");
  }
}

void need(bool good, const char* want) {
  if (!good) fail(FASTFER_BAD_ARGUMENT, want);
}

const char* environment(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

int cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// As fastfer.runtime.default_threads.
int threads_of(int asked) {
  const int most = std::max(64, 4 * cpus());
  const std::string range = "expected 1 to " + std::to_string(most) + ", got ";
  if (asked) {
    if (asked < 1 || asked > most)
      fail(FASTFER_BAD_ARGUMENT, "options.threads: 0, or " + range + std::to_string(asked));
    return asked;
  }
  const char* variable = environment("FASTFER_NUM_THREADS");
  if (!variable) return cpus();
  char* end = nullptr;
  const long value = std::strtol(variable, &end, 10);
  if (*variable < '0' || *variable > '9' || *end || value < 1 || value > most)
    fail(FASTFER_BAD_ARGUMENT, "FASTFER_NUM_THREADS: " + range + variable);
  return static_cast<int>(value);
}

Isa isa_of(const char* asked) {
  const char* variable = asked ? nullptr : environment("FASTFER_ISA");
  const std::string name = asked ? asked : variable ? variable : "auto";
  if (name == "auto") return active_isa();
  std::string known = "auto";
  for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (!isa_supported(isa)) continue;
    if (name == isa_name(isa)) return isa;
    known += std::string(", ") + isa_name(isa);
  }
  fail(FASTFER_BAD_ARGUMENT, std::string(asked ? "options.isa" : "FASTFER_ISA") + ": expected one of " + known +
                                 ", got '" + name + "'" + isa_refusal(name.c_str()));
}

engine::Type type_of(const std::string& precision) {
  if (precision == "float32") return engine::Type::float32;
  if (precision == "bfloat16") return engine::Type::bfloat16;
  if (precision == "int8") return engine::Type::uint8;  // of maps; weights are int8
  fail(FASTFER_BAD_FILE, "dtype: expected float32, bfloat16 or int8, got '" + precision + "'");
}

engine::Pixels pixels_of(fastfer_pixels pixels, const fastfer_engine& engine) {
  need(pixels == FASTFER_FLOAT32 || pixels == FASTFER_UINT8, "pixels: expected FASTFER_FLOAT32 or FASTFER_UINT8");
  if (pixels == FASTFER_FLOAT32) return engine::Pixels::float32;
  need(engine.takes_uint8,
       "pixels: expected FASTFER_FLOAT32: this file has no mean and std, or its pixels are to be equalised first");
  return engine::Pixels::uint8;
}

size_t elements(const Shape& s) {
  return static_cast<size_t>(s.channels) * static_cast<size_t>(s.height) * static_cast<size_t>(s.width);
}

fastfer_shape shape_of(const Shape& s) {
  return {static_cast<size_t>(s.channels), static_cast<size_t>(s.height), static_cast<size_t>(s.width)};
}

bool aligned(const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

fastfer_options with_defaults(const fastfer_options* given) {
  fastfer_options options = FASTFER_OPTIONS_INIT;
  if (!given) return options;
  // A later version may have grown; fields that this one does not know would be passed over in silence.
  need(given->size == sizeof options, "options.size: expected sizeof(fastfer_options): see FASTFER_OPTIONS_INIT");
  options = *given;
  need(options.image_threads >= 0, "options.image_threads: expected 0 or more");
  need(options.precision >= FASTFER_AS_COMPILED && options.precision <= FASTFER_PRECISION_INT8,
       "options.precision: expected a fastfer_precision");
  need(options.strict >= -1 && options.strict <= 1, "options.strict: expected -1, 0 or 1");
  return options;
}

// What the file says of itself, and the caller of it. Throws what the file lacks.
engine::PlanOptions plan_options(const engine::File& file, const capi::Json& metadata, const fastfer_options& options) {
  static const char* const kPrecisions[] = {nullptr, "float32", "bfloat16", "int8"};
  engine::PlanOptions plan;
  plan.isa = isa_of(options.isa);
  plan.threads = threads_of(options.threads), plan.image_threads = options.image_threads;
  plan.strict = options.strict < 0 ? capi::strict(metadata) : options.strict == 1;
  const char* precision = kPrecisions[options.precision];
  plan.type = type_of(precision ? precision : capi::precision(metadata));
  plan.bytes = capi::normalisation(metadata);
  if (plan.type == engine::Type::uint8 && file.graph.ranges.empty())
    fail(FASTFER_UNSUPPORTED, "precision: int8 needs the ranges of the values, which this file does not have");
  return plan;
}

// `data` is aligned for floats. It is parsed twice, once for the metadata alone.
std::unique_ptr<fastfer_engine> load(const void* data, size_t size, const fastfer_options& options) {
  const engine::File file = engine::parse_file(data, size);
  const capi::Json metadata = capi::parse_metadata(file.metadata);
  const engine::PlanOptions plan = plan_options(file, metadata, options);
  auto result = std::make_unique<fastfer_engine>();
  result->takes_uint8 = !plan.bytes.scale.empty(), result->isa = plan.isa;
  result->plan = std::make_unique<engine::Plan>(data, size, plan);
  result->classes = capi::class_names(metadata, elements(result->plan->outputs()[0]));
  return result;
}

// The bytes of a file, as long as they may be an engine: a device may never end.
std::vector<char> read_file(const char* path) {
  constexpr size_t kChunk = size_t{1} << 20, kSizeAt = 16;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rbe"), std::fclose);
  std::vector<char> bytes;
  bool more = file != nullptr;
  while (more) {
    const size_t before = bytes.size();
    bytes.resize(before + std::max(before / 2, kChunk));
    const size_t read = std::fread(bytes.data() + before, 1, bytes.size() - before, file.get());
    more = before + read == bytes.size();
    bytes.resize(before + read);
    uint64_t size = 0;
    if (bytes.size() >= kSizeAt + sizeof size) std::memcpy(&size, bytes.data() + kSizeAt, sizeof size);
    if (bytes.size() > size) break;
  }
  if (!file || std::ferror(file.get())) fail(FASTFER_CANNOT_READ, std::string(path) + ": " + std::strerror(errno));
  return bytes;
}

}  // namespace

const char* fastfer_version(void) { return FASTFER_VERSION; }

const char* fastfer_error(void) { return last_error; }

fastfer_status fastfer_load_memory(const void* data, size_t size, const fastfer_options* options,
                                   fastfer_engine** engine) {
  return guarded([&] {
    need(data && engine, "fastfer_load_memory: data, engine: expected no NULL");
    const fastfer_options known = with_defaults(options);
    if (aligned(data, alignof(float))) {
      *engine = load(data, size, known).release();
      return;
    }
    const std::vector<char> copy(static_cast<const char*>(data), static_cast<const char*>(data) + size);
    *engine = load(copy.data(), size, known).release();
  });
}

fastfer_status fastfer_load(const char* path, const fastfer_options* options, fastfer_engine** engine) {
  return guarded([&] {
    need(path && engine, "fastfer_load: path, engine: expected no NULL");
    const fastfer_options known = with_defaults(options);
    const std::vector<char> bytes = read_file(path);
    try {
      *engine = load(bytes.data(), bytes.size(), known).release();
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(path) + ": " + error.what());
    }
  });
}

void fastfer_free(fastfer_engine* engine) { delete engine; }

fastfer_status fastfer_run(const fastfer_engine* engine, const void* images, fastfer_pixels pixels, size_t batch,
                           float* const* outputs, size_t output_count) {
  return guarded([&] {
    need(engine && outputs, "fastfer_run: engine, outputs: expected no NULL");
    const engine::Plan& plan = *engine->plan;
    const engine::Pixels type = pixels_of(pixels, *engine);
    if (output_count != plan.outputs().size())
      fail(FASTFER_BAD_ARGUMENT, "fastfer_run: output_count: expected " + std::to_string(plan.outputs().size()) +
                                     ", got " + std::to_string(output_count));
    if (batch == 0) return;
    size_t largest = elements(plan.input());
    for (size_t i = 0; i < output_count; ++i) {
      need(outputs[i] && aligned(outputs[i], alignof(float)), "fastfer_run: outputs: expected addresses of floats");
      largest = std::max(largest, elements(plan.outputs()[i]));
    }
    need(images && (pixels == FASTFER_UINT8 || aligned(images, alignof(float))),
         "fastfer_run: images: expected the address of floats, or of bytes");
    need(batch <= PTRDIFF_MAX / sizeof(float) / largest, "fastfer_run: batch: expected images that fit into memory");
    plan.run(images, type, static_cast<idx>(batch), outputs);
  });
}

fastfer_status fastfer_profile(const fastfer_engine* engine, const void* image, fastfer_pixels pixels, int repeats,
                               fastfer_step* steps, size_t capacity, size_t* count) {
  return guarded([&] {
    need(engine && count && (steps || !capacity), "fastfer_profile: engine, steps, count: expected no NULL");
    need(repeats >= 1, "fastfer_profile: repeats: expected at least 1");
    const engine::Pixels type = pixels_of(pixels, *engine);
    if (!capacity) {
      *count = engine->plan->steps();
      return;
    }
    need(image && (pixels == FASTFER_UINT8 || aligned(image, alignof(float))),
         "fastfer_profile: image: expected the address of floats, or of bytes");
    const std::vector<engine::StepTime> times = engine->plan->profile(image, type, repeats);
    for (size_t i = 0; i < std::min(capacity, times.size()); ++i) {
      const engine::StepTime& t = times[i];
      std::snprintf(steps[i].name, sizeof steps[i].name, "%s", t.name.c_str());
      steps[i].node = t.node, steps[i].tasks = t.tasks;
      steps[i].seconds = t.seconds, steps[i].macs = t.macs, steps[i].bytes = t.bytes;
    }
    *count = times.size();
  });
}

fastfer_shape fastfer_input(const fastfer_engine* engine) {
  return engine ? shape_of(engine->plan->input()) : fastfer_shape{0, 0, 0};
}

size_t fastfer_output_count(const fastfer_engine* engine) { return engine ? engine->plan->outputs().size() : 0; }

fastfer_shape fastfer_output(const fastfer_engine* engine, size_t i) {
  return i < fastfer_output_count(engine) ? shape_of(engine->plan->outputs()[i]) : fastfer_shape{0, 0, 0};
}

int fastfer_takes_uint8(const fastfer_engine* engine) { return engine && engine->takes_uint8; }

size_t fastfer_class_count(const fastfer_engine* engine) { return engine ? engine->classes.size() : 0; }

const char* fastfer_class_name(const fastfer_engine* engine, size_t i) {
  return i < fastfer_class_count(engine) ? engine->classes[i].c_str() : nullptr;
}

const char* fastfer_metadata(const fastfer_engine* engine) { return engine ? engine->plan->metadata().c_str() : ""; }

const char* fastfer_isa(const fastfer_engine* engine) { return engine ? isa_name(engine->isa) : ""; }

int fastfer_threads(const fastfer_engine* engine) { return engine ? engine->plan->threads() : 0; }

size_t fastfer_weight_bytes(const fastfer_engine* engine) { return engine ? engine->plan->weight_bytes() : 0; }

size_t fastfer_activation_bytes(const fastfer_engine* engine) { return engine ? engine->plan->arena_bytes() : 0; }
