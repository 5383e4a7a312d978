// SPDX-License-Identifier: Apache-2.0
// What plans and the inference kernels share: images in the blocked layout, the arguments of a kernel, and the table of
// kernels of one ISA. Plain data only: this header is compiled with and without each ISA's flags.
//
// Layout. A map holds one image as nChw{L}c, L = Kernels::lanes (16 AVX-512, 8 AVX2, 4 NEON and baseline): channel c of
// pixel (y, x) stands at data[(c / L)·block + y·row + x·L + c % L]. The last block is filled up with channels that hold
// zeros, unless act(0) is not zero or an input was infinite; whatever they hold, it never reaches a real channel.
// Around the image the storage may have a border of zeros, which convolutions read as padding: `data` points at pixel
// (0, 0), so the border has negative coordinates. Kernels never write the border, and read and write nothing beside it.
// Fastest with data 64-byte aligned and row, block multiples of 16; any alignment is correct.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "core/isa.h"
#include "core/types.h"

namespace ff {
namespace engine {

struct Map {
  float* data;  // or what Type says, cast
  int channels, height, width;
  ptrdiff_t row, block;  // elements between rows, between channel blocks
};

// What a map holds where it is not float32: bfloat16, or bytes that stand for (q - zero)·scale. A border of bytes holds
// `zero`; row and block are multiples of L. An epilogue then has no silu and no sigmoid; channels that do not exist
// read as numbers; conv of float32 writes float32 (strips and convert change types).
enum class Type : int { float32, bfloat16, uint8 };
struct Quant {
  float scale, inverse, zero;  // inverse: 1 / scale; zero is a whole number
};

// One image of few channels, each a plane: channel c of pixel (y, x) stands at data[c·plane + y·row + x]. Borders as
// above. A plane that is a multiple of 1024 floats puts all channels of a pixel into the same few lines of L1: avoid
// it.
struct Planes {
  float* data;
  int channels, height, width;
  ptrdiff_t row, plane;
};

// The part of an output that a call computes: rows [y0, y1) of channel blocks [b0, b1). Parts may run at the same time.
struct Part {
  int y0, y1, b0, b1;
};

// Sums and maxima of a convolution's final values, as maps of one column or one row (null: not wanted), blocked like
// the output. The order of summation depends on shapes only. Of lines, a call stores those it computes; of columns, a
// call that starts at row 0 stores and others add, so an output that is split by rows must have its parts run in that
// order.
struct Pools {
  float *line_sum, *line_max;  // over the columns of each row: [blocks][height][L]
  float *column_sum, *column_max;  // over the rows of each column: [blocks][width][L]
};

// y = after(act(convolution + bias) + residual), then the pools of y.
struct Epilogue {
  const float* bias;  // [blocks·L], zeros after the last channel; never null
  Act act, after;
  Map residual;  // shaped like y; y itself, except with silu and sigmoid; data null: none, nor `after`
  Pools pools;
};

// A convolution's geometry. Output pixel (i, j) reads input rows from i·sh - top and columns from j·sw - left on, each
// dh rows and dw columns after the one before; only conv and depthwise know other distances than 1.
struct Window {
  int kh, kw, sh, sw, top, left;
  int dh = 1, dw = 1;
};

// Pixels that a window covers along each axis.
constexpr int span_height(const Window& w) { return (w.kh - 1) * w.dh + 1; }
constexpr int span_width(const Window& w) { return (w.kw - 1) * w.dw + 1; }

struct LowTiles;  // of low_tiles.h

// conv: dense convolution of any window, 1×1 included. x needs a border that covers what the window reads outside it.
// depthwise: one filter a channel, y.channels = x.channels; border as conv, `panel` unused. x and y must not overlap.
struct Conv {
  Map x, y;
  Window window;
  const float* weights;  // packed
  int panel;  // channel blocks that share a panel of weights: b0 and b1 of a Part must be multiples of it (or the end)
  Epilogue epilogue;
  Type x_type = Type::float32, y_type = Type::float32;  // the residual is as y
  Quant x_quant = {}, y_quant = {}, residual_quant = {};
  const LowTiles* tiles = nullptr;  // what conv of another x_type than float32 multiplies with, and packed its weights
};

enum class Pixels : int { float32, uint8 };

// stem: a convolution that reads an NCHW image as the caller gave it, value·scale[c] + shift[c], zeros outside: padding
// is the normalised zero whatever the pixels' type. No border, no alignment.
struct Stem {
  const void* x;  // [channels][height][width]
  Pixels type;
  int channels, height, width;
  const float *scale, *shift;  // [channels], or both null: 1 and 0
  Window window;
  Map y;
  const float* weights;  // packed
  int panel;  // as in Conv
  Epilogue epilogue;
  float* scratch;  // Kernels::stem_scratch floats, of this call alone
};

// plane_conv: y = act(convolution + bias) of few channels on planes, vectors along x; stride 1. x needs its border, and
// kPlaneSlack readable floats after what the window reads of the last row.
constexpr int kPlaneSlack = 16;
struct PlaneConv {
  Planes x, y;
  Window window;
  const float *weights, *bias;  // packed; [y.channels]
  Act act;
};

// Factors on an image, each null where there is none: of channels [blocks·L], of lines [blocks][height][L], of columns
// [blocks][width][L] (as Pools lays them out), and of pixels [height][width].
struct Gates {
  const float *channel, *line, *column, *pixel;
};

// strips: up to three convolutions one after another by strips of rows, so that what is between them stays in cache:
// gates, 1×1 `expand`, `depthwise`, 1×1 `project`, each of which may be missing, but not depthwise and project both.
// Convolutions are described as for themselves, with sizes of x and y, but the places of maps in between are not read:
// only the first one's x and the last one's y, and all residuals. Between them no border is needed; in front of
// depthwise that comes first and has no gates, the usual one. With `project` a Part must hold all its blocks; without,
// it tells those of depthwise, at multiples of expand's panel. Pools are those of the last convolution.
struct Strips {
  Gates gates;  // on the first one's x
  const Conv *expand, *depthwise, *project;  // null: missing
  float* scratch;  // Kernels::strips_scratch floats, of this call alone
  Type x_type = Type::float32;  // of the first one's x in memory, which gates, or a copy, turn into what
  Quant x_quant = {};  // the convolution reads
};

// Sizes count floats. Weights come as trained: conv and stem (O, C, kh, kw), depthwise (C, 1, kh, kw). The panel is
// chosen once, when weights are packed, by the time that a call is predicted to take.
struct Kernels {
  int lanes;

  int (*conv_panel)(int in_channels, int out_channels, int out_height, int out_width, const Window& window);
  int (*stem_panel)(int channels, int out_channels, int out_height, int out_width, const Window& window);
  size_t (*conv_packed)(int in_channels, int out_channels, const Window& window);
  void (*pack_conv)(float* packed, const float* w, int in_channels, int out_channels, const Window& window, int panel);
  void (*conv)(const Conv& conv, Part part);
  size_t (*stem_scratch)(const Stem& stem);
  void (*stem)(const Stem& stem, Part part);

  // winograd: conv of 3×3 windows with stride 1 in a quarter of the products; y0 and y1 of a Part are multiples of 4
  // (or the end). A result is off by about 1e-6 of the largest of its channel, where conv is off by 3e-7.
  int (*winograd_panel)(int in_channels, int out_channels, int out_height, int out_width);
  size_t (*winograd_packed)(int in_channels, int out_channels);
  void (*pack_winograd)(float* packed, const float* w, int in_channels, int out_channels, int panel);
  size_t (*winograd_scratch)(const Conv& conv);
  void (*winograd)(const Conv& conv, float* scratch, Part part);

  // strassen: conv of 1×1 windows with stride 1 in seven eighths of the products, without residual; nothing lies
  // between the rows of x; y0 and y1 of a Part are multiples of strassen_band. Panel 0: the sizes do not allow it, or
  // it does not pay. A result is off by about three times as much as conv's.
  int (*strassen_band)(int height, int width);
  int (*strassen_panel)(int in_channels, int out_channels, int height, int width);
  size_t (*strassen_packed)(int in_channels, int out_channels);
  void (*pack_strassen)(float* packed, const float* w, int in_channels, int out_channels, int panel);
  size_t (*strassen_scratch)(const Conv& conv);
  void (*strassen)(const Conv& conv, float* scratch, Part part);

  size_t (*depthwise_packed)(int channels, const Window& window);
  void (*pack_depthwise)(float* packed, const float* w, int channels, const Window& window);
  void (*depthwise)(const Conv& conv, Part part);

  void (*gate)(const Map& x, const Gates& gates, const Map& y, Part part);  // y = x·gates; y may be x
  void (*convert)(const Map& x, Type x_type, const Quant& x_quant, const Map& y, Type y_type, const Quant& y_quant,
                  Part part);
  size_t (*strips_scratch)(const Strips& strips);
  void (*strips)(const Strips& strips, Part part);

  // Planes, rows [y0, y1). read: an image as Stem's, value·scale[c] + shift[c]. pool: sum and maximum of each channel.
  // gate: y = x·gate[c] (y may be x; gate null: 1), and of that the maximum and mean over the channels of each pixel,
  // as the two channels of `pixels`. to_map: y = x·gate (one plane shaped like x; data null: 1) in the blocked layout.
  size_t (*plane_conv_packed)(int in_channels, int out_channels, const Window& window);
  void (*pack_plane_conv)(float* packed, const float* w, int in_channels, int out_channels, const Window& window);
  void (*plane_conv)(const PlaneConv& conv, int y0, int y1);
  void (*planes_read)(const Planes& y, const void* image, Pixels type, const float* scale, const float* shift, int y0,
                      int y1);
  void (*planes_pool)(const Planes& x, float* sum, float* most, int y0, int y1);
  void (*planes_gate)(const Planes& x, const float* gate, const Planes& y, const Planes& pixels, int y0, int y1);
  void (*planes_to_map)(const Planes& x, const Planes& gate, const Map& y, int y0, int y1);

  // conv of bfloat16 and of bytes multiplies by these; depthwise reads and both write any type, depthwise with float32
  // weights; sums are float32, or int32 of bytes. int8 weights have a scale for each output channel.
  const LowTiles *bfloat16, *bytes;
  const LowTiles* tiles(Type type) const {
    return type == Type::bfloat16 ? bfloat16 : type == Type::uint8 ? bytes : nullptr;
  }
};

}  // namespace engine

// Of each ISA that has its own: float32 kernels (the rest of the table is null); what it has of kernels of any type;
// products of low precision.
#define FF_ENGINE_KERNELS(name)                \
  namespace name {                             \
  const engine::Kernels& engine_floats();      \
  void take_engine_low(engine::Kernels& into); \
  const engine::LowTiles& engine_bfloat16();   \
  const engine::LowTiles& engine_bytes();      \
  }
FF_EACH_ISA(FF_ENGINE_KERNELS)
#undef FF_ENGINE_KERNELS

}  // namespace ff
