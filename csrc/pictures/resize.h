// SPDX-License-Identifier: Apache-2.0
// A picture of bytes at another size: the triangle filter, widened where it shrinks, first along rows, then along
// columns, each rounded to a byte: the bytes of Pillow's BILINEAR, whose weights are whole numbers of 2^-22 as well.
// Rows are made as they are needed, in a ring that stays in cache.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "primitives/pictures.h"

namespace ff {
namespace pictures {

#define FF_OPS_PICTURES(isa) FF_OPS_##isa::picture_kernels,
#define FF_PICTURE_ROW(isa) &FF_OPS_PICTURES(isa)
inline const Kernels& kernels_of(Isa isa) {
  static const Kernels* const all[] = {FF_EACH_ISA(FF_PICTURE_ROW)};
  return *all[static_cast<int>(isa)];
}
#undef FF_PICTURE_ROW
#undef FF_OPS_PICTURES

// `row` bytes between rows; pixels of 1, 3 or 4 bytes.
struct Source {
  const uint8_t* data;
  idx row;
  Colours colours;
  idx height, width;
};

// channels 1: grey, luma of a coloured source; 3: its colours, `step` bytes from pixel to pixel, `plane` from colour to
// colour, the last one first where `swapped`.
struct Target {
  uint8_t* data;
  idx row, step, plane;
  int channels;
  bool swapped;
  idx height, width;
};

// Taps with their memory.
class Weights {
 public:
  Weights(idx from, idx to, int channels) {
    const double scale = static_cast<double>(from) / static_cast<double>(to), reach = std::max(scale, 1.0);
    most_ = static_cast<idx>(std::ceil(reach)) * 2 + 1;
    room_ = (most_ * channels + kRoom - 1) / kRoom * kRoom;
    weights_.assign(static_cast<size_t>(to * room_), 0);
    std::vector<double> shares(static_cast<size_t>(most_));
    for (idx x = 0; x < to; ++x) {
      const double centre = (static_cast<double>(x) + 0.5) * scale, slope = 1.0 / reach;
      const idx start = std::max<idx>(static_cast<idx>(centre - reach + 0.5), 0);
      const idx taps = std::min<idx>(static_cast<idx>(centre + reach + 0.5), from) - start;
      double sum = 0;
      for (idx k = 0; k < taps; ++k) {
        const double far = std::fabs((static_cast<double>(k + start) - centre + 0.5) * slope);
        sum += shares[static_cast<size_t>(k)] = far < 1 ? 1 - far : 0;
      }
      first_.push_back(start), taps_.push_back(taps);
      for (idx k = 0; k < taps; ++k) {
        const double share = sum != 0 ? shares[static_cast<size_t>(k)] / sum : shares[static_cast<size_t>(k)];
        const auto whole = static_cast<int32_t>(0.5 + share * (1 << kBits));
        for (int c = 0; c < channels; ++c) weights_[static_cast<size_t>(x * room_ + k * channels + c)] = whole;
      }
    }
  }

  Taps taps() const { return {static_cast<idx>(first_.size()), room_, first_.data(), taps_.data(), weights_.data()}; }
  idx most() const { return most_; }

 private:
  idx most_, room_;
  std::vector<idx> first_, taps_;
  std::vector<int32_t> weights_;
};

// The source's rows as pixels of 1 or 4 bytes.
class Rows {
 public:
  Rows(const Kernels& kernels, const Source& source, bool grey)
      : kernels_(kernels), source_(source), luma_(grey && source.colours.step > 1),
        channels_(grey || source.colours.step == 1 ? 1 : 4) {
    if (luma_ || source.colours.step == 3) made_.resize(static_cast<size_t>(source.width * channels_));
  }

  int channels() const { return channels_; }

  const uint8_t* row(idx y) {
    const uint8_t* from = source_.data + y * source_.row;
    if (luma_)
      kernels_.luma(from, source_.colours, source_.width, made_.data());
    else if (source_.colours.step == 3)
      kernels_.spread(from, source_.width, made_.data());
    return made_.empty() ? from : made_.data();
  }

 private:
  const Kernels& kernels_;
  const Source& source_;
  bool luma_;
  int channels_;
  std::vector<uint8_t> made_;
};

// A row of pixels of 1 or of 3 or 4 bytes, in the target's places.
inline void put(const Kernels& kernels, const uint8_t* row, Colours colours, const Target& target, idx y) {
  uint8_t* to = target.data + y * target.row;
  if (target.channels == 1) {
    for (idx x = 0; x < target.width; ++x) to[x * target.step] = row[x];
  } else if (colours.step == 1) {
    for (int c = 0; c < 3; ++c)
      for (idx x = 0; x < target.width; ++x) to[c * target.plane + x * target.step] = row[x];
  } else {
    kernels.store(row, {colours.step, colours.swapped != target.swapped}, target.width, to, target.step, target.plane);
  }
}

// The same size: colours and places alone.
inline void copy(const Kernels& kernels, const Source& source, const Target& target) {
  const bool luma = target.channels == 1 && source.colours.step > 1;
  std::vector<uint8_t> grey(luma ? static_cast<size_t>(source.width) : 0);
  for (idx y = 0; y < target.height; ++y) {
    const uint8_t* from = source.data + y * source.row;
    if (luma) kernels.luma(from, source.colours, source.width, grey.data());
    put(kernels, luma ? grey.data() : from, luma ? Colours{1, false} : source.colours, target, y);
  }
}

inline void resize(const Kernels& kernels, const Source& source, const Target& target) {
  if (source.height == target.height && source.width == target.width) return copy(kernels, source, target);
  Rows rows(kernels, source, target.channels == 1);
  const int channels = rows.channels();
  const Weights across(source.width, target.width, channels), down(source.height, target.height, 1);
  const Taps along = across.taps(), along_columns = down.taps();
  const idx bytes = target.width * channels, held = down.most();
  std::vector<uint8_t> ring(static_cast<size_t>(held * bytes)), made(static_cast<size_t>(bytes));
  std::vector<const uint8_t*> taken(static_cast<size_t>(held));
  idx next = 0;  // the first row that is not in the ring yet
  for (idx y = 0; y < target.height; ++y) {
    const idx first = along_columns.first[y], count = along_columns.taps[y];
    for (next = std::max(next, first); next < first + count; ++next) {
      uint8_t* to = ring.data() + next % held * bytes;
      const uint8_t* from = rows.row(next);
      if (source.width == target.width)
        std::memcpy(to, from, static_cast<size_t>(bytes));
      else
        kernels.across(from, source.width, channels, along, to);
    }
    for (idx k = 0; k < count; ++k) taken[static_cast<size_t>(k)] = ring.data() + (first + k) % held * bytes;
    kernels.down(taken.data(), along_columns.weights + y * along_columns.room, count, bytes, made.data());
    put(kernels, made.data(), {channels, source.colours.swapped}, target, y);
  }
}

}  // namespace pictures
}  // namespace ff
