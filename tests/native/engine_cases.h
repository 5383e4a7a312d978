// SPDX-License-Identifier: Apache-2.0
// What the engine's kernels are tested with: maps in guarded memory, convolutions as plain loops, calls in whole and in
// parts.
#pragma once
#include <algorithm>

#include "engine/plan/program.h"
#include "harness.h"

namespace {

using engine::Kernels;

const Kernels& engine_kernels_of(Isa isa) { return engine::kernels_of(isa); }

// As compare, where infinities must be met exactly.
void near(const std::string& name, std::vector<float> got, Values want, idx length) {
  bool same = got.size() == want.size();
  for (size_t i = 0; same && i < want.size(); ++i)
    if (std::isinf(want[i])) same = got[i] == static_cast<float>(want[i]), got[i] = 0, want[i] = 0;
  check(same, name + ": infinities");
  compare<float>(name, got, {want}, length);
}

// A map of C×H×W in memory of its own, `border` pixels around it (zeros for an input, a mark for an output), guarded.
class Blocked {
 public:
  Blocked(idx lanes, idx c, idx h, idx w, idx border, bool output)
      : lanes_(lanes), map_{nullptr, static_cast<int>(c), static_cast<int>(h), static_cast<int>(w), 0, 0} {
    map_.row = (w + 2 * border) * lanes, map_.block = (h + 2 * border) * map_.row;
    fill_ = output ? kMark : 0.f;
    data_.assign(at(blocks() * map_.block + 2 * kGuard), kMark);
    std::fill(data_.begin() + kGuard, data_.end() - kGuard, fill_);
    map_.data = data_.data() + kGuard + border * (map_.row + lanes);
  }
  Blocked(idx lanes, idx c, idx h, idx w, idx border, const Values& v) : Blocked(lanes, c, h, w, border, false) {
    each([&](idx i, float& to) { to = static_cast<float>(v[at(i)]); });
  }
  const engine::Map& map() const { return map_; }
  idx blocks() const { return (map_.channels + lanes_ - 1) / lanes_; }

  // Values in C, H, W order; checks that nothing but pixels was written.
  std::vector<float> take(const std::string& name) {
    std::vector<float> v(at(static_cast<idx>(map_.channels) * map_.height * map_.width));
    each([&](idx i, float& from) { v[at(i)] = from; });
    for (idx b = 0; b < blocks(); ++b)
      for (idx y = 0; y < map_.height; ++y)
        for (idx x = 0; x < map_.width * lanes_; ++x) map_.data[b * map_.block + y * map_.row + x] = fill_;
    bool whole = true;
    for (size_t i = 0; i < data_.size(); ++i)
      whole = whole && data_[i] == (i < kGuard || i >= data_.size() - kGuard ? kMark : fill_);
    check(whole, name + " wrote outside its output");
    return v;
  }

 private:
  template <class Body>
  void each(const Body& body) {
    for (idx c = 0, i = 0; c < map_.channels; ++c)
      for (idx y = 0; y < map_.height; ++y)
        for (idx x = 0; x < map_.width; ++x, ++i)
          body(i, map_.data[c / lanes_ * map_.block + y * map_.row + x * lanes_ + c % lanes_]);
  }

  static constexpr size_t kGuard = 64;
  static constexpr float kMark = -777.f;
  idx lanes_;
  engine::Map map_;
  float fill_;
  std::vector<float> data_;
};

// A convolution of one image in C, H, W order, as plain loops; groups is 1 or c.
struct EngineCase {
  idx c, h, w, o;
  int kh, kw, sh, sw, top, left, bottom, right;
  bool depthwise;
  int act;
  bool residual;
  int after;

  idx oh() const { return (h + top + bottom - kh) / sh + 1; }
  idx ow() const { return (w + left + right - kw) / sw + 1; }
  idx border() const { return std::max(std::max(top, bottom), std::max(left, right)); }
  engine::Window window() const { return {kh, kw, sh, sw, top, left}; }
  std::string text() const {
    char buffer[200];
    std::snprintf(buffer, sizeof buffer, " %dx%dx%d -> %d k%dx%d s%dx%d pad %d%d%d%d act %d%s", int(c), int(h), int(w),
                  int(o), kh, kw, sh, sw, top, left, bottom, right, act, residual ? " residual" : "");
    return (depthwise ? " depthwise" : " conv") + std::string(buffer);
  }
};

Values naive_conv(const EngineCase& k, const Values& x, const Values& weight, const Values& bias,
                  const Values& residual) {
  Values y;
  for (idx o = 0; o < k.o; ++o)
    for (idx i = 0; i < k.oh(); ++i)
      for (idx j = 0; j < k.ow(); ++j) {
        double sum = bias[at(o)];
        for (idx c = k.depthwise ? o : 0; c < (k.depthwise ? o + 1 : k.c); ++c)
          for (int p = 0; p < k.kh; ++p)
            for (int q = 0; q < k.kw; ++q) {
              const idx row = i * k.sh + p - k.top, column = j * k.sw + q - k.left;
              const double v =
                  row < 0 || row >= k.h || column < 0 || column >= k.w ? 0 : x[at((c * k.h + row) * k.w + column)];
              sum += v * weight[at((k.depthwise ? o : o * k.c + c) * k.kh * k.kw + p * k.kw + q)];
            }
        sum = std::isnan(sum) ? sum : naive::activate(k.act, sum);
        if (k.residual) sum += residual[y.size()], sum = std::isnan(sum) ? sum : naive::activate(k.after, sum);
        y.push_back(sum);
      }
  return y;
}

struct EnginePools {
  idx lanes, blocks, h, w;
  std::vector<float> line_sum, line_max, column_sum, column_max;
  EnginePools(idx lanes, idx blocks, idx h, idx w) : lanes(lanes), blocks(blocks), h(h), w(w) {
    line_sum.assign(at(blocks * h * lanes), NAN), line_max = line_sum;
    column_sum.assign(at(blocks * w * lanes), NAN), column_max = column_sum;
  }
  engine::Pools pools() { return {line_sum.data(), line_max.data(), column_sum.data(), column_max.data()}; }
};

double largest_of(double a, double b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b); }
void check_pools(const std::string& name, const EngineCase& k, const Values& y, const EnginePools& got) {
  const idx h = k.oh(), w = k.ow();
  Values line_sum(at(k.o * h)), line_max(at(k.o * h), -INFINITY), column_sum(at(k.o * w)),
      column_max(at(k.o * w), -INFINITY);
  std::vector<float> g_line_sum(at(k.o * h)), g_line_max(at(k.o * h)), g_column_sum(at(k.o * w)),
      g_column_max(at(k.o * w));
  for (idx o = 0; o < k.o; ++o) {
    for (idx i = 0; i < h; ++i)
      for (idx j = 0; j < w; ++j) {
        const double v = y[at((o * h + i) * w + j)];
        line_sum[at(o * h + i)] += v, line_max[at(o * h + i)] = largest_of(line_max[at(o * h + i)], v);
        column_sum[at(o * w + j)] += v, column_max[at(o * w + j)] = largest_of(column_max[at(o * w + j)], v);
      }
    const idx block = o / got.lanes, lane = o % got.lanes;
    for (idx i = 0; i < h; ++i) {
      g_line_sum[at(o * h + i)] = got.line_sum[at((block * h + i) * got.lanes + lane)];
      g_line_max[at(o * h + i)] = got.line_max[at((block * h + i) * got.lanes + lane)];
    }
    for (idx j = 0; j < w; ++j) {
      g_column_sum[at(o * w + j)] = got.column_sum[at((block * w + j) * got.lanes + lane)];
      g_column_max[at(o * w + j)] = got.column_max[at((block * w + j) * got.lanes + lane)];
    }
  }
  const idx length = h * w + k.c * k.kh * k.kw;
  near(name + " line sums", g_line_sum, line_sum, length);
  near(name + " line maxima", g_line_max, line_max, length);
  near(name + " column sums", g_column_sum, column_sum, length);
  near(name + " column maxima", g_column_max, column_max, length);
}

// run(part) computes a part of y. The whole at once is compared with `want`, then the same bits are expected of parts,
// cut at multiples of `step` rows and at `panel` channel blocks.
template <class Run>
void whole_and_parts(const std::string& name, const EngineCase& k, const Kernels& kernels, int panel,
                     const Values& want, const Run& run, int step = 1) {
  const int rows = static_cast<int>(k.oh()), blocks = static_cast<int>((k.o + kernels.lanes - 1) / kernels.lanes);
  Blocked y(kernels.lanes, k.o, k.oh(), k.ow(), 1, true);
  EnginePools pools(kernels.lanes, blocks, k.oh(), k.ow());
  run(y.map(), engine::Part{0, rows, 0, blocks}, pools.pools());
  const std::vector<float> whole = y.take(name);
  near(name, whole, want, k.c * k.kh * k.kw);
  check_pools(name, k, want, pools);
  const int cut = rows / 3 / step * step, first = std::min(panel, blocks);
  for (idx border : {0, 2}) {
    Blocked parted(kernels.lanes, k.o, k.oh(), k.ow(), border, true);
    for (const engine::Part& part :
         {engine::Part{cut, rows, 0, first}, engine::Part{0, cut, 0, blocks}, engine::Part{cut, rows, first, blocks}})
      if (part.y0 < part.y1 && part.b0 < part.b1) run(parted.map(), part, engine::Pools{});
    const std::vector<float> again = parted.take(name);
    check(std::memcmp(whole.data(), again.data(), whole.size() * sizeof(float)) == 0,
          name + ": parts give other bits than the whole");
  }
}

struct EngineData {
  Values x, weight, bias, residual;
  EngineData(const EngineCase& k, bool special) {
    Random random(static_cast<uint32_t>(k.c + k.o + k.kh + k.act));
    x = random.values(k.c * k.h * k.w), weight = random.values(k.o * (k.depthwise ? 1 : k.c) * k.kh * k.kw);
    bias = random.values(k.o), residual = random.values(k.o * k.oh() * k.ow());
    if (special) x[x.size() / 2] = NAN, x[x.size() / 3] = INFINITY;
  }
  static std::vector<float> floats(const Values& v) { return {v.begin(), v.end()}; }
  std::vector<float> padded_bias(idx lanes) const {
    std::vector<float> b = floats(bias);
    b.resize((b.size() + at(lanes) - 1) / at(lanes) * at(lanes));
    return b;
  }
};

engine::Epilogue epilogue(const EngineCase& k, const float* bias, const engine::Map& residual,
                          const engine::Pools& pools) {
  return {bias, static_cast<Act>(k.act), static_cast<Act>(k.after), k.residual ? residual : engine::Map{}, pools};
}

}  // namespace
