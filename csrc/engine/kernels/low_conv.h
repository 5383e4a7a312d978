// SPDX-License-Identifier: Apache-2.0
// Dense convolution of bfloat16 and of bytes on the tiles of an instruction set (low_tiles.h): what is the same for
// all, and what follows a tile's sums.
#pragma once
#include "engine/kernels/low_maps.h"
#include "engine/low_tiles.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::LowRun;
using engine::LowState;
using engine::LowTiles;

// What follows the sums of a panel, with the places of pixel 0 of a row.
struct LowFinish {
  Activation act, after;
  bool has_after;
  Quant y_quant, residual_quant;
  char* y;
  const char* residual;
  idx y_block, residual_block;  // bytes
  const float *scale, *bias;
};

FF_INLINE vecf activated(vecf v, const Activation& a, bool clamp) {
  if (clamp) return min_bound(max_bound(v, splat(a.lo)), splat(a.hi));
  const vecf part = ramp(v, splat(a.lo), splat(a.hi));
  return a.form == Form::hardswish ? v * part : part;
}
FF_INLINE vecf activated(vecf v, const Activation& a) { return activated(v, a, a.form == Form::clamp); }

// Sum: the type of sums; those of bytes are scaled. T: what is stored. Clamp: the form of the activation.
template <class Sum, class T, bool Clamp>
static void finish_sums(const LowRun& run, const void* sums, ptrdiff_t apart, ptrdiff_t pixels, ptrdiff_t blocks,
                        ptrdiff_t at) {
  const LowFinish& f = *static_cast<const LowFinish*>(run.context);
  const Activation act = f.act, after = f.after;
  const Quant y_quant = f.y_quant, residual_quant = f.residual_quant;
  for (idx j = 0; j < blocks; ++j) {
    const float* sum = static_cast<const float*>(sums) + j * apart;
    const vecf scale = sizeof(Sum) == 1 ? load(f.scale + j * L) : vecf{}, bias = load(f.bias + j * L);
    T* to = reinterpret_cast<T*>(f.y + j * f.y_block) + at;
    const T* residual = f.residual ? reinterpret_cast<const T*>(f.residual + j * f.residual_block) + at : nullptr;
    FF_PRAGMA(GCC unroll 4)
    for (idx i = 0; i < pixels; ++i, sum += L) {
      vecf v = load(sum);
      v = sizeof(Sum) == 1 ? fma(__builtin_convertvector((i32v)v, vecf), scale, bias) : v + bias;
      v = activated(v, act, Clamp);
      if (residual) {
        v = v + load_as(residual + i * L, residual_quant);
        if (f.has_after) v = activated(v, after);
      }
      store_as(to + i * L, v, y_quant);
    }
  }
}

template <class Sum>
FF_INLINE decltype(LowRun::finish) finisher(Type type, bool clamp) {
  if (type == Type::bfloat16) return clamp ? finish_sums<Sum, bf16, true> : finish_sums<Sum, bf16, false>;
  if (type == Type::uint8) return clamp ? finish_sums<Sum, uint8_t, true> : finish_sums<Sum, uint8_t, false>;
  return clamp ? finish_sums<Sum, float, true> : finish_sums<Sum, float, false>;
}

FF_INLINE bool clamps(const Epilogue& e) { return !in_registers(e) || activation_of(e.act).form == Form::clamp; }

// Rows of the part as one run of pixels, where nothing lies between them.
FF_INLINE bool is_flat(const Conv& c) {
  const Window& w = c.window;
  const idx line = c.y.width * L;
  return w.kh * w.kw == 1 && w.sh == 1 && w.sw == 1 && !w.top && !w.left && c.x.width == c.y.width && c.x.row == line &&
         c.y.row == line && (!c.epilogue.residual.data || c.epilogue.residual.row == line);
}

// What a way sets in the CPU is set for the time of a call, so that the caller finds what it left.
class LowScope {
 public:
  LowScope(const LowTiles& tiles, idx pixels) : tiles_(tiles) {
    if (tiles_.enter) tiles_.enter(before_, pixels);
  }
  ~LowScope() {
    if (tiles_.leave) tiles_.leave(before_);
  }
  LowScope(const LowScope&) = delete;
  LowScope& operator=(const LowScope&) = delete;

 private:
  const LowTiles& tiles_;
  LowState before_;
};

// The scales and biases of bytes' sums hold the input's scale and zero: 16 KiB on the stack of a call at most.
constexpr idx kByteOutputs = 2048;
struct ByteScales {
  alignas(64) float scale[kByteOutputs], bias[kByteOutputs];
};

FF_INLINE LowFinish low_finish(const Conv& c) {
  const Epilogue& e = c.epilogue;
  const idx size = size_of(c.y_type);
  return {activation_of(in_registers(e) ? e.act : Act::none),
          activation_of(e.after),
          e.after != Act::none,
          c.y_quant,
          c.residual_quant,
          nullptr,
          nullptr,
          c.y.block * size,
          e.residual.block * size,
          nullptr,
          nullptr};
}

FF_NOINLINE void conv_part(const Conv& c, Part part, const float* scale, const float* bias,
                           decltype(LowRun::finish) finish) {
  const LowTiles& tiles = *c.tiles;
  const Window& w = c.window;
  const Epilogue& e = c.epilogue;
  const idx x_size = size_of(c.x_type), block = static_cast<idx>(tiles.block_size(c.x.channels, w));
  const bool flat = is_flat(c), here = in_registers(e);
  const idx pixels = flat ? static_cast<idx>(part.y1 - part.y0) * c.y.width : c.y.width;
  LowFinish f = low_finish(c);
  LowRun run{nullptr,
             w.sw * L * x_size,
             w.dh * c.x.row * x_size,
             w.dw * L * x_size,
             c.x.block * x_size,
             w.kh,
             w.kw,
             c.x.channels,
             nullptr,
             0,
             finish,
             &f};
  const LowScope scope(tiles, pixels);
  for (idx b = part.b0; b < part.b1; b += c.panel) {
    const idx panel = min_idx(c.panel, part.b1 - b);
    run.weights = c.weights + b * block;
    f.scale = offset(scale, b * L), f.bias = bias + b * L;
    for (idx y = part.y0; y < part.y1; ++y) {
      run.x = place(c.x, c.x_type, 0, y * w.sh - w.top) - w.left * L * x_size;
      f.y = place(c.y, c.y_type, b, y);
      f.residual = e.residual.data && here ? place(e.residual, c.y_type, b, y) : nullptr;
      tiles.run(run, pixels, static_cast<int>(panel));
      if (flat) break;
    }
    finish_rows(e, c.y, part.y0, part.y1, b, b + panel);
    pool_part(e.pools, c.y, c.y_type, c.y_quant, part, b, b + panel);
  }
}

FF_NOINLINE void conv_bytes(const Conv& c, Part part) {
  const idx outputs = blocks_of(c.y.channels) * L;
  const float* scale = c.weights + c.tiles->packed(c.x.channels, c.y.channels, c.window) - 2 * outputs;
  const vecf zero = splat(-(c.x_quant.zero + static_cast<float>(c.tiles->offset)));
  ByteScales own;
  FF_ASSERT(outputs <= kByteOutputs);
  for (idx o = part.b0 * L; o < part.b1 * L; o += L) {
    const vecf scaled = load(scale + o) * splat(c.x_quant.scale);
    store(own.scale + o, scaled);
    store(own.bias + o, fma(load(scale + outputs + o) * zero, scaled, load(c.epilogue.bias + o)));
  }
  conv_part(c, part, own.scale, own.bias, finisher<uint8_t>(c.y_type, clamps(c.epilogue)));
}

static void conv(const Conv& c, Part part) {
  FF_ASSERT(part.b0 % c.panel == 0 && (part.b1 % c.panel == 0 || part.b1 == blocks_of(c.y.channels)));
  FF_ASSERT(in_registers(c.epilogue) || c.y_type == Type::float32);
  if (c.x_type == Type::uint8) return conv_bytes(c, part);
  if (c.x_type == Type::bfloat16)
    return conv_part(c, part, nullptr, c.epilogue.bias, finisher<float>(c.y_type, clamps(c.epilogue)));
  FF_ASSERT(c.y_type == Type::float32);
  FF_FLOATS::engine_floats().conv(c, part);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
