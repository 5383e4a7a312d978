// SPDX-License-Identifier: Apache-2.0
// Products of low precision: the innermost loops of dense convolutions of bfloat16 and of bytes, which instruction sets
// have ways of their own for. Everything around them (low_conv.h) is the same for all. Plain data, as kernel_table.h.
#pragma once
#include "engine/kernel_table.h"

namespace ff {
namespace engine {

// A run of tiles along pixels. A word is four bytes: two channels of bfloat16 or four of bytes. Word q of the channels
// of pixel p under tap (k, l) stands p·pixel + k·row + l·column + q / W·block + q % W·4 bytes from x on, W words to a
// channel block.
struct LowRun {
  const char* x;
  ptrdiff_t pixel, row, column, block;
  ptrdiff_t kh, kw, words;
  const float* weights;
  ptrdiff_t at;  // elements from the start of the row to the first tile's output
  // What becomes of the sums of a tile, float32 or int32, [channel block][pixel][L].
  void (*finish)(const LowRun& run, const void* sums, ptrdiff_t pixels, ptrdiff_t blocks, ptrdiff_t at);
  const void* context;  // of finish
};

// Sizes of tiles in pixels, widest first, ending with 1.
struct LowSizes {
  static constexpr int kMost = 7;
  int count, pixels[kMost];
  void (*run[kMost])(const LowRun& run, ptrdiff_t tiles);
};

struct LowTiles {
  static constexpr int kMostPanel = 5;
  const char* way;  // the instruction that multiplies
  int pack;  // channels of a word
  int vectors;  // vectors of weights for each word of a channel block
  int offset;  // what is added to bytes before they are multiplied
  LowSizes sizes[2][kMostPanel];  // by whether pixels stand one behind the other, by channel blocks of the panel

  int (*panel)(int in_channels, int out_channels, int out_height, int out_width, const Window& window);
  // Panels, then for bytes the scale and the total of each output channel; counted in floats.
  size_t (*packed)(int in_channels, int out_channels, const Window& window);
  void (*pack_weights)(float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                       int panel);
};

}  // namespace engine
}  // namespace ff
