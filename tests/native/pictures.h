// SPDX-License-Identifier: Apache-2.0
// Rows of pictures: every ISA's bytes are those of the sums written out, with nothing read or written beside a picture.
#pragma once
#include "harness.h"
#include "pictures/resize.h"

namespace {

std::vector<uint8_t> random_bytes(Random& random, idx count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((random.next() + 2) * 63.9);
  return bytes;
}

int luma(const uint8_t* p) { return (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16; }

// One channel [from] -> [to], pixels `step` bytes apart.
std::vector<uint8_t> resized_line(const uint8_t* line, idx step, idx from, idx to) {
  const pictures::Weights weights(from, to, 1);
  const pictures::Taps t = weights.taps();
  std::vector<uint8_t> out;
  for (idx x = 0; x < to; ++x) {
    int64_t sum = 1 << (pictures::kBits - 1);
    for (idx k = 0; k < t.taps[x]; ++k)
      sum += line[(t.first[x] + k) * step] * static_cast<int64_t>(t.weights[x * t.room + k]);
    out.push_back(static_cast<uint8_t>(sum >> pictures::kBits));
  }
  return out;
}

// Channel c of the picture, or its luma, [height][width].
std::vector<uint8_t> resized_plane(const std::vector<uint8_t>& picture, int step, int c, bool grey, idx height,
                                   idx width, idx out_height, idx out_width) {
  std::vector<uint8_t> plane, across, down(static_cast<size_t>(out_height * out_width));
  for (idx i = 0; i < height * width; ++i) {
    const uint8_t* p = picture.data() + i * step;
    plane.push_back(grey && step > 1 ? static_cast<uint8_t>(luma(p)) : p[c]);
  }
  for (idx y = 0; y < height; ++y)
    for (uint8_t v : resized_line(plane.data() + y * width, 1, width, out_width)) across.push_back(v);
  for (idx x = 0; x < out_width; ++x) {
    const auto line = resized_line(across.data() + x, out_width, height, out_height);
    for (idx y = 0; y < out_height; ++y) down[static_cast<size_t>(y * out_width + x)] = line[static_cast<size_t>(y)];
  }
  return down;
}

void picture(Isa isa, int step, int channels, bool planes, idx height, idx width, idx out_height, idx out_width) {
  Random random(static_cast<uint32_t>(height * 7 + width * 3 + step));
  const auto bytes = random_bytes(random, height * width * step);
  const idx area = out_height * out_width;
  std::vector<uint8_t> out(static_cast<size_t>(area * channels));
  const idx pixel = planes ? 1 : channels, plane = planes ? area : 1;
  pictures::resize(pictures::kernels_of(isa), {bytes.data(), width * step, {step, false}, height, width},
                   {out.data(), out_width * pixel, pixel, plane, channels, false, out_height, out_width});
  bool good = true;
  for (int c = 0; c < channels; ++c) {
    const auto wanted =
        resized_plane(bytes, step, step == 1 ? 0 : c, channels == 1, height, width, out_height, out_width);
    for (idx i = 0; i < area; ++i)
      good &= out[static_cast<size_t>(c * plane + i * pixel)] == wanted[static_cast<size_t>(i)];
  }
  check(good, std::string(isa_name(isa)) + " picture " + std::to_string(height) + "x" + std::to_string(width) + " to " +
                  std::to_string(out_height) + "x" + std::to_string(out_width) + ", " + std::to_string(step) +
                  " bytes, " + std::to_string(channels) + " channels");
}

void resized_pictures(Isa isa) {
  const idx sizes[][4] = {{1, 1, 1, 1}, {5, 3, 5, 3}, {9, 33, 4, 7}, {31, 17, 40, 50}, {20, 64, 20, 9}, {40, 5, 3, 5}};
  for (const auto& s : sizes)
    for (int step : {1, 3, 4})
      for (int channels : {1, 3})
        for (bool planes : {false, true}) picture(isa, step, channels, planes, s[0], s[1], s[2], s[3]);
}

}  // namespace
