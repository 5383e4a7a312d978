// SPDX-License-Identifier: Apache-2.0
// The engine's kernels on blocked maps, whole and in parts: values, borders and memory beside them.
#pragma once
#include "engine_cases.h"

namespace {

void engine_conv(const std::string& isa, const Kernels& kernels, const EngineCase& k, bool special) {
  const EngineData d(k, special);
  const Values want = naive_conv(k, d.x, d.weight, d.bias, d.residual);
  const std::vector<float> weight = EngineData::floats(d.weight), bias = d.padded_bias(kernels.lanes);
  const Blocked x(kernels.lanes, k.c, k.h, k.w, k.border(), d.x),
      residual(kernels.lanes, k.o, k.oh(), k.ow(), 1, d.residual);
  const engine::Window window = k.window();
  const int c = static_cast<int>(k.c), o = static_cast<int>(k.o),
            best = kernels.conv_panel(c, o, int(k.oh()), int(k.ow()), window);
  for (int panel : {1, 2, 3, best}) {
    Out<float> packed(
        static_cast<idx>(k.depthwise ? kernels.depthwise_packed(c, window) : kernels.conv_packed(c, o, window)));
    k.depthwise ? kernels.pack_depthwise(packed.ptr(), weight.data(), c, window)
                : kernels.pack_conv(packed.ptr(), weight.data(), c, o, window, panel);
    const std::string name = isa + " engine" + k.text() + " panel " + std::to_string(panel);
    whole_and_parts(name, k, kernels, panel, want,
                    [&](const engine::Map& y, engine::Part part, const engine::Pools& pools) {
                      const engine::Conv conv{x.map(),      y,     window,
                                              packed.ptr(), panel, epilogue(k, bias.data(), residual.map(), pools)};
                      (k.depthwise ? kernels.depthwise : kernels.conv)(conv, part);
                    });
    packed.take(name + " packed weights");
    if (k.depthwise) break;
  }
}

// A convolution that takes fewer products than a sum for each output: parts hold whole bands of rows.
struct Fewer {
  const char* name;
  int panel, band;
  idx packed, border;
  void (*pack)(float* packed, const float* w, int in_channels, int out_channels, int panel);
  size_t (*scratch)(const engine::Conv& conv);
  void (*run)(const engine::Conv& conv, float* scratch, engine::Part part);
};

void engine_fewer(const std::string& isa, const Kernels& kernels, const EngineCase& k, const Fewer& f) {
  const EngineData d(k, false);
  const std::vector<float> weight = EngineData::floats(d.weight), bias = d.padded_bias(kernels.lanes);
  const Blocked x(kernels.lanes, k.c, k.h, k.w, f.border, d.x),
      residual(kernels.lanes, k.o, k.oh(), k.ow(), 1, d.residual);
  const std::string name = isa + " engine " + f.name + k.text();
  check(f.panel > 0 && f.band > 0, name + " sizes");
  Out<float> packed(f.packed);
  f.pack(packed.ptr(), weight.data(), static_cast<int>(k.c), static_cast<int>(k.o), f.panel);
  whole_and_parts(
      name, k, kernels, f.panel, naive_conv(k, d.x, d.weight, d.bias, d.residual),
      [&](const engine::Map& y, engine::Part part, const engine::Pools& pools) {
        const engine::Conv conv{x.map(),      y,       k.window(),
                                packed.ptr(), f.panel, epilogue(k, bias.data(), residual.map(), pools)};
        Out<float> scratch(static_cast<idx>(f.scratch(conv)));
        f.run(conv, scratch.ptr(), part);
        scratch.take(name + " scratch");
      },
      f.band);
  packed.take(name + " packed weights");
}

void engine_winograd(const std::string& isa, const Kernels& kernels, const EngineCase& k) {
  const int c = static_cast<int>(k.c), o = static_cast<int>(k.o),
            panel = kernels.winograd_panel(c, o, int(k.oh()), int(k.ow()));
  const auto packed = static_cast<idx>(kernels.winograd_packed(c, o));
  engine_fewer(isa, kernels, k,
               {"winograd", panel, 4, packed, 1, kernels.pack_winograd, kernels.winograd_scratch, kernels.winograd});
}

void engine_strassen(const std::string& isa, const Kernels& kernels, const EngineCase& k) {
  const int c = static_cast<int>(k.c), o = static_cast<int>(k.o), h = static_cast<int>(k.h), w = static_cast<int>(k.w);
  const auto packed = static_cast<idx>(kernels.strassen_packed(c, o));
  engine_fewer(isa, kernels, k,
               {"strassen", kernels.strassen_panel(c, o, h, w), kernels.strassen_band(h, w), packed, 0,
                kernels.pack_strassen, kernels.strassen_scratch, kernels.strassen});
}

void engine_stem(const std::string& isa, const Kernels& kernels, const EngineCase& k, bool bytes) {
  EngineData d(k, false);
  Random random(7);
  std::vector<float> scale, shift;
  Values raw = d.x, normalised;
  for (idx c = 0; c < k.c; ++c)
    scale.push_back(static_cast<float>(random.next()) / 8), shift.push_back(static_cast<float>(random.next()));
  if (bytes)
    for (double& v : raw) v = std::floor((v + 2) * 63);
  for (size_t i = 0; i < raw.size(); ++i) {
    const size_t c = i / at(k.h * k.w);
    normalised.push_back(raw[i] * scale[c] + shift[c]);
  }
  const std::vector<uint8_t> as_bytes(raw.begin(), bytes ? raw.end() : raw.begin());
  const std::vector<float> as_floats = EngineData::floats(raw), weight = EngineData::floats(d.weight),
                           bias = d.padded_bias(kernels.lanes);
  const Values want = naive_conv(k, normalised, d.weight, d.bias, d.residual);
  const Blocked residual(kernels.lanes, k.o, k.oh(), k.ow(), 1, d.residual);
  const engine::Window window = k.window();
  const int c = static_cast<int>(k.c), o = static_cast<int>(k.o),
            panel = kernels.stem_panel(c, o, int(k.oh()), int(k.ow()), window);
  Out<float> packed(static_cast<idx>(kernels.conv_packed(c, o, window)));
  kernels.pack_conv(packed.ptr(), weight.data(), c, o, window, panel);
  const std::string name = isa + " engine stem of " + (bytes ? "bytes" : "floats") + k.text();
  whole_and_parts(name, k, kernels, panel, want,
                  [&](const engine::Map& y, engine::Part part, const engine::Pools& pools) {
                    const void* image = bytes ? static_cast<const void*>(as_bytes.data()) : as_floats.data();
                    engine::Stem stem{image,
                                      bytes ? engine::Pixels::uint8 : engine::Pixels::float32,
                                      c,
                                      int(k.h),
                                      int(k.w),
                                      scale.data(),
                                      shift.data(),
                                      window,
                                      y,
                                      packed.ptr(),
                                      panel,
                                      epilogue(k, bias.data(), residual.map(), pools),
                                      nullptr};
                    Out<float> scratch(static_cast<idx>(kernels.stem_scratch(stem)));
                    stem.scratch = scratch.ptr();
                    kernels.stem(stem, part);
                    scratch.take(name + " scratch");
                  });
}

struct EngineGates {
  std::vector<float> channel, line, column, pixel;
  Values all;  // their product, in C, H, W order
  EngineGates(idx lanes, const EngineCase& k, int kinds) {
    Random random(static_cast<uint32_t>(kinds + k.c));
    const idx blocks = (k.c + lanes - 1) / lanes;
    const auto fill = [&](std::vector<float>& v, int kind, idx size) {
      for (idx i = 0; kinds & kind && i < size; ++i) v.push_back(static_cast<float>(random.next()));
    };
    fill(channel, 1, blocks * lanes), fill(line, 2, blocks * lanes * k.h), fill(column, 4, blocks * lanes * k.w),
        fill(pixel, 8, k.h * k.w);
    for (idx c = 0; c < k.c; ++c)
      for (idx y = 0; y < k.h; ++y)
        for (idx x = 0; x < k.w; ++x) {
          double g = 1;
          if (kinds & 1) g *= channel[at(c)];
          if (kinds & 2) g *= line[at((c / lanes * k.h + y) * lanes + c % lanes)];
          if (kinds & 4) g *= column[at((c / lanes * k.w + x) * lanes + c % lanes)];
          if (kinds & 8) g *= pixel[at(y * k.w + x)];
          all.push_back(g);
        }
  }
  engine::Gates gates() const {
    const auto of = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
    return {of(channel), of(line), of(column), of(pixel)};
  }
};

// One convolution of a chain, with its weights packed.
struct EngineStage {
  EngineCase k;
  EngineData data;
  std::vector<float> packed, bias;
  Blocked residual;
  engine::Conv conv;
  EngineStage(const Kernels& kernels, const EngineCase& stage)
      : k(stage), data(stage, false), bias(data.padded_bias(kernels.lanes)),
        residual(kernels.lanes, k.o, k.oh(), k.ow(), 0, data.residual) {
    const int c = static_cast<int>(k.c), o = static_cast<int>(k.o), w = static_cast<int>(k.w),
              ow = static_cast<int>(k.ow());
    const std::vector<float> weight = EngineData::floats(data.weight);
    const int panel = k.depthwise ? 1 : kernels.conv_panel(c, o, int(k.oh()), ow, k.window());
    packed.resize(k.depthwise ? kernels.depthwise_packed(c, k.window()) : kernels.conv_packed(c, o, k.window()));
    k.depthwise ? kernels.pack_depthwise(packed.data(), weight.data(), c, k.window())
                : kernels.pack_conv(packed.data(), weight.data(), c, o, k.window(), panel);
    conv = {{nullptr, c, int(k.h), w, 0, 0},
            {nullptr, o, int(k.oh()), ow, 0, 0},
            k.window(),
            packed.data(),
            panel,
            epilogue(k, bias.data(), residual.map(), {})};
  }
  Values run(const Values& x) const { return naive_conv(k, x, data.weight, data.bias, data.residual); }
};

// A chain of up to three convolutions (c 0: missing) in strips, after gates of the kinds whose bits are set.
void engine_strips(const std::string& isa, const Kernels& kernels, const EngineCase (&cases)[3], int kinds) {
  std::vector<EngineStage> stages;
  stages.reserve(3);
  engine::Strips strips = {};
  const engine::Conv** places[] = {&strips.expand, &strips.depthwise, &strips.project};
  for (int i = 0; i < 3; ++i)
    if (cases[i].c) stages.emplace_back(kernels, cases[i]), *places[i] = &stages.back().conv;
  const EngineCase &first = stages.front().k, &last = stages.back().k;
  const EngineGates gates(kernels.lanes, first, kinds);
  strips.gates = gates.gates();
  const Blocked x(kernels.lanes, first.c, first.h, first.w, first.border(), stages.front().data.x);
  Values want = stages.front().data.x;
  for (size_t i = 0; i < want.size(); ++i) want[i] *= gates.all[i];
  idx length = 16;
  for (const EngineStage& stage : stages) want = stage.run(want), length += stage.k.c * stage.k.kh * stage.k.kw;
  stages.front().conv.x = x.map();
  const int panel = strips.project ? 1 << 20 : strips.expand ? strips.expand->panel : 1;
  std::string name = isa + " engine strips of gates " + std::to_string(kinds);
  for (const EngineStage& stage : stages) name += stage.k.text();
  whole_and_parts(name,
                  {length, first.h, first.w, last.o, 1, 1, 1, 1, 0, 0, static_cast<int>(last.oh() - first.h),
                   static_cast<int>(last.ow() - first.w), false, 0, false, 0},
                  kernels, panel, want, [&](const engine::Map& y, engine::Part part, const engine::Pools& pools) {
                    engine::Conv& end = stages.back().conv;
                    end.y = y, end.epilogue.pools = pools;
                    Out<float> scratch(static_cast<idx>(kernels.strips_scratch(strips)));
                    strips.scratch = scratch.ptr();
                    kernels.strips(strips, part);
                    scratch.take(name + " scratch");
                  });
}

EngineCase point(idx c, idx h, idx w, idx o, int act, bool residual = false) {
  return {c, h, w, o, 1, 1, 1, 1, 0, 0, 0, 0, false, act, residual, 0};
}
EngineCase deep(idx c, idx h, idx w, int k, int s, int pad, int act) {
  return {c, h, w, c, k, k, s, s, pad, pad, k - 1 - pad, k - 1 - pad, true, act, false, 0};
}
const EngineCase kChains[][3] = {
    {{}, deep(17, 9, 14, 3, 1, 1, 2), point(17, 9, 14, 40, 2)},
    {{}, deep(32, 60, 57, 3, 2, 0, 2), point(32, 30, 29, 64, 1)},
    {point(16, 50, 58, 40, 3), deep(40, 50, 58, 3, 2, 1, 3), point(40, 25, 29, 24, 0)},
    {point(24, 40, 41, 72, 3), deep(72, 40, 41, 3, 1, 1, 3), point(72, 40, 41, 24, 0, true)},
    {point(24, 21, 60, 72, 3), deep(72, 21, 60, 5, 2, 2, 3), {}},
    {{}, {}, point(40, 60, 33, 17, 3, true)},
    {{}, deep(20, 13, 9, 5, 1, 2, 0), {}},
};

const EngineCase kEngineCases[] = {
    {3, 5, 7, 5, 1, 1, 1, 1, 0, 0, 0, 0, false, 0, false, 0},
    {17, 14, 14, 33, 1, 1, 1, 1, 0, 0, 0, 0, false, 1, true, 0},
    {16, 7, 13, 112, 1, 1, 1, 1, 0, 0, 0, 0, false, 3, true, 1},
    {40, 1, 1, 10, 1, 1, 1, 1, 0, 0, 0, 0, false, 6, false, 0},
    {24, 6, 5, 80, 1, 1, 2, 2, 0, 0, 0, 0, false, 5, true, 5},
    {9, 8, 23, 20, 3, 3, 1, 1, 1, 1, 1, 1, false, 2, false, 0},
    {32, 6, 12, 64, 3, 3, 1, 1, 1, 1, 1, 1, false, 1, true, 2},
    {5, 9, 10, 7, 5, 3, 2, 1, 2, 0, 1, 2, false, 4, true, 0},
    {20, 8, 7, 3, 2, 2, 2, 2, 0, 0, 0, 0, false, 0, true, 3},
    {5, 4, 29, 5, 3, 3, 1, 1, 1, 1, 1, 1, true, 2, false, 0},
    {17, 7, 14, 17, 3, 3, 1, 1, 1, 1, 1, 1, true, 3, true, 0},
    {33, 9, 15, 33, 3, 3, 2, 2, 0, 0, 1, 1, true, 1, false, 0},
    {16, 10, 28, 16, 5, 5, 1, 1, 2, 2, 2, 2, true, 3, true, 1},
    {7, 13, 17, 7, 5, 5, 2, 2, 2, 2, 2, 2, true, 6, false, 0},
    {18, 14, 14, 18, 4, 4, 4, 4, 1, 1, 1, 1, true, 1, false, 0},
    {6, 4, 14, 6, 2, 2, 2, 2, 0, 0, 0, 0, true, 0, true, 2},
    {12, 9, 8, 12, 7, 7, 1, 1, 3, 3, 3, 3, true, 5, true, 0},
    {4, 6, 5, 4, 3, 5, 2, 1, 1, 0, 0, 2, true, 4, false, 0},
};
const EngineCase kWinogradCases[] = {
    {32, 24, 24, 64, 3, 3, 1, 1, 1, 1, 1, 1, false, 1, false, 0},
    {64, 12, 12, 80, 3, 3, 1, 1, 1, 1, 1, 1, false, 3, true, 1},
    {5, 18, 17, 19, 3, 3, 1, 1, 1, 1, 1, 1, false, 6, true, 0},
    {17, 9, 71, 3, 3, 3, 1, 1, 0, 1, 1, 0, false, 0, true, 5},
};
const EngineCase kStrassenCases[] = {
    {256, 8, 8, 256, 1, 1, 1, 1, 0, 0, 0, 0, false, 1, false, 0},
    {288, 28, 10, 256, 1, 1, 1, 1, 0, 0, 0, 0, false, 3, false, 0},  // two bands
    {256, 21, 6, 320, 1, 1, 1, 1, 0, 0, 0, 0, false, 5, false, 0},   // halves that end within a row
};
const EngineCase kStemCases[] = {
    {1, 12, 19, 32, 3, 3, 1, 1, 1, 1, 1, 1, false, 1, false, 0},
    {3, 15, 30, 16, 3, 3, 2, 2, 1, 1, 1, 1, false, 3, false, 0},
    {3, 14, 28, 32, 3, 3, 2, 2, 0, 0, 1, 1, false, 2, true, 0},
    {2, 40, 300, 5, 5, 5, 1, 1, 2, 2, 2, 2, false, 0, false, 0},
    {1, 9, 11, 70, 4, 4, 4, 4, 0, 0, 0, 0, false, 1, false, 0},
    {18, 6, 9, 8, 1, 1, 1, 1, 0, 0, 0, 0, false, 0, true, 1},
};

void engine_kernels(Isa isa) {
  const Kernels& kernels = engine_kernels_of(isa);
  for (const EngineCase& k : kEngineCases)
    for (bool special : {false, true}) engine_conv(isa_name(isa), kernels, k, special);
  for (const EngineCase& k : kStemCases)
    for (bool bytes : {false, true}) engine_stem(isa_name(isa), kernels, k, bytes);
  for (const EngineCase& k : kWinogradCases) engine_winograd(isa_name(isa), kernels, k);
  for (const EngineCase& k : kStrassenCases) engine_strassen(isa_name(isa), kernels, k);
  check(!kernels.strassen_panel(256, 256, 7, 7) && !kernels.strassen_panel(128, 128, 28, 28),
        "strassen where it does not fit or pay");
  for (const auto& chain : kChains)
    for (int next : {0, 1, 6, 8, 15})
      engine_strips(isa_name(isa), kernels, chain, chain[2].c && !chain[1].c && !next ? 3 : next);
}

}  // namespace
