// SPDX-License-Identifier: Apache-2.0
// The engine's bfloat16 and int8 kernels against float64 on what their operands stand for after rounding.
#pragma once
#include "engine/low_tiles.h"
#include "engine_kernels.h"

namespace {

using engine::Type;

constexpr engine::Quant kInputQuant{1 / 64.f, 64.f, 128.f}, kOutputQuant{1 / 8.f, 8.f, 100.f};
const Type kTypes[] = {Type::float32, Type::bfloat16, Type::uint8};

// A map of any type, laid out as a float32 one, its border set to what stands for zero.
class TypedMap {
 public:
  TypedMap(const Kernels& kernels, const Blocked& like, idx border, Type type, const engine::Quant& quant,
           const Blocked* values)
      : kernels_(kernels), type_(type), quant_(quant), map_(like.map()) {
    const idx size = type == Type::float32 ? 4 : type == Type::bfloat16 ? 2 : 1;
    const idx lines = like.blocks() * (map_.height + 2 * border), before = border * (map_.row + kernels.lanes);
    data_.assign(at(lines * map_.row * size + 64), type == Type::uint8 ? static_cast<uint8_t>(quant.zero) : 0);
    map_.data = reinterpret_cast<float*>(data_.data() + before * size);
    if (values) kernels.convert(values->map(), Type::float32, {}, map_, type, quant, whole());
  }
  TypedMap(TypedMap&&) = default;
  const engine::Map& map() const { return map_; }
  // NaN, or bytes that stand for much, in channels that do not exist and share no word with one that does.
  void poison() {
    const idx lanes = kernels_.lanes, pack = type_ == Type::bfloat16 ? 2 : 4, size = 4 / pack,
              used = ((map_.channels - 1) % lanes / pack + 1) * pack, last = (map_.channels - 1) / lanes;
    if (type_ == Type::float32) return;
    for (idx y = 0; y < map_.height; ++y)
      for (idx x = 0; x < map_.width; ++x)
        std::memset(reinterpret_cast<char*>(map_.data) + (last * map_.block + y * map_.row + x * lanes + used) * size,
                    255, at((lanes - used) * size));
  }
  // What the map stands for, in C, H, W order.
  std::vector<float> values(const std::string& name) const {
    Blocked plain(kernels_.lanes, map_.channels, map_.height, map_.width, 0, true);
    kernels_.convert(map_, type_, quant_, plain.map(), Type::float32, {}, whole());
    return plain.take(name);
  }

 private:
  engine::Part whole() const { return {0, map_.height, 0, (map_.channels + kernels_.lanes - 1) / kernels_.lanes}; }
  const Kernels& kernels_;
  Type type_;
  engine::Quant quant_;
  engine::Map map_;
  std::vector<uint8_t> data_;
};

Values doubles(const std::vector<float>& v) { return {v.begin(), v.end()}; }

// Half of the last place of a type, relative or of its step; beside that, `slack` of the largest.
void close(const std::string& name, const std::vector<float>& got, const Values& want, Type type,
           const engine::Quant& quant, double slack) {
  const double relative = type == Type::bfloat16 ? 1. / 256 : 0, step = type == Type::uint8 ? quant.scale * 0.5 : 0;
  const double lowest = type == Type::uint8 ? -quant.zero * quant.scale : -INFINITY;
  const double highest = type == Type::uint8 ? (255 - quant.zero) * quant.scale : INFINITY,
               largest = naive::largest(want);
  bool good = got.size() == want.size();
  for (size_t i = 0; good && i < want.size(); ++i) {
    const double bounded = std::fmin(std::fmax(want[i], lowest), highest);
    good = std::fabs(got[i] - bounded) <= relative * std::fabs(want[i]) + step + slack * largest + 1e-6;
    if (!good) std::printf("  element %d: %g for %g\n", static_cast<int>(i), static_cast<double>(got[i]), bounded);
  }
  check(good, name);
}

float as_bfloat16(float v) {
  uint32_t bits = 0;
  std::memcpy(&bits, &v, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// The weights that a dense convolution of `type` multiplies with.
Values rounded(const EngineCase& k, const Values& weight, Type type) {
  Values w = weight;
  const idx each = k.c * k.kh * k.kw;
  for (idx o = 0; o < k.o; ++o) {
    float most = 0;
    for (idx i = 0; i < each; ++i) most = std::fmax(most, std::fabs(static_cast<float>(weight[at(o * each + i)])));
    for (idx i = 0; i < each; ++i) {
      double& v = w[at(o * each + i)];
      v = type == Type::bfloat16 ? as_bfloat16(static_cast<float>(v))
                                 : std::rint(static_cast<float>(v) / (most / 127)) * (most / 127);
    }
  }
  return w;
}

void engine_low(const std::string& isa, const Kernels& kernels, const EngineCase& k, Type x_type, Type y_type) {
  const EngineData d(k, false);
  const std::vector<float> weight = EngineData::floats(d.weight), bias = d.padded_bias(kernels.lanes);
  const std::string name = isa + " engine types " + std::to_string(static_cast<int>(x_type)) + " to " +
                           std::to_string(static_cast<int>(y_type)) + k.text();
  const Blocked plain_x(kernels.lanes, k.c, k.h, k.w, k.border(), d.x),
      plain_y(kernels.lanes, k.o, k.oh(), k.ow(), 1, d.residual);
  TypedMap x(kernels, plain_x, k.border(), x_type, kInputQuant, &plain_x);
  const TypedMap residual(kernels, plain_y, 1, y_type, kOutputQuant, &plain_y);
  const std::vector<float> read = x.values(name), added = residual.values(name);
  close(name + " convert", read, d.x, x_type, kInputQuant, 0),
      close(name + " convert residual", added, d.residual, y_type, kOutputQuant, 0);
  if (!k.depthwise) x.poison();
  const Values used = k.depthwise ? d.weight : rounded(k, d.weight, x_type);
  const Values want = naive_conv(k, doubles(read), used, d.bias, doubles(added));
  const int c = static_cast<int>(k.c), o = static_cast<int>(k.o), rows = static_cast<int>(k.oh()),
            blocks = static_cast<int>(plain_y.blocks());
  const engine::LowTiles* tiles = k.depthwise ? nullptr : kernels.tiles(x_type);
  for (int panel : {1, tiles ? tiles->panel(c, o, rows, int(k.ow()), k.window()) : 1}) {
    Out<float> packed(
        static_cast<idx>(tiles ? tiles->packed(c, o, k.window()) : kernels.depthwise_packed(c, k.window())));
    tiles ? tiles->pack_weights(packed.ptr(), weight.data(), c, o, k.window(), panel)
          : kernels.pack_depthwise(packed.ptr(), weight.data(), c, k.window());
    std::vector<float> first;
    for (int cut : {0, rows / 2}) {
      const TypedMap y(kernels, plain_y, 1, y_type, kOutputQuant, nullptr);
      EnginePools pools(kernels.lanes, blocks, k.oh(), k.ow());
      const engine::Conv conv{x.map(),      y.map(),      k.window(),
                              packed.ptr(), panel,        epilogue(k, bias.data(), residual.map(), pools.pools()),
                              x_type,       y_type,       kInputQuant,
                              kOutputQuant, kOutputQuant, tiles};
      for (const engine::Part& part : {engine::Part{0, cut, 0, blocks}, engine::Part{cut, rows, 0, blocks}})
        if (part.y0 < part.y1) (k.depthwise ? kernels.depthwise : kernels.conv)(conv, part);
      const std::vector<float> got = y.values(name);
      if (cut) check(got == first, name + ": parts give other values than the whole");
      if (!cut) close(name, first = got, want, y_type, kOutputQuant, 3e-6), check_pools(name, k, doubles(got), pools);
    }
    packed.take(name + " packed weights");
    if (k.depthwise) break;
  }
}

// A chain in `type`, its input and output too or float32 (`plain`): the same values as one kernel after the other
// gives.
void engine_low_strips(const std::string& isa, const Kernels& kernels, const EngineCase (&cases)[3], Type type,
                       int kinds, bool plain) {
  std::vector<EngineStage> stages;
  stages.reserve(3);
  engine::Strips strips = {};
  const engine::Conv** places[] = {&strips.expand, &strips.depthwise, &strips.project};
  std::vector<std::vector<float>> packed(3);
  std::string name =
      isa + " engine strips of type " + std::to_string(static_cast<int>(type)) + " gates " + std::to_string(kinds);
  for (int i = 0; i < 3; ++i) {
    if (!cases[i].c) continue;
    EngineCase k = cases[i];
    k.residual = false;
    stages.emplace_back(kernels, k), *places[i] = &stages.back().conv, name += k.text();
    engine::Conv& c = stages.back().conv;
    c.x_type = c.y_type = type, c.x_quant = stages.size() == 1 ? kInputQuant : kOutputQuant, c.y_quant = kOutputQuant;
    if (k.depthwise) continue;
    c.tiles = kernels.tiles(type),
    c.panel = c.tiles->panel(c.x.channels, c.y.channels, c.y.height, c.y.width, c.window);
    packed[at(i)].resize(c.tiles->packed(c.x.channels, c.y.channels, c.window));
    c.tiles->pack_weights(packed[at(i)].data(), EngineData::floats(stages.back().data.weight).data(), c.x.channels,
                          c.y.channels, c.window, c.panel);
    c.weights = packed[at(i)].data();
  }
  const EngineCase &first = stages.front().k, &last = stages.back().k;
  const Type outside = plain ? Type::float32 : type;
  stages.back().conv.y_type = outside;
  const EngineGates gates(kernels.lanes, first, kinds);
  const engine::Part all{0, int(first.h), 0, static_cast<int>((first.c + kernels.lanes - 1) / kernels.lanes)};
  const Blocked x_values(kernels.lanes, first.c, first.h, first.w, first.border(), stages.front().data.x);
  const TypedMap x(kernels, x_values, first.border(), outside, kInputQuant, &x_values);

  const Blocked gated(kernels.lanes, first.c, first.h, first.w, first.border(), stages.front().data.x);
  kernels.convert(x.map(), outside, kInputQuant, gated.map(), Type::float32, {}, all);
  kernels.gate(gated.map(), gates.gates(), gated.map(), all);
  std::vector<TypedMap> maps;
  maps.emplace_back(kernels, gated, first.border(), type, kInputQuant, &gated);
  for (size_t i = 0; i < stages.size(); ++i) {
    const EngineCase& k = stages[i].k;
    const idx border = i + 1 < stages.size() ? stages[i + 1].k.border() : 0;
    const Blocked like(kernels.lanes, k.o, k.oh(), k.ow(), border, true);
    maps.emplace_back(kernels, like, border, stages[i].conv.y_type, kOutputQuant, nullptr);
    engine::Conv c = stages[i].conv;
    c.x = maps[i].map(), c.y = maps[i + 1].map();
    (k.depthwise ? kernels.depthwise : kernels.conv)(c, {0, int(k.oh()), 0, static_cast<int>(like.blocks())});
  }

  const Blocked like(kernels.lanes, last.o, last.oh(), last.ow(), 0, true);
  const TypedMap y(kernels, like, 0, outside, kOutputQuant, nullptr);
  strips.gates = gates.gates(), strips.x_type = outside, strips.x_quant = kInputQuant;
  stages.front().conv.x = x.map(), stages.back().conv.y = y.map();
  Out<float> scratch(static_cast<idx>(kernels.strips_scratch(strips)));
  strips.scratch = scratch.ptr();
  const int rows = static_cast<int>(last.oh()), blocks = static_cast<int>(like.blocks());
  kernels.strips(strips, {0, rows / 2, 0, blocks}), kernels.strips(strips, {rows / 2, rows, 0, blocks});
  scratch.take(name + " scratch");
  check(y.values(name) == maps.back().values(name), name + ": other values than one after the other");
}

// Whoever calls finds the tiles that he had, and none where he had none.
void engine_state(const std::string& isa, const Kernels& kernels) {
  for (Type type : {Type::bfloat16, Type::uint8}) {
    const engine::LowTiles& tiles = *kernels.tiles(type);
    check(!tiles.enter == !tiles.leave, isa + " engine: enters and does not leave");
    if (!tiles.enter) continue;
    engine::LowState states[4] = {};
    tiles.enter(states[0], 5), tiles.enter(states[1], 49), tiles.leave(states[1]);
    tiles.enter(states[2], 3), tiles.leave(states[2]), tiles.leave(states[0]);
    tiles.enter(states[3], 1), tiles.leave(states[3]);
    const auto same = [&](int i, int j) { return !std::memcmp(states[i].bytes, states[j].bytes, sizeof states[i]); };
    const engine::LowState none = {};
    check(!std::memcmp(states[0].bytes, none.bytes, sizeof none), isa + " engine: a call has left its tiles");
    check(same(0, 3) && same(1, 2) && !same(0, 1), isa + " engine: tiles are not as they were found");
  }
}

// What a convolution from `type` to float32 gives.
std::vector<float> low_result(const Kernels& kernels, const EngineCase& k, Type type) {
  const EngineData d(k, false);
  const std::vector<float> weight = EngineData::floats(d.weight), bias = d.padded_bias(kernels.lanes);
  const Blocked plain_x(kernels.lanes, k.c, k.h, k.w, k.border(), d.x),
      plain_y(kernels.lanes, k.o, k.oh(), k.ow(), 1, d.residual);
  const TypedMap x(kernels, plain_x, k.border(), type, kInputQuant, &plain_x),
      y(kernels, plain_y, 1, Type::float32, {}, &plain_y);
  const engine::LowTiles& tiles = *kernels.tiles(type);
  const int c = static_cast<int>(k.c), o = static_cast<int>(k.o), rows = static_cast<int>(k.oh()),
            blocks = static_cast<int>(plain_y.blocks()), panel = tiles.panel(c, o, rows, int(k.ow()), k.window());
  Out<float> packed(static_cast<idx>(tiles.packed(c, o, k.window())));
  tiles.pack_weights(packed.ptr(), weight.data(), c, o, k.window(), panel);
  EnginePools pools(kernels.lanes, blocks, k.oh(), k.ow());
  kernels.conv({x.map(),
                y.map(),
                k.window(),
                packed.ptr(),
                panel,
                epilogue(k, bias.data(), y.map(), pools.pools()),
                type,
                Type::float32,
                kInputQuant,
                {},
                {},
                &tiles},
               {0, rows, 0, blocks});
  return y.values("low result");
}

// Both ISAs, where this CPU has them, give the same bits: emulated tiles as real ones, and whole numbers anyhow.
void engine_same(const char* one, const char* other, Type type) {
  const Kernels* kernels[2] = {};
  for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (!isa_supported(isa)) continue;
    if (!std::strcmp(isa_name(isa), one)) kernels[0] = &engine_kernels_of(isa);
    if (!std::strcmp(isa_name(isa), other)) kernels[1] = &engine_kernels_of(isa);
  }
  if (!kernels[0] || !kernels[1]) return;
  for (const EngineCase& k : kEngineCases)
    if (!k.depthwise && k.act <= 4 && !k.residual)
      check(low_result(*kernels[0], k, type) == low_result(*kernels[1], k, type),
            std::string(one) + " and " + other + " differ:" + k.text());
}

void engine_low(Isa isa) {
  const Kernels& kernels = engine_kernels_of(isa);
  engine_state(isa_name(isa), kernels);
  for (const EngineCase& k : kEngineCases) {
    if (k.act > 4 || (k.residual && k.after > 4)) continue;
    for (Type x : kTypes)
      for (Type y : kTypes)
        if (k.depthwise || x != Type::float32) engine_low(isa_name(isa), kernels, k, x, y);
  }
  for (const auto& chain : kChains)
    for (Type type : {Type::bfloat16, Type::uint8})
      for (int kinds : {0, 6}) engine_low_strips(isa_name(isa), kernels, chain, type, kinds, kinds == 0);
  engine_state(isa_name(isa), kernels);
}

void engine_low() {
  engine_same("amx", "amxemulated512", Type::bfloat16);
  engine_same("amx", "avx512bf16", Type::uint8);
  engine_same("amxemulated512", "avx512bf16", Type::uint8);
  engine_same("amxemulated", "baseline", Type::uint8);
}

}  // namespace
