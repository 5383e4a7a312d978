// SPDX-License-Identifier: Apache-2.0
// The C interface, beside the engine itself: capi [damaged files]. Needs a sanitizer to see more than wrong answers.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "engine/plan/plan.h"
#include "engine_file.h"
#include "fastfer.h"

namespace {

using namespace ff;
using Bytes = std::vector<uint8_t>;

std::atomic<int> passed{0}, failed{0};

void check(bool good, const std::string& what) {
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s: %s\n", what.c_str(), fastfer_error());
}

const char kMetadata[] =
    "{\"mean\": [0.5, 0.25, 0], \"std\": [0.5, 1, 2e0], \"classes\": [\"a\", \"b\", \"c\", \"d\", \"\\u00e9\", "
    "\"\\ud83d\\ude00\", \"\xc3\xbc\"], \"options\": {\"depth\": [1, -2.5, NaN, true, null]}, \"strict\": false}";

// The file with this metadata behind its data.
Bytes with_metadata(Bytes file, const std::string& text) {
  const uint64_t place[] = {file.size(), text.size()};
  file.insert(file.end(), text.begin(), text.end());
  const uint64_t size = file.size();
  std::memcpy(file.data() + 16, &size, sizeof size), std::memcpy(file.data() + 32, place, sizeof place);
  EngineFile::seal(file);
  return file;
}

struct Free {
  void operator()(fastfer_engine* engine) const { fastfer_free(engine); }
};
using Handle = std::unique_ptr<fastfer_engine, Free>;

fastfer_status load(const Bytes& file, Handle& handle, const fastfer_options* options = nullptr) {
  fastfer_engine* engine = nullptr;
  const fastfer_status status = fastfer_load_memory(file.data(), file.size(), options, &engine);
  check((status == FASTFER_OK) == (engine != nullptr), "an engine exactly where it was loaded");
  handle.reset(engine);
  return status;
}

size_t floats(const fastfer_shape& s) { return s.channels * s.height * s.width; }

// All outputs, one behind the other.
std::vector<float> run(const fastfer_engine* engine, const void* images, fastfer_pixels pixels, size_t batch) {
  size_t total = 0;
  std::vector<size_t> starts;
  for (size_t i = 0; i < fastfer_output_count(engine); ++i)
    starts.push_back(total), total += batch * floats(fastfer_output(engine, i));
  std::vector<float> values(total);
  std::vector<float*> outputs;
  for (const size_t start : starts) outputs.push_back(values.data() + start);
  check(fastfer_run(engine, images, pixels, batch, outputs.data(), outputs.size()) == FASTFER_OK, "run");
  return values;
}

std::vector<float> floats_of(const Bytes& pixels) {
  static const float kScale[] = {1 / (255 * .5f), 1 / 255.f, 1 / (255 * 2.f)}, kShift[] = {-1, -.25f, 0};
  std::vector<float> values;
  for (size_t i = 0; i < pixels.size(); ++i)
    values.push_back(pixels[i] * kScale[i / 168 % 3] + kShift[i / 168 % 3]);  // 168: a channel of every_operation()
  return values;
}

Bytes random_pixels(size_t count) {
  Bytes pixels;
  uint32_t state = 1;
  for (size_t i = 0; i < count; ++i)
    pixels.push_back(static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24));
  return pixels;
}

void same_as_the_plan(const Bytes& file) {
  Handle engine;
  fastfer_options options = FASTFER_OPTIONS_INIT;
  options.threads = 2;
  check(load(file, engine, &options) == FASTFER_OK, "load");
  check(fastfer_threads(engine.get()) == 2 && *fastfer_isa(engine.get()), "threads and ISA");
  check(fastfer_class_count(engine.get()) == 7, "seven classes");
  check(!std::strcmp(fastfer_class_name(engine.get(), 4), "\xc3\xa9") &&
            !std::strcmp(fastfer_class_name(engine.get(), 5), "\xf0\x9f\x98\x80") &&
            !fastfer_class_name(engine.get(), 7),
        "names of classes");
  check(!std::strcmp(fastfer_metadata(engine.get()), kMetadata), "metadata");
  check(floats(fastfer_input(engine.get())) == 3 * 168 && fastfer_output_count(engine.get()) == 3, "shapes");
  check(fastfer_weight_bytes(engine.get()) > 0 && fastfer_activation_bytes(engine.get()) > 0, "memory");

  const Bytes pixels = random_pixels(5 * 3 * 168);
  const std::vector<float> images = floats_of(pixels), got = run(engine.get(), images.data(), FASTFER_FLOAT32, 5);
  engine::PlanOptions plain;
  plain.isa = active_isa(), plain.threads = 2;
  const engine::Plan plan(file.data(), file.size(), plain);
  std::vector<float> want(got.size());
  float* places[engine::kMostOutputs];
  size_t at = 0;
  for (size_t i = 0; i < plan.outputs().size(); ++i)
    places[i] = want.data() + at, at += 5 * floats(fastfer_output(engine.get(), i));
  plan.run(images.data(), engine::Pixels::float32, 5, places);
  check(got == want, "float32 images: the bits of the plan");
  check(fastfer_takes_uint8(engine.get()) == 1, "mean and std are there");
  const std::vector<float> bytes = run(engine.get(), pixels.data(), FASTFER_UINT8, 5);
  float worst = 0;
  for (size_t i = 0; i < bytes.size(); ++i)
    worst = std::max(worst, std::abs(bytes[i] - got[i]) / (1 + std::abs(got[i])));
  check(worst < 1e-4f, "uint8 images: normalised inside, off by " + std::to_string(worst));
}

void unaligned_bytes(const Bytes& file) {
  Bytes moved(file.size() + 1);
  std::memcpy(moved.data() + 1, file.data(), file.size());
  fastfer_engine* engine = nullptr;
  check(fastfer_load_memory(moved.data() + 1, file.size(), nullptr, &engine) == FASTFER_OK, "unaligned bytes");
  fastfer_free(engine);
}

void bad_arguments(const Bytes& file) {
  Handle engine;
  check(load(file, engine) == FASTFER_OK, "load");
  const auto refused = [](fastfer_status status, const char* word) {
    check(status == FASTFER_BAD_ARGUMENT && std::strstr(fastfer_error(), word), std::string("refused: ") + word);
  };
  fastfer_engine* none = nullptr;
  refused(fastfer_load(nullptr, nullptr, &none), "path");
  refused(fastfer_load_memory(file.data(), file.size(), nullptr, nullptr), "engine");
  const auto with = [&](void (*change)(fastfer_options&)) {
    fastfer_options options = FASTFER_OPTIONS_INIT;
    change(options);
    return load(file, engine, &options);
  };
  refused(with([](fastfer_options& o) { o.size = 3; }), "options.size");
  refused(with([](fastfer_options& o) { o.threads = -1; }), "options.threads");
  refused(with([](fastfer_options& o) { o.threads = 1 << 20; }), "options.threads");
  refused(with([](fastfer_options& o) { o.image_threads = -1; }), "options.image_threads");
  refused(with([](fastfer_options& o) { o.precision = 7; }), "options.precision");
  refused(with([](fastfer_options& o) { o.strict = 2; }), "options.strict");
  refused(with([](fastfer_options& o) { o.isa = "sse9"; }), "options.isa");
  const fastfer_status low = with([](fastfer_options& o) { o.precision = FASTFER_PRECISION_INT8; });
  check(low == FASTFER_UNSUPPORTED && std::strstr(fastfer_error(), "int8"), "int8 without ranges");

  check(load(file, engine) == FASTFER_OK, "load");
  std::vector<float> image(3 * 168), outputs(4000);
  float* places[] = {outputs.data(), outputs.data() + 1000, outputs.data() + 2000};
  const auto run_with = [&](const void* images, size_t batch, float* const* to, size_t count) {
    return fastfer_run(engine.get(), images, FASTFER_FLOAT32, batch, to, count);
  };
  refused(fastfer_run(nullptr, image.data(), FASTFER_FLOAT32, 1, places, 3), "engine");
  refused(fastfer_run(engine.get(), image.data(), 2, 1, places, 3), "pixels");
  refused(run_with(nullptr, 1, places, 3), "images");
  refused(run_with(reinterpret_cast<const char*>(image.data()) + 1, 1, places, 3), "images");
  refused(run_with(image.data(), 1, nullptr, 3), "outputs");
  refused(run_with(image.data(), 1, places, 2), "output_count");
  refused(run_with(image.data(), SIZE_MAX / 2, places, 3), "batch");
  check(run_with(nullptr, 0, places, 3) == FASTFER_OK, "no image");
  places[1] = nullptr;
  refused(run_with(image.data(), 1, places, 3), "outputs");
  size_t count = 0;
  refused(fastfer_profile(engine.get(), image.data(), FASTFER_FLOAT32, 0, nullptr, 0, &count), "repeats");
  refused(fastfer_profile(engine.get(), nullptr, FASTFER_FLOAT32, 1, nullptr, 1, &count), "steps");
  check(fastfer_output_count(nullptr) + fastfer_class_count(nullptr) + floats(fastfer_input(nullptr)) == 0 &&
            !*fastfer_metadata(nullptr) && !fastfer_class_name(nullptr, 0) && !floats(fastfer_output(engine.get(), 3)),
        "nothing of nothing");
  fastfer_free(nullptr);
}

void files_and_paths(const Bytes& file) {
  fastfer_engine* engine = nullptr;
  check(
      fastfer_load("/no/such.ffe", nullptr, &engine) == FASTFER_CANNOT_READ && std::strstr(fastfer_error(), "/no/such"),
      "a file that is not there");
  check(fastfer_load("/", nullptr, &engine) == FASTFER_CANNOT_READ, "a folder");
  check(fastfer_load("/dev/zero", nullptr, &engine) == FASTFER_BAD_FILE, "a device that never ends");
  std::FILE* temporary = std::tmpfile();
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fileno(temporary));
  check(fastfer_load(path, nullptr, &engine) == FASTFER_BAD_FILE && std::strstr(fastfer_error(), path),
        "an empty file");
  std::fwrite(file.data(), 1, file.size(), temporary), std::fflush(temporary);
  check(fastfer_load(path, nullptr, &engine) == FASTFER_OK && engine, "a file");
  fastfer_free(engine);
  std::fclose(temporary);
}

void metadata(const Bytes& file) {
  const std::string deep(70, '['), closed(70, ']');
  const struct {
    std::string text;
    fastfer_status status;
    int takes_uint8;
    size_t classes;
  } rows[] = {
      {"{}", FASTFER_OK, 0, 0},
      {" {\"a\": [[], {}, \"\\\"\\\\\\/\\b\\n\", -0.5E-3, 0, Infinity, -Infinity, false]} ", FASTFER_OK, 0, 0},
      {"{\"mean\": null, \"std\": null, \"classes\": null}", FASTFER_OK, 0, 0},
      {"{\"mean\": [0,0,0], \"std\": [1,1,1], \"preprocess\": {\"equalise\": true}}", FASTFER_OK, 0, 0},
      {"{\"mean\": [0,0,0], \"std\": [1,1,1], \"mean\": [1,2,3]}", FASTFER_OK, 1, 0},
      {"{\"mean\": [0,0], \"std\": [1,1]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"mean\": [0,0,0], \"std\": [1,0,1]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"mean\": [0,0,0]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"mean\": [0,0,NaN], \"std\": [1,1,1]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"classes\": [\"a\", \"b\"]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"classes\": [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"a\"]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"classes\": [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"\\u0000\"]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"classes\": [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",7]}", FASTFER_BAD_FILE, 0, 0},
      {"{\"dtype\": \"float16\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"dtype\": 1}", FASTFER_BAD_FILE, 0, 0},
      {"", FASTFER_BAD_FILE, 0, 0},
      {"[]", FASTFER_BAD_FILE, 0, 0},
      {"{", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": 1,}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": 01}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": 1.}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": -}", FASTFER_BAD_FILE, 0, 0},
      {"{} x", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\\x\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\\ud800\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\\ud800\\u0041\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\\u12g4\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\n\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\xff\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\xc0\x80\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\xed\xa0\x80\"}", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": \"\xe2\x82", FASTFER_BAD_FILE, 0, 0},
      {"{\"a\": " + deep + closed + "}", FASTFER_BAD_FILE, 0, 0},
  };
  for (const auto& row : rows) {
    Handle engine;
    check(load(with_metadata(file, row.text), engine) == row.status, "metadata " + row.text);
    check(row.status != FASTFER_BAD_FILE || *fastfer_error(), "a message on " + row.text);
    check(fastfer_takes_uint8(engine.get()) == row.takes_uint8 && fastfer_class_count(engine.get()) == row.classes,
          "what is read of " + row.text);
  }
}

// Damaged files are refused with a message, or run.
void damaged(const Bytes& good, long files) {
  uint64_t state = 88172645463325252u;
  const auto below = [&](size_t n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<size_t>(state % n);
  };
  long refused = 0, ran = 0;
  const std::vector<float> image(3 * 168, .5f);
  for (long i = 0; i < files; ++i) {
    Bytes file = good;
    const size_t text = file.size() - (sizeof kMetadata - 1);
    for (size_t changes = 1 + below(3); changes > 0; --changes) {
      const size_t at = below(2) ? text + below(sizeof kMetadata - 1) : below(96 + 400);
      file[at] = below(2) ? static_cast<uint8_t>(below(256)) : file[below(file.size())];
    }
    EngineFile::seal(file);
    Handle engine;
    if (load(file, engine) != FASTFER_OK) {
      refused += *fastfer_error() != 0;
      continue;
    }
    if (floats(fastfer_input(engine.get())) == image.size()) run(engine.get(), image.data(), FASTFER_FLOAT32, 1);
    ++ran;
  }
  check(refused > 0 && ran > 0 && refused + ran == files, "damaged files");
  std::printf("%ld damaged files: %ld refused, %ld run\n", files, refused, ran);
}

// One engine in all threads, loads and failures beside it; each thread reads its own message.
void many_threads(const Bytes& file) {
  Handle engine;
  check(load(file, engine) == FASTFER_OK, "load");
  const std::vector<float> image = floats_of(random_pixels(3 * 168));
  const std::vector<float> want = run(engine.get(), image.data(), FASTFER_FLOAT32, 1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      const std::string path = "/no/such/" + std::to_string(t);
      for (int i = 0; i < 20; ++i) {
        check(run(engine.get(), image.data(), FASTFER_FLOAT32, 1) == want, "the same from every thread");
        Handle own;
        check(load(file, own) == FASTFER_OK, "load beside others");
        fastfer_engine* none = nullptr;
        check(fastfer_load(path.c_str(), nullptr, &none) == FASTFER_CANNOT_READ &&
                  std::strstr(fastfer_error(), path.c_str()),
              "each thread's own message");
      }
    });
  for (std::thread& thread : threads) thread.join();
}

void profiles(const Bytes& file) {
  Handle engine;
  check(load(file, engine) == FASTFER_OK, "load");
  const std::vector<float> image(3 * 168);
  size_t count = 0, again = 0;
  check(fastfer_profile(engine.get(), nullptr, FASTFER_FLOAT32, 1, nullptr, 0, &count) == FASTFER_OK && count > 5,
        "the number of steps");
  std::vector<fastfer_step> steps(count + 1);
  std::memset(steps.data(), 1, steps.size() * sizeof steps[0]);
  check(fastfer_profile(engine.get(), image.data(), FASTFER_FLOAT32, 3, steps.data(), count, &again) == FASTFER_OK &&
            again == count,
        "profile");
  for (size_t i = 0; i < count; ++i)
    check(*steps[i].name && steps[i].seconds >= 0 && steps[i].tasks >= 1, "step " + std::to_string(i));
  check(steps[count].node == 0x01010101, "nothing behind the last step");
}

}  // namespace

int main(int count, char** arguments) {
  const Bytes plain = every_operation(), file = with_metadata(plain, kMetadata);
  check(*fastfer_version() && !*fastfer_error(), "before anything failed");
  same_as_the_plan(file);
  unaligned_bytes(file);
  bad_arguments(file);
  files_and_paths(file);
  metadata(plain);
  damaged(file, count > 1 ? std::atol(arguments[1]) : 2000);
  many_threads(file);
  profiles(file);
  std::printf("%d passed, %d failed\n", passed.load(), failed.load());
  return failed ? 1 : 0;
}
