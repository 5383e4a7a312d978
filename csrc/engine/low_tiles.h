// SPDX-License-Identifier: Apache-2.0
// Products of low precision: the innermost loops of dense convolutions of bfloat16 and of bytes, which instruction sets
// have ways of their own for. Everything around them (low_conv.h) is the same for all. Plain data, as kernel_table.h.
#pragma once
#include "engine/kernel_table.h"

namespace ff {
namespace engine {

// A run of pixels. A word is four bytes: two channels of bfloat16 or four of bytes. Word q of the channels of pixel p
// under tap (k, l) stands p·pixel + k·row + l·column + q / W·block + q % W·4 bytes from x on, W words to a channel
// block.
struct LowRun {
  const char* x;
  ptrdiff_t pixel, row, column, block;
  ptrdiff_t kh, kw, channels;
  const float* weights;
  ptrdiff_t at;  // elements from the start of the row to the first pixel's output
  // What becomes of the sums of some of the pixels, float32 or int32, [channel block][pixel][L], the channel blocks
  // `apart` lanes apart.
  void (*finish)(const LowRun& run, const void* sums, ptrdiff_t apart, ptrdiff_t pixels, ptrdiff_t blocks,
                 ptrdiff_t at);
  const void* context;  // of finish
};

// What a way has set in the CPU, or found there.
struct alignas(64) LowState {
  unsigned char bytes[64];
};

struct LowTiles {
  const char* way;  // the instruction that multiplies
  int offset;  // what is added to bytes before they are multiplied
  void (*run)(const LowRun& run, ptrdiff_t pixels, int blocks);  // of a panel of so many channel blocks
  // Around the calls of run, all of so many pixels; `before` keeps what the thread had set. Null: nothing is to be set.
  void (*enter)(LowState& before, ptrdiff_t pixels);
  void (*leave)(const LowState& before);

  int (*panel)(int in_channels, int out_channels, int out_height, int out_width, const Window& window);
  // Floats of the packed weights of one channel block of outputs; of all, with what follows them: for bytes the scale
  // and the total of each output channel.
  size_t (*block_size)(int in_channels, const Window& window);
  size_t (*packed)(int in_channels, int out_channels, const Window& window);
  void (*pack_weights)(float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                       int panel);
};

}  // namespace engine
}  // namespace ff
