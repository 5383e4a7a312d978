// SPDX-License-Identifier: Apache-2.0
// A network as plain data, and its values in float64 as plain loops: what the engine's plans of random networks should
// give.
#pragma once
#include <algorithm>
#include <functional>

#include "engine/graph/file.h"
#include "engine_tensors.h"
#include "naive.h"

namespace {

using ff::engine::Op;
using ff::engine::Range;
using ff::engine::Shape;
using naive::Values;

struct NetNode {
  Op op;
  std::vector<uint32_t> inputs;
  std::vector<int32_t> attrs;
  std::vector<std::vector<float>> weights;
};

// Value 0 is the input, value i + 1 the output of node i.
struct Net {
  std::vector<Shape> values;
  std::vector<NetNode> nodes;
  std::vector<uint32_t> outputs;
};

inline size_t elements(const Shape& s) {
  return static_cast<size_t>(s.channels) * static_cast<size_t>(s.height) * static_cast<size_t>(s.width);
}

// One operation on maps in (C, H, W) order.
class NetOp {
 public:
  NetOp(const Net& net, size_t index, const std::vector<Values>& values)
      : node_(net.nodes[index]), values_(values), x_(net.values[first()]), y_(net.values[index + 1]),
        in_(values[first()]) {
    for (const uint32_t i : node_.inputs) shapes_.push_back(net.values[i]);
  }

  Values run() const {
    switch (node_.op) {
      case Op::conv:
      case Op::dilated_conv: return conv();
      case Op::max_pool:
      case Op::avg_pool: return window_pool();
      case Op::global_pool: return pooled(0, x_.height, 0, x_.width, attr(0) == 1, true, true);
      case Op::line_pool: return pooled(0, x_.height, 0, x_.width, attr(1) == 1, attr(0) == 1, attr(0) == 0);
      case Op::add:
      case Op::mul: return binary();
      case Op::act: return each([&](int, int, int, double v) { return act(0, v); });
      case Op::affine: return each([&](int c, int, int, double v) { return act(0, v * weight(0, c) + weight(1, c)); });
      case Op::concat: return concat();
      case Op::channel_pool: return channel_pool();
      case Op::cbam: return cbam();
      case Op::se: return times(mlp(means(), attr(0)), attr(1));
      case Op::eca: return times(neighbours(), kSigmoid);
      case Op::scse: return scse();
      case Op::sa: return spatial(in_, attr(0) == 1, attr(1), attr(2), 0, 1);
      case Op::csa: return csa();
      case Op::coordinate: return coordinate();
      case Op::dot_attention: return dot_attention();
      case Op::additive_attention: return additive_attention();
      default: return tensor();
    }
  }

 private:
  static constexpr int kRelu = 1, kHardswish = 3, kSigmoid = 6;

  // Of a constant, which reads nothing, any.
  size_t first() const { return node_.inputs.empty() ? 0 : node_.inputs[0]; }
  Values tensor() const {
    tensor_ops::Case k{node_.op, node_.attrs, node_.weights, shapes_, {}, y_};
    for (const uint32_t i : node_.inputs) k.inputs.push_back(&values_[i]);
    return tensor_ops::run(k);
  }
  int attr(size_t i) const { return node_.attrs[i]; }
  double act(size_t i, double v) const { return naive::activate(attr(i), v); }
  double weight(size_t w, int i) const { return node_.weights[w][static_cast<size_t>(i)]; }
  size_t count(size_t w) const { return node_.weights[w].size(); }
  static size_t place(const Shape& s, int c, int y, int x) {
    return (static_cast<size_t>(c) * static_cast<size_t>(s.height) + static_cast<size_t>(y)) *
               static_cast<size_t>(s.width) +
           static_cast<size_t>(x);
  }
  double in(int c, int y, int x) const { return in_[place(x_, c, y, x)]; }

  template <class Body>
  Values each(const Body& body) const {
    Values y(in_.size());
    size_t i = 0;
    for (int c = 0; c < x_.channels; ++c)
      for (int row = 0; row < x_.height; ++row)
        for (int column = 0; column < x_.width; ++column, ++i) y[i] = body(c, row, column, in_[i]);
    return y;
  }
  // y pixel by pixel: body(c, row, column).
  template <class Body>
  Values made(const Body& body) const {
    Values y;
    y.reserve(elements(y_));
    for (int c = 0; c < y_.channels; ++c)
      for (int row = 0; row < y_.height; ++row)
        for (int column = 0; column < y_.width; ++column) y.push_back(body(c, row, column));
    return y;
  }

  Values conv() const {
    const int kh = attr(0), kw = attr(1), groups = attr(8), each = x_.channels / groups, outputs = y_.channels / groups;
    const int dh = node_.op == Op::dilated_conv ? attr(10) : 1, dw = node_.op == Op::dilated_conv ? attr(11) : 1;
    return made([&](int o, int i, int j) {
      double sum = weight(1, o);
      for (int c = 0; c < each; ++c)
        for (int p = 0; p < kh; ++p)
          for (int q = 0; q < kw; ++q) {
            const int row = i * attr(2) + p * dh - attr(4), column = j * attr(3) + q * dw - attr(5);
            if (row < 0 || row >= x_.height || column < 0 || column >= x_.width) continue;
            sum += in(o / outputs * each + c, row, column) * weight(0, ((o * each + c) * kh + p) * kw + q);
          }
      return act(9, sum);
    });
  }
  Values window_pool() const {
    const bool mean = node_.op == Op::avg_pool, padding = mean && attr(8);
    return made([&](int c, int i, int j) {
      const int top = i * attr(2) - attr(4), left = j * attr(3) - attr(5);
      double sum = 0, most = -INFINITY;
      int inside = 0;
      for (int y = std::max(top, 0); y < std::min(top + attr(0), x_.height); ++y)
        for (int x = std::max(left, 0); x < std::min(left + attr(1), x_.width); ++x)
          sum += in(c, y, x), most = std::max(most, in(c, y, x)), ++inside;
      const int all =
          (std::min(top + attr(0), x_.height + attr(6)) - top) * (std::min(left + attr(1), x_.width + attr(7)) - left);
      return mean ? sum / (padding ? all : inside) : most;
    });
  }
  // Means or maxima of rows [y0, y1) and columns [x0, x1), over the rows, the columns, or both; over what is left out,
  // of each.
  Values pooled(int y0, int y1, int x0, int x1, bool maximum, bool rows, bool columns) const {
    Values out;
    for (int c = 0; c < x_.channels; ++c)
      for (int i = 0; i < (rows ? 1 : x_.height); ++i)
        for (int j = 0; j < (columns ? 1 : x_.width); ++j) {
          double sum = 0, most = -INFINITY;
          int n = 0;
          for (int y = rows ? y0 : i; y < (rows ? y1 : i + 1); ++y)
            for (int x = columns ? x0 : j; x < (columns ? x1 : j + 1); ++x)
              sum += in(c, y, x), most = std::max(most, in(c, y, x)), ++n;
          out.push_back(maximum ? most : sum / n);
        }
    return out;
  }
  Values means() const { return pooled(0, x_.height, 0, x_.width, false, true, true); }
  Values maxima() const { return pooled(0, x_.height, 0, x_.width, true, true, true); }
  Values binary() const {
    const Shape& b = shapes_[1];
    const Values& second = values_[node_.inputs[1]];
    return each([&](int c, int y, int x, double v) {
      const double w = second[place(b, b.channels > 1 ? c : 0, b.height > 1 ? y : 0, b.width > 1 ? x : 0)];
      return act(0, node_.op == Op::mul ? v * w : v + w);
    });
  }
  Values concat() const {
    Values y;
    for (const uint32_t i : node_.inputs) y.insert(y.end(), values_[i].begin(), values_[i].end());
    return y;
  }
  // Maximum and mean over the channels of each pixel of a map shaped like x.
  void pixel_pools(const Values& v, Values& most, Values& mean) const {
    const size_t pixels = static_cast<size_t>(x_.height) * static_cast<size_t>(x_.width);
    most.assign(pixels, -INFINITY), mean.assign(pixels, 0);
    for (size_t i = 0; i < v.size(); ++i)
      most[i % pixels] = std::max(most[i % pixels], v[i]), mean[i % pixels] += v[i] / x_.channels;
  }
  Values channel_pool() const {
    Values most, mean;
    pixel_pools(in_, most, mean);
    Values y = attr(0) == 0 || attr(0) == 3 ? most : mean;
    if (attr(0) < 2)
      y.insert(y.end(), attr(0) == 0 ? mean.begin() : most.begin(), attr(0) == 0 ? mean.end() : most.end());
    return y;
  }
  // W2 · act(W1 · v + b1) + b2 with weights 0 to 3.
  Values mlp(const Values& v, int activation) const {
    Values hidden, y;
    const int m = static_cast<int>(count(1)), c = static_cast<int>(v.size());
    for (int i = 0; i < m; ++i) {
      double sum = weight(1, i);
      for (int j = 0; j < c; ++j) sum += weight(0, i * c + j) * v[static_cast<size_t>(j)];
      hidden.push_back(naive::activate(activation, sum));
    }
    for (int i = 0; i < c; ++i) {
      double sum = weight(3, i);
      for (int j = 0; j < m; ++j) sum += weight(2, i * m + j) * hidden[static_cast<size_t>(j)];
      y.push_back(sum);
    }
    return y;
  }
  Values neighbours() const {
    const Values mean = means();
    const int taps = static_cast<int>(count(0)), c = x_.channels;
    Values y;
    for (int i = 0; i < c; ++i) {
      double sum = 0;
      for (int k = 0; k < taps; ++k) {
        const int j = i + k - taps / 2;
        if (j >= 0 && j < c) sum += weight(0, k) * mean[static_cast<size_t>(j)];
      }
      y.push_back(sum);
    }
    return y;
  }
  Values times(const Values& gate, int activation) const {
    return each(
        [&](int c, int, int, double v) { return v * naive::activate(activation, gate[static_cast<size_t>(c)]); });
  }
  // v · sigmoid(convolution of [maximum; mean] of v over the channels): weights `first` and `bias`.
  Values spatial(const Values& v, bool mean_first, int kh, int kw, size_t first, size_t bias) const {
    Values planes[2];
    pixel_pools(v, planes[mean_first ? 1 : 0], planes[mean_first ? 0 : 1]);
    Values y = v;
    const int h = x_.height, w = x_.width;
    for (int i = 0; i < h; ++i)
      for (int j = 0; j < w; ++j) {
        double sum = weight(bias, 0);
        for (int p = 0; p < 2 * kh * kw; ++p) {
          const int row = i + p / kw % kh - kh / 2, column = j + p % kw - kw / 2;
          if (row >= 0 && row < h && column >= 0 && column < w)
            sum += weight(first, p) * planes[p / (kh * kw)][static_cast<size_t>(row * w + column)];
        }
        for (int c = 0; c < x_.channels; ++c) y[place(x_, c, i, j)] *= naive::activate(kSigmoid, sum);
      }
    return y;
  }
  Values cbam() const {
    Values gate = mlp(means(), kRelu);
    const Values most = mlp(maxima(), kRelu);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] += most[i];
    return spatial(times(gate, kSigmoid), false, attr(0), attr(1), 4, 5);
  }
  Values scse() const {
    const Values gate = mlp(means(), attr(0));
    return each([&](int c, int y, int x, double v) {
      double sum = weight(5, 0);
      for (int k = 0; k < x_.channels; ++k) sum += weight(4, k) * in(k, y, x);
      return v * (naive::activate(kSigmoid, gate[static_cast<size_t>(c)]) + naive::activate(kSigmoid, sum));
    });
  }
  Values csa() const {
    const Values gate = neighbours();
    Values most, mean;
    pixel_pools(in_, most, mean);
    const Values all = each([&](int c, int y, int x, double v) {
      const size_t p = static_cast<size_t>(y * x_.width + x);
      const double pixel = weight(1, 0) * most[p] + weight(1, 1) * mean[p] + weight(2, 0);
      return v * (naive::activate(kSigmoid, gate[static_cast<size_t>(c)]) + naive::activate(kSigmoid, pixel));
    });
    if (!attr(0)) return all;
    return made([&](int c, int y, int x) {
      const auto v = [&](int i, int j) { return all[place(x_, c, 2 * y + i, 2 * x + j)]; };
      return std::max(std::max(v(0, 0), v(0, 1)), std::max(v(1, 0), v(1, 1)));
    });
  }
  // Gates of lines from their pools.
  Values line_gate(const Values& mean, const Values& most, int length, size_t weights) const {
    const int c = x_.channels, m = static_cast<int>(count(1));
    Values gate(mean.size());
    for (int i = 0; i < length; ++i) {
      const auto pool = [&](int k) {
        const size_t p = static_cast<size_t>(k * length + i);
        return (attr(0) != 1 ? mean[p] : 0) + (attr(0) != 0 ? most[p] : 0);
      };
      Values hidden;
      for (int j = 0; j < m; ++j) {
        double sum = weight(1, j);
        for (int k = 0; k < c; ++k) sum += weight(0, j * c + k) * pool(k);
        hidden.push_back(naive::activate(kHardswish, sum));
      }
      for (int k = 0; k < c; ++k) {
        double sum = weight(weights + 1, k);
        for (int j = 0; j < m; ++j) sum += weight(weights, k * m + j) * hidden[static_cast<size_t>(j)];
        gate[static_cast<size_t>(k * length + i)] = naive::activate(kSigmoid, sum);
      }
    }
    return gate;
  }
  Values coordinate() const {
    const auto lines = [&](bool maximum, bool rows) { return pooled(0, x_.height, 0, x_.width, maximum, rows, !rows); };
    const Values rows = line_gate(lines(false, false), lines(true, false), x_.height, 2);
    const Values columns = line_gate(lines(false, true), lines(true, true), x_.width, 4);
    return each([&](int c, int y, int x, double v) {
      return v * rows[static_cast<size_t>(c * x_.height + y)] * columns[static_cast<size_t>(c * x_.width + x)];
    });
  }
  static void softmax(Values& v) {
    const double most = *std::max_element(v.begin(), v.end());
    double total = 0;
    for (double& s : v) s = std::exp(s - most), total += s;
    for (double& s : v) s /= total;
  }
  Values dot_attention() const {
    const Values& kv = values_[node_.inputs[1]];
    const size_t queries = in_.size() / static_cast<size_t>(x_.channels),
                 keys = kv.size() / static_cast<size_t>(x_.channels), c = static_cast<size_t>(x_.channels);
    Values all(in_.size()), mean(c);
    for (size_t q = 0; q < queries; ++q) {
      Values s(keys);
      for (size_t k = 0; k < keys; ++k)
        for (size_t i = 0; i < c; ++i) s[k] += in_[i * queries + q] * kv[i * keys + k] * weight(0, 0);
      softmax(s);
      for (size_t i = 0; i < c; ++i) {
        double sum = 0;
        for (size_t k = 0; k < keys; ++k) sum += s[k] * kv[i * keys + k];
        all[i * queries + q] = sum, mean[i] += sum / static_cast<double>(queries);
      }
    }
    return attr(0) ? mean : all;
  }
  Values additive_attention() const {
    const Values& x = values_[node_.inputs[1]];
    const int d = x_.channels, e = static_cast<int>(count(1)), tokens = x_.height * x_.width;
    Values s, y(static_cast<size_t>(d));
    for (int t = 0; t < tokens; ++t) {
      double score = 0;
      for (int i = 0; i < e; ++i) {
        double sum = weight(1, i);
        for (int k = 0; k < d; ++k) {
          const size_t p = static_cast<size_t>(k * tokens + t);
          sum += weight(0, i * 2 * d + k) * x[p] + weight(0, i * 2 * d + d + k) * in_[p];
        }
        score += weight(2, i) * std::tanh(sum);
      }
      s.push_back(score);
    }
    softmax(s);
    for (int k = 0; k < d; ++k)
      for (int t = 0; t < tokens; ++t)
        y[static_cast<size_t>(k)] += s[static_cast<size_t>(t)] * x[static_cast<size_t>(k * tokens + t)];
    return y;
  }

  const NetNode& node_;
  const std::vector<Values>& values_;
  Shape x_, y_;
  const Values& in_;
  std::vector<Shape> shapes_;
};

// All values of one image; `change` sees each as it is made, and may round it.
inline std::vector<Values> reference(const Net& net, const Values& image,
                                     const std::function<void(size_t, Values&)>& change = nullptr) {
  std::vector<Values> values(net.values.size());
  values[0] = image;
  for (size_t i = 0; i < net.nodes.size(); ++i) {
    values[i + 1] = NetOp(net, i, values).run();
    if (change) change(i + 1, values[i + 1]);
  }
  return values;
}

}  // namespace
