// SPDX-License-Identifier: Apache-2.0
// The engine's kernels on planes: convolutions, the passes of CBAM, the hand-over to a blocked map.
#pragma once
#include "engine_kernels.h"

namespace {

// Planes of C×H×W with a border of `border` pixels, zeros for an input and a mark for an output, and slack for vectors.
class Planar {
 public:
  Planar(idx c, idx h, idx w, idx border, bool output)
      : planes_{nullptr, static_cast<int>(c), static_cast<int>(h), static_cast<int>(w), w + 2 * border + 1, 0},
        fill_(output ? kMark : 0.f) {
    planes_.plane = (h + 2 * border) * planes_.row;
    data_.assign(at(c * planes_.plane + engine::kPlaneSlack), fill_);
    planes_.data = data_.data() + border * (planes_.row + 1);
  }
  Planar(idx c, idx h, idx w, idx border, const Values& v) : Planar(c, h, w, border, false) {
    each([&](idx i, float& to) { to = static_cast<float>(v[at(i)]); });
  }
  const engine::Planes& planes() const { return planes_; }
  std::vector<float> take(const std::string& name) {
    std::vector<float> v(at(static_cast<idx>(planes_.channels) * planes_.height * planes_.width));
    each([&](idx i, float& from) { v[at(i)] = from, from = fill_; });
    check(std::count(data_.begin(), data_.end(), fill_) == static_cast<idx>(data_.size()),
          name + " wrote outside its output");
    return v;
  }

 private:
  template <class Body>
  void each(const Body& body) {
    for (idx c = 0, i = 0; c < planes_.channels; ++c)
      for (idx y = 0; y < planes_.height; ++y)
        for (idx x = 0; x < planes_.width; ++x, ++i) body(i, planes_.data[c * planes_.plane + y * planes_.row + x]);
  }
  static constexpr float kMark = -777.f;
  engine::Planes planes_;
  float fill_;
  std::vector<float> data_;
};

void engine_planes(const std::string& isa, const Kernels& kernels, const EngineCase& k, bool special) {
  const EngineData d(k, special);
  const std::string name = isa + " engine planes" + k.text();
  const engine::Window window = k.window();
  const int c = static_cast<int>(k.c), o = static_cast<int>(k.o), rows = static_cast<int>(k.oh()),
            h = static_cast<int>(k.h);
  const std::vector<float> weight = EngineData::floats(d.weight), bias = EngineData::floats(d.bias),
                           image = EngineData::floats(d.x);
  Out<float> packed(static_cast<idx>(kernels.plane_conv_packed(c, o, window)));
  kernels.pack_plane_conv(packed.ptr(), weight.data(), c, o, window);
  const Planar x(k.c, k.h, k.w, k.border(), d.x);
  std::vector<float> whole;
  for (int cut : {0, 1, rows / 2}) {
    Planar y(k.o, k.oh(), k.ow(), 1, true);
    const engine::PlaneConv conv{x.planes(), y.planes(), window, packed.ptr(), bias.data(), static_cast<Act>(k.act)};
    kernels.plane_conv(conv, cut, rows), kernels.plane_conv(conv, 0, cut);
    const std::vector<float> got = y.take(name);
    if (!cut) near(name, whole = got, naive_conv(k, d.x, d.weight, d.bias, d.residual), k.c * k.kh * k.kw);
    check(std::memcmp(whole.data(), got.data(), got.size() * sizeof(float)) == 0,
          name + ": parts give other bits than the whole");
  }
  // The passes of CBAM and the hand-over, on x.
  const float scale[] = {2.f, -1.f, 0.5f, 1.f, 3.f, -0.25f, 1.f, 1.5f},
              shift[] = {1.f, 0.f, -1.f, 2.f, 0.f, 0.f, 1.f, 0.5f};
  const idx size = k.h * k.w;
  Values read, sum(at(k.c)), most(at(k.c), -INFINITY), gated, pixels(at(2 * size)), moved;
  std::fill(pixels.begin(), pixels.begin() + size, -INFINITY);
  for (idx i = 0; i < k.c * size; ++i) {
    const size_t q = at(i / size), p = at(i % size);
    const double v = d.x[at(i)], g = v * scale[q];
    read.push_back(g + shift[q]), sum[q] += v, most[q] = largest_of(most[q], v), gated.push_back(g);
    pixels[p] = largest_of(pixels[p], g), pixels[at(size) + p] += g / static_cast<double>(k.c);
  }
  for (idx i = 0; i < k.c * size; ++i) moved.push_back(d.x[at(i)] * static_cast<float>(pixels[at(i % size)]));
  Planar read_to(k.c, k.h, k.w, 1, true), gated_to(k.c, k.h, k.w, 2, true), pixels_to(2, k.h, k.w, 3, true);
  kernels.planes_read(read_to.planes(), image.data(), engine::Pixels::float32, scale, shift, 0, h / 2);
  kernels.planes_read(read_to.planes(), image.data(), engine::Pixels::float32, scale, shift, h / 2, h);
  near(name + " read", read_to.take(name), read, 1);
  Out<float> sums(k.c), maxima(k.c);
  kernels.planes_pool(x.planes(), sums.ptr(), maxima.ptr(), 0, h);
  near(name + " sums", sums.take(name), sum, size), near(name + " maxima", maxima.take(name), most, 1);
  kernels.planes_gate(x.planes(), scale, gated_to.planes(), pixels_to.planes(), 0, h);
  Blocked map(kernels.lanes, k.c, k.h, k.w, 1, true);
  const Planar gate(2, k.h, k.w, 0, pixels);
  kernels.planes_to_map(x.planes(), gate.planes(), map.map(), 0, h);
  near(name + " gated", gated_to.take(name), gated, 1);
  near(name + " pixels", pixels_to.take(name), pixels, k.c);
  near(name + " as map", map.take(name), moved, 1);
}

const EngineCase kPlaneCases[] = {
    {1, 12, 48, 8, 3, 3, 1, 1, 1, 1, 1, 1, false, 1, false, 0},
    {8, 7, 48, 8, 3, 3, 1, 1, 1, 1, 1, 1, false, 1, false, 0},
    {2, 9, 19, 1, 7, 7, 1, 1, 3, 3, 3, 3, false, 6, false, 0},
    {3, 6, 21, 13, 5, 3, 1, 1, 2, 0, 1, 2, false, 3, false, 0},
    {5, 5, 3, 7, 1, 1, 1, 1, 0, 0, 0, 0, false, 5, false, 0},
    {2, 16, 48, 1, 7, 7, 1, 1, 3, 3, 3, 3, false, 6, false, 0},
    {6, 4, 65, 4, 7, 7, 1, 1, 3, 3, 3, 3, false, 2, false, 0},
};
void engine_planes(Isa isa) {
  for (const EngineCase& k : kPlaneCases)
    for (bool special : {false, true}) engine_planes(isa_name(isa), engine_kernels_of(isa), k, special);
}

}  // namespace
