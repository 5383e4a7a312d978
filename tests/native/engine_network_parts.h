// SPDX-License-Identifier: Apache-2.0
// Random nodes of every operation of the engine, added to a growing network.
#pragma once
#include <cmath>

#include "engine_file.h"
#include "engine_reference.h"

namespace {

class NetworkParts {
 public:
  explicit NetworkParts(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x1234567u) {}

  double unit() { return static_cast<double>(bits() >> 11) / static_cast<double>(uint64_t{1} << 53); }
  int below(int n) { return static_cast<int>(bits() % static_cast<uint64_t>(n)); }

 protected:
  uint64_t bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u, z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  bool often() { return below(4) != 0; }
  int act() { return below(3) ? below(7) : 0; }
  const Shape& shape(uint32_t v) const { return net_.values[v]; }
  uint32_t last() const { return static_cast<uint32_t>(net_.values.size()) - 1; }
  uint32_t some() { return often() ? last() : static_cast<uint32_t>(below(static_cast<int>(net_.values.size()))); }

  // Sums of n products with such weights are of the size of their factors.
  std::vector<float> weights(int count, int n, double scale = 1) {
    std::vector<float> w;
    for (int i = 0; i < count; ++i) w.push_back(static_cast<float>((2 * unit() - 1) * scale * std::sqrt(3. / n)));
    return w;
  }
  uint32_t add(Op op, std::vector<uint32_t> inputs, std::vector<int32_t> attrs, std::vector<std::vector<float>> w,
               Shape y) {
    net_.nodes.push_back({op, std::move(inputs), std::move(attrs), std::move(w)}), net_.values.push_back(y);
    return last();
  }

  struct Sides {
    int kh, kw, sh, sw, top, left, bottom, right;
  };
  bool fits(const Sides& s, const Shape& x, bool pool, Shape& y) {
    if (pool && (s.top >= s.kh || s.bottom >= s.kh || s.left >= s.kw || s.right >= s.kw)) return false;
    const int h = x.height + s.top + s.bottom - s.kh, w = x.width + s.left + s.right - s.kw;
    if (h < 0 || w < 0) return false;
    y.height = h / s.sh + 1, y.width = w / s.sw + 1;
    return true;
  }
  Sides sides() {
    static const int kSizes[] = {1, 1, 2, 3, 3, 3, 4, 5, 7};
    const int k = kSizes[below(9)], stride = below(3) ? 1 : 1 + below(3);
    Sides s{k, k, stride, stride, k / 2, k / 2, k / 2, k / 2};
    if (below(6) == 0)
      s = {kSizes[below(9)], kSizes[below(9)], 1 + below(3), 1 + below(3), below(4), below(4), below(4), below(4)};
    return s;
  }

  uint32_t conv(uint32_t x, int outputs, const Sides& s, int activation) {
    Shape y{outputs, 0, 0};
    if (!fits(s, shape(x), false, y) || elements(y) > most_) return x;
    const int each = shape(x).channels * s.kh * s.kw;
    if (static_cast<double>(each) * static_cast<double>(elements(y)) > 450. * static_cast<double>(most_)) return x;
    return add(Op::conv, {x}, {s.kh, s.kw, s.sh, s.sw, s.top, s.left, s.bottom, s.right, 1, activation},
               {weights(outputs * each, each), weights(outputs, 16)}, y);
  }
  uint32_t depthwise(uint32_t x, const Sides& s, int activation) {
    Shape y{shape(x).channels, 0, 0};
    if (y.channels < 2 || !fits(s, shape(x), false, y) || elements(y) > most_) return x;
    return add(Op::conv, {x}, {s.kh, s.kw, s.sh, s.sw, s.top, s.left, s.bottom, s.right, y.channels, activation},
               {weights(y.channels * s.kh * s.kw, s.kh * s.kw), weights(y.channels, 16)}, y);
  }
  // Several groups, and pixels between the taps.
  uint32_t grouped(uint32_t x, Sides s, int activation) {
    const int c = shape(x).channels, dh = 1 + below(3), dw = below(2) ? dh : 1 + below(3);
    int groups = 1 + below(c);
    while (c % groups) --groups;
    const int outputs = groups * (1 + below(below(2) ? 3 : 20)), each = c / groups * s.kh * s.kw;
    Sides wide = s;
    wide.kh = (s.kh - 1) * dh + 1, wide.kw = (s.kw - 1) * dw + 1;
    Shape y{outputs, 0, 0};
    if (!fits(wide, shape(x), false, y) || elements(y) > most_) return x;
    if (static_cast<double>(each) * static_cast<double>(elements(y)) > 450. * static_cast<double>(most_)) return x;
    const bool apart = dh * dw > 1 && below(3);
    if (!apart && (dh * dw > 1)) return x;
    std::vector<int32_t> attrs{s.kh, s.kw, s.sh, s.sw, s.top, s.left, s.bottom, s.right, groups, activation};
    if (apart) attrs.push_back(dh), attrs.push_back(dw);
    return add(apart ? Op::dilated_conv : Op::conv, {x}, attrs, {weights(outputs * each, each), weights(outputs, 16)},
               y);
  }
  uint32_t point(uint32_t x, int outputs, int activation) {
    return conv(x, outputs, {1, 1, 1, 1, 0, 0, 0, 0}, activation);
  }
  int channels() {
    static const int kCounts[] = {1, 2, 3, 5, 7, 8, 12, 16, 16, 17, 24, 32, 33, 48};
    return kCounts[below(14)];
  }
  uint32_t affine(uint32_t x, int activation) {
    std::vector<float> scale = weights(shape(x).channels, 3);
    for (float& v : scale) v += 1;
    return add(Op::affine, {x}, {activation}, {scale, weights(shape(x).channels, 12)}, shape(x));
  }
  uint32_t pool(uint32_t x, bool mean) {
    Sides s = sides();
    Shape y = shape(x);
    if (!fits(s, shape(x), true, y) || elements(y) > most_) return x;
    std::vector<int32_t> attrs{s.kh, s.kw, s.sh, s.sw, s.top, s.left, s.bottom, s.right};
    if (mean) attrs.push_back(below(2));
    return add(mean ? Op::avg_pool : Op::max_pool, {x}, attrs, {}, y);
  }
  uint32_t global_pool(uint32_t x) { return add(Op::global_pool, {x}, {below(2)}, {}, {shape(x).channels, 1, 1}); }
  uint32_t line_pool(uint32_t x) {
    const int axis = below(2);
    return add(Op::line_pool, {x}, {axis, below(2)}, {},
               {shape(x).channels, axis ? 1 : shape(x).height, axis ? shape(x).width : 1});
  }
  // Another value whose axes are those of x, or where `repeat` 1.
  int partner(uint32_t x, bool repeat) {
    std::vector<int> found;
    const auto same = [&](int a, int b) { return a == b || (repeat && b == 1); };
    for (uint32_t v = 0; v <= last(); ++v)
      if (same(shape(x).channels, shape(v).channels) && same(shape(x).height, shape(v).height) &&
          same(shape(x).width, shape(v).width) && (v != x || below(8) == 0))
        found.push_back(static_cast<int>(v));
    return found.empty() ? -1 : found[static_cast<size_t>(below(static_cast<int>(found.size())))];
  }
  uint32_t binary(uint32_t x, Op op, bool repeat) {
    const int other = partner(x, repeat);
    if (other < 0) return x;
    const auto o = static_cast<uint32_t>(other);
    const bool swap = below(2) && elements(shape(x)) == elements(shape(o));
    return add(op, {swap ? o : x, swap ? x : o}, {below(3) ? 0 : below(7)}, {}, shape(x));
  }
  std::vector<std::vector<float>> mlp(int c) {
    const int m = 1 + below(20);
    return {weights(m * c, c), weights(m, 16), weights(c * m, m), weights(c, 16)};
  }
  uint32_t gate(uint32_t x, int kind) {
    const Shape s = shape(x);
    const int c = s.channels, odd = 1 + 2 * below(3), kh = 1 + 2 * below(4), kw = below(2) ? kh : 1 + 2 * below(4);
    auto w = mlp(c);
    const std::vector<float> bias = weights(1, 12), spatial = weights(2 * kh * kw, 2 * kh * kw);
    switch (kind) {
      case 0: w.push_back(spatial), w.push_back(bias); return add(Op::cbam, {x}, {kh, kw}, w, s);
      case 1: return add(Op::se, {x}, {act(), often() ? 6 : 4}, w, s);
      case 2: return add(Op::eca, {x}, {}, {weights(odd, odd)}, s);
      case 3: w.push_back(weights(c, c)), w.push_back(bias); return add(Op::scse, {x}, {act()}, w, s);
      case 4: return add(Op::sa, {x}, {below(2), kh, kw}, {spatial, bias}, s);
      case 5: {
        const bool half = s.height > 1 && s.width > 1 && below(2);
        return add(Op::csa, {x}, {half}, {weights(odd, odd), weights(2, 2), bias},
                   half ? Shape{c, s.height / 2, s.width / 2} : s);
      }
      default: {
        const int m = 1 + below(20);
        return add(
            Op::coordinate, {x}, {below(3)},
            {weights(m * c, c), weights(m, 16), weights(c * m, m), weights(c, 16), weights(c * m, m), weights(c, 16)},
            s);
      }
    }
  }
  uint32_t concat(uint32_t x) {
    std::vector<uint32_t> inputs{x};
    int sum = shape(x).channels;
    for (uint32_t v = 0; v <= last() && inputs.size() < 4; ++v)
      if (shape(v).height == shape(x).height && shape(v).width == shape(x).width && below(2))
        inputs.push_back(v), sum += shape(v).channels;
    const Shape y{sum, shape(x).height, shape(x).width};
    return elements(y) > most_ ? x : add(Op::concat, inputs, {}, {}, y);
  }
  uint32_t attention(uint32_t x) {
    const Shape s = shape(x);
    if (s.height * s.width > 200) return x;
    const int other = partner(x, false), c = s.channels, e = 1 + below(20);
    const auto o = other < 0 ? x : static_cast<uint32_t>(other);
    if (below(2))
      return add(Op::additive_attention, {x, o}, {}, {weights(e * 2 * c, 2 * c), weights(e, 16), weights(e, 1), {0.f}},
                 {c, 1, 1});
    const int mean = below(2);
    return add(Op::dot_attention, {x, o}, {mean}, {{static_cast<float>(1 / std::sqrt(c))}}, mean ? Shape{c, 1, 1} : s);
  }

  std::vector<int32_t> axes(std::vector<int32_t> attrs) {
    const int which = 1 + below(7);
    for (int i = 0; i < 3; ++i) attrs.push_back(which >> i & 1);
    return attrs;
  }
  // Elements of x in another order: chosen channels, rows and columns as axes in any order, some of them missing.
  uint32_t gather(uint32_t x) {
    const int lengths[] = {shape(x).channels, shape(x).height, shape(x).width};
    const int strides[] = {shape(x).height * shape(x).width, shape(x).width, 1};
    static const int kOrders[][3] = {{0, 1, 2}, {0, 1, 2}, {0, 2, 1}, {2, 0, 1}, {1, 2, 0}, {2, 1, 0}};
    const int* order = kOrders[below(6)];
    std::vector<float> index;
    std::vector<int32_t> attrs(19, 0);
    int y[3];
    for (int d = 0; d < 8; ++d) {
      const int axis = d < 3 ? order[d] : 0, length = d < 3 ? lengths[axis] : 1;
      const int count = d < 3 ? below(2) ? length : 1 + below(2 * length) : 1;
      const bool holes = d < 3 && below(4) == 0, steps = below(2);
      for (int i = 0; i < count; ++i)
        index.push_back(static_cast<float>(holes && below(5) == 0 ? -1 : steps ? i * length / count : below(length)));
      if (d < 3) y[d] = count;
      attrs[static_cast<size_t>(3 + d)] = count, attrs[static_cast<size_t>(11 + d)] = d < 3 ? strides[axis] : 0;
    }
    for (size_t d = 0; d < 3; ++d) attrs[d] = y[d];
    const Shape s{y[0], y[1], y[2]};
    return elements(s) > most_ ? x : add(Op::gather, {x}, attrs, {index, {static_cast<float>(below(3))}}, s);
  }
  uint32_t constant(const Shape& s, bool mask) {
    std::vector<float> values = weights(static_cast<int>(elements(s)), 3);
    if (mask)
      for (float& v : values) v = static_cast<float>(below(2));
    return add(Op::constant, {}, {s.channels, s.height, s.width}, {values}, s);
  }
  // Some of x's axes, the others 1.
  Shape part(uint32_t x) {
    const Shape& s = shape(x);
    return {below(3) ? s.channels : 1, below(3) ? s.height : 1, below(3) ? s.width : 1};
  }
  uint32_t resample(uint32_t x) {
    const Shape& s = shape(x);
    const int sizes[] = {1 + below(2 * s.height), 1 + below(2 * s.width)}, taps[] = {1 + below(3), 1 + below(3)};
    std::vector<std::vector<float>> w;
    for (int a = 0; a < 2; ++a) {
      std::vector<float> index;
      for (int i = 0; i < sizes[a] * taps[a]; ++i)
        index.push_back(static_cast<float>(i % taps[a] && below(6) == 0 ? -1 : below(a ? s.width : s.height)));
      w.push_back(index), w.push_back(weights(sizes[a] * taps[a], taps[a]));
    }
    const Shape y{s.channels, sizes[0], sizes[1]};
    if (elements(y) > most_) return x;
    return add(Op::resample, {x}, {below(2), sizes[0], sizes[1], taps[0], taps[1]}, w, y);
  }
  // Bilinear or bicubic, at places on the map and around it.
  uint32_t sample(uint32_t x) {
    const Shape& s = shape(x);
    const Shape y{s.channels, 1 + below(2 * s.height), 1 + below(2 * s.width)};
    if (elements(y) > most_) return x;
    const uint32_t grid = constant({2, y.height, y.width}, false);
    return add(Op::sample, {x, grid}, {2 * below(2), below(3), below(2)}, {}, y);
  }
  uint32_t normalise(uint32_t x) {
    const int c = shape(x).channels, pixel = below(2);
    int groups = pixel ? 1 : 1 + below(c);
    while (c % groups) --groups;
    return add(Op::normalise, {x}, {groups, pixel}, {weights(c, 3), weights(c, 12), {0.1f}}, shape(x));
  }
  uint32_t function(uint32_t x) {
    using ff::engine::UnaryOp;
    static const UnaryOp kSmooth[] = {UnaryOp::abs,   UnaryOp::square,    UnaryOp::tanh,     UnaryOp::erf,
                                      UnaryOp::gelu,  UnaryOp::gelu_tanh, UnaryOp::elu,      UnaryOp::leaky_relu,
                                      UnaryOp::mish,  UnaryOp::softplus,  UnaryOp::softsign, UnaryOp::log_sigmoid,
                                      UnaryOp::clamp, UnaryOp::at_least,  UnaryOp::at_most,  UnaryOp::soft_shrink,
                                      UnaryOp::sin,   UnaryOp::cos};
    std::vector<float> a = weights(below(2) ? 1 : shape(x).channels, 3);
    for (float& v : a) v = 0.1f + std::fabs(v);
    return add(Op::unary, {x}, {static_cast<int>(kSmooth[below(18)])}, {a, {2.f}}, shape(x));
  }
  uint32_t function_of_two(uint32_t x) {
    using ff::engine::BinaryOp;
    static const BinaryOp kSmooth[] = {BinaryOp::add,     BinaryOp::sub,     BinaryOp::mul,
                                       BinaryOp::maximum, BinaryOp::minimum, BinaryOp::leaky_relu};
    const int other = partner(x, true), f = static_cast<int>(kSmooth[below(6)]);
    const uint32_t o = other < 0 || below(2) ? constant(part(x), false) : static_cast<uint32_t>(other);
    const bool swap = below(2);
    return add(Op::binary, {swap ? o : x, swap ? x : o}, {f}, {}, shape(x));
  }
  void tensor(uint32_t x) {
    using ff::engine::ReduceOp;
    static const ReduceOp kSmooth[] = {ReduceOp::sum,   ReduceOp::mean,  ReduceOp::maximum,  ReduceOp::minimum,
                                       ReduceOp::norm1, ReduceOp::norm2, ReduceOp::variance, ReduceOp::log_sum_exp};
    const Shape s = shape(x);
    switch (below(15)) {
      case 14: sample(x); break;
      case 11:
      case 12:
      case 13: grouped(x, sides(), act()); break;
      case 0:
      case 1: gather(x); break;
      case 2: function(x); break;
      case 3: function_of_two(x); break;
      case 4: {
        const uint32_t mask = constant(part(x), true), other = constant(part(x), false);
        add(Op::select, {mask, below(2) ? x : other, x}, {}, {}, s);
        break;
      }
      case 5: {
        const auto attrs = axes({static_cast<int>(kSmooth[below(8)])});
        add(Op::reduce, {x}, attrs, {{0.f}},
            {attrs[1] ? 1 : s.channels, attrs[2] ? 1 : s.height, attrs[3] ? 1 : s.width});
        break;
      }
      case 6: add(Op::softmax, {x}, axes({below(2)}), {}, s); break;
      case 7: resample(x); break;
      case 8: normalise(x); break;
      case 9: {
        const int n = channels();
        if (static_cast<size_t>(n) * elements({1, s.height, s.width}) > most_) break;
        const uint32_t b = constant({n, below(2) ? s.height : 1, s.channels}, false);
        add(Op::matmul, {x, b}, {}, {}, {n, s.height, s.width});
        break;
      }
      default: {
        const int axis = 1 + below(2), other = partner(x, false);
        const uint32_t o = other < 0 ? x : static_cast<uint32_t>(other);
        const Shape y{s.channels, axis == 1 ? 2 * s.height : s.height, axis == 2 ? 2 * s.width : s.width};
        if (elements(y) <= most_) add(Op::join, {x, o}, {axis}, {}, y);
      }
    }
  }

  uint64_t state_;
  size_t most_ = 0;
  Net net_;
};

}  // namespace
