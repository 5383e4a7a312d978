// SPDX-License-Identifier: Apache-2.0
// The operations of graph/tensor_ops.h in float64, as plain loops.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "engine/graph/file.h"
#include "naive.h"

namespace {

namespace tensor_ops {

using ff::engine::BinaryOp;
using ff::engine::Op;
using ff::engine::ReduceOp;
using ff::engine::Shape;
using ff::engine::UnaryOp;
using naive::Values;

// One operation: its parts, the shapes and values of its inputs, and the shape of its output.
struct Case {
  Op op;
  const std::vector<int32_t>& attrs;
  const std::vector<std::vector<float>>& weights;
  const std::vector<Shape>& shapes;
  std::vector<const Values*> inputs;
  Shape y;

  double in(size_t i, int c, int row, int column) const {
    const Shape& s = shapes[i];
    return (*inputs[i])[static_cast<size_t>((c * s.height + row) * s.width + column)];
  }
  // Axes of length 1 repeat.
  double repeated(size_t i, int c, int row, int column) const {
    const Shape& s = shapes[i];
    return in(i, s.channels > 1 ? c : 0, s.height > 1 ? row : 0, s.width > 1 ? column : 0);
  }
  double weight(size_t w, int i) const { return weights[w][weights[w].size() == 1 ? 0 : static_cast<size_t>(i)]; }
  Values made(const std::function<double(int, int, int)>& body) const {
    Values out;
    for (int c = 0; c < y.channels; ++c)
      for (int row = 0; row < y.height; ++row)
        for (int column = 0; column < y.width; ++column) out.push_back(body(c, row, column));
    return out;
  }
};

inline Values gather(const Case& k) {
  Values out;
  int at[8] = {};
  for (;;) {
    ptrdiff_t source = 0;
    size_t first = 0;
    bool none = false;
    for (size_t d = 0; d < 8; ++d) {
      const double index = k.weights[0][first + static_cast<size_t>(at[d])];
      none = none || index < 0, source += static_cast<ptrdiff_t>(index) * k.attrs[11 + d];
      first += static_cast<size_t>(k.attrs[3 + d]);
    }
    out.push_back(none ? k.weights[1][0] : (*k.inputs[0])[static_cast<size_t>(source)]);
    int d = 7;
    while (d >= 0 && ++at[d] == k.attrs[3 + static_cast<size_t>(d)]) at[d--] = 0;
    if (d < 0) return out;
  }
}

inline Values join(const Case& k) {
  return k.made([&](int c, int row, int column) {
    int place = k.attrs[0] == 1 ? row : column;
    size_t i = 0;
    const auto length = [&] { return k.attrs[0] == 1 ? k.shapes[i].height : k.shapes[i].width; };
    while (place >= length()) place -= length(), ++i;
    return k.attrs[0] == 1 ? k.in(i, c, place, column) : k.in(i, c, row, place);
  });
}

inline double unary(UnaryOp f, double x, double a, double b) {
  switch (f) {
    case UnaryOp::abs: return std::fabs(x);
    case UnaryOp::exp: return std::exp(x);
    case UnaryOp::square: return x * x;
    case UnaryOp::tanh: return std::tanh(x);
    case UnaryOp::erf: return std::erf(x);
    case UnaryOp::gelu: return x * std::erfc(-x / std::sqrt(2.)) / 2;
    case UnaryOp::gelu_tanh: return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.)) * (x + 0.044715 * x * x * x)));
    case UnaryOp::elu: return x > 0 ? b * x : a * std::expm1(x);
    case UnaryOp::leaky_relu: return x > 0 ? x : a * x;
    case UnaryOp::mish: return x * std::tanh(std::log1p(std::exp(x)));
    case UnaryOp::softplus: return a * x > b ? x : std::log1p(std::exp(a * x)) / a;
    case UnaryOp::softsign: return x / (1 + std::fabs(x));
    case UnaryOp::log_sigmoid: return std::min(x, 0.) - std::log1p(std::exp(-std::fabs(x)));
    case UnaryOp::clamp: return std::min(std::max(x, a), b);
    case UnaryOp::at_least: return std::max(x, a);
    case UnaryOp::at_most: return std::min(x, b);
    case UnaryOp::sin: return std::sin(x);
    case UnaryOp::cos: return std::cos(x);
    case UnaryOp::soft_shrink: return x > a ? x - a : x < -a ? x + a : 0;
    default: return NAN;
  }
}

inline double binary(BinaryOp f, double x, double y) {
  switch (f) {
    case BinaryOp::add: return x + y;
    case BinaryOp::sub: return x - y;
    case BinaryOp::mul: return x * y;
    case BinaryOp::maximum: return std::max(x, y);
    case BinaryOp::minimum: return std::min(x, y);
    case BinaryOp::leaky_relu: return x > 0 ? x : y * x;
    default: return NAN;
  }
}

// The elements along the axes that are flagged, for an element of what is left.
inline Values along(const Case& k, bool channels, bool height, bool width, int c, int row, int column) {
  const Shape& x = k.shapes[0];
  Values all;
  for (int i = channels ? 0 : c; i < (channels ? x.channels : c + 1); ++i)
    for (int j = height ? 0 : row; j < (height ? x.height : row + 1); ++j)
      for (int l = width ? 0 : column; l < (width ? x.width : column + 1); ++l) all.push_back(k.in(0, i, j, l));
  return all;
}

inline double reduced(ReduceOp f, const Values& v, double correction) {
  double sum = 0, squares = 0, size = 0, product = 1;
  for (const double x : v) sum += x, size += std::fabs(x), product *= x;
  const double n = static_cast<double>(v.size()), mean = sum / n;
  for (const double x : v) squares += (x - mean) * (x - mean);
  const double most = *std::max_element(v.begin(), v.end()), least = *std::min_element(v.begin(), v.end());
  double exponentials = 0, norm = 0;
  for (const double x : v) exponentials += std::exp(x - most), norm += x * x;
  switch (f) {
    case ReduceOp::sum: return sum;
    case ReduceOp::mean: return mean;
    case ReduceOp::maximum: return most;
    case ReduceOp::minimum: return least;
    case ReduceOp::product: return product;
    case ReduceOp::norm1: return size;
    case ReduceOp::norm2: return std::sqrt(norm);
    case ReduceOp::variance: return squares / (n - correction);
    case ReduceOp::log_sum_exp: return most + std::log(exponentials);
    default: return NAN;
  }
}

inline Values softmax(const Case& k) {
  return k.made([&](int c, int row, int column) {
    const Values all = along(k, k.attrs[1], k.attrs[2], k.attrs[3], c, row, column);
    const double from = reduced(ReduceOp::log_sum_exp, all, 0), x = k.in(0, c, row, column) - from;
    return k.attrs[0] ? x : std::exp(x);
  });
}

inline Values resample(const Case& k) {
  return k.made([&](int c, int i, int j) {
    double sum = 0, most = -INFINITY;
    for (int p = 0; p < k.attrs[3]; ++p)
      for (int q = 0; q < k.attrs[4]; ++q) {
        const auto r = static_cast<size_t>(i * k.attrs[3] + p), s = static_cast<size_t>(j * k.attrs[4] + q);
        const int row = static_cast<int>(k.weights[0][r]), column = static_cast<int>(k.weights[2][s]);
        if (row < 0 || column < 0) continue;
        const double x = k.in(0, c, row, column);
        sum += x * k.weights[1][r] * k.weights[3][s], most = std::max(most, x);
      }
    return k.attrs[0] ? most : sum;
  });
}

// torch's grid_sample: a place along one axis as pixels and weights.
inline std::vector<std::pair<int, double>> taps(double c, int n, int sampling, int outside, bool corners) {
  const double low = corners ? 0 : -0.5, span = corners ? n - 1 : n;
  const auto kept = [&](double v) {
    if (outside == 2) {  // there and back again
      if (span == 0) return 0.;
      const double there = std::fmod(std::fabs(v - low), 2 * span);
      v = std::min(there, 2 * span - there) + low;
    }
    return outside ? std::min(std::max(v, 0.), n - 1.) : v;
  };
  const double v = corners ? (c + 1) / 2 * (n - 1) : ((c + 1) * n - 1) / 2;
  std::vector<std::pair<int, double>> out;
  const auto add = [&](double at, double weight) {
    if (at >= 0 && at <= n - 1) out.emplace_back(static_cast<int>(at), weight);
  };
  if (sampling == 1) add(std::nearbyint(kept(v)), 1);
  if (sampling == 0)
    for (int i = 0; i < 2; ++i) add(std::floor(kept(v)) + i, 1 - std::fabs(kept(v) - std::floor(kept(v)) - i));
  if (sampling == 2)
    for (int i = -1; i < 3; ++i) {
      const double d = std::fabs(v - std::floor(v) - i), a = -0.75;
      add(kept(std::floor(v) + i),
          d < 1 ? (a + 2) * d * d * d - (a + 3) * d * d + 1 : a * (d * d * d - 5 * d * d + 8 * d - 4));
    }
  return out;
}

inline Values sample(const Case& k) {
  const Shape& x = k.shapes[0];
  return k.made([&](int c, int row, int column) {
    double sum = 0;
    for (const auto& [i, down] : taps(k.in(1, 1, row, column), x.height, k.attrs[0], k.attrs[1], k.attrs[2]))
      for (const auto& [j, across] : taps(k.in(1, 0, row, column), x.width, k.attrs[0], k.attrs[1], k.attrs[2]))
        sum += down * across * k.in(0, c, i, j);
    return sum;
  });
}

inline Values normalised(const Case& k) {
  const Shape& x = k.shapes[0];
  const int each = x.channels / k.attrs[0];
  return k.made([&](int c, int row, int column) {
    Values all;
    for (int i = c / each * each; i < c / each * each + each; ++i)
      for (int j = 0; j < x.height * x.width; ++j)
        if (!k.attrs[1] || j == row * x.width + column) all.push_back(k.in(0, i, j / x.width, j % x.width));
    const double mean = reduced(ReduceOp::mean, all, 0), variance = reduced(ReduceOp::variance, all, 0);
    return (k.in(0, c, row, column) - mean) / std::sqrt(variance + k.weights[2][0]) * k.weight(0, c) + k.weight(1, c);
  });
}

inline Values run(const Case& k) {
  switch (k.op) {
    case Op::gather: return gather(k);
    case Op::constant: return Values(k.weights[0].begin(), k.weights[0].end());
    case Op::join: return join(k);
    case Op::unary:
      return k.made([&](int c, int row, int column) {
        return unary(static_cast<UnaryOp>(k.attrs[0]), k.in(0, c, row, column), k.weight(0, c), k.weight(1, c));
      });
    case Op::binary:
      return k.made([&](int c, int row, int column) {
        return binary(static_cast<BinaryOp>(k.attrs[0]), k.repeated(0, c, row, column), k.repeated(1, c, row, column));
      });
    case Op::select:
      return k.made([&](int c, int row, int column) {
        return k.repeated(0, c, row, column) != 0 ? k.repeated(1, c, row, column) : k.repeated(2, c, row, column);
      });
    case Op::reduce:
      return k.made([&](int c, int row, int column) {
        return reduced(static_cast<ReduceOp>(k.attrs[0]), along(k, k.attrs[1], k.attrs[2], k.attrs[3], c, row, column),
                       k.weights[0][0]);
      });
    case Op::softmax: return softmax(k);
    case Op::resample: return resample(k);
    case Op::sample: return sample(k);
    case Op::normalise: return normalised(k);
    case Op::matmul:
      return k.made([&](int c, int row, int column) {
        double sum = 0;
        for (int i = 0; i < k.shapes[0].channels; ++i)
          sum += k.in(0, i, row, column) * k.in(1, c, k.shapes[1].height > 1 ? row : 0, i);
        return sum;
      });
    default: return {};
  }
}

}  // namespace tensor_ops

}  // namespace
