// SPDX-License-Identifier: Apache-2.0
// Reverse-mode differentiation of formulas over float64, for families whose gradients are long: what each value was
// computed from is noted, and read backward.
#pragma once
#include "harness.h"

namespace {

// A value, and its derivatives by the at most two values that it was computed from.
struct Node {
  double value;
  idx a, b;
  double by_a, by_b;
};
std::vector<Node> tape;

struct Var {
  idx node;
  double value() const { return tape[at(node)].value; }
};
using Vars = std::vector<Var>;

Var note(double value, Var a = {-1}, double by_a = 0, Var b = {-1}, double by_b = 0) {
  tape.push_back({value, a.node, b.node, by_a, by_b});
  return {static_cast<idx>(tape.size()) - 1};
}

Var operator+(Var a, Var b) { return note(a.value() + b.value(), a, 1, b, 1); }
Var operator-(Var a, Var b) { return note(a.value() - b.value(), a, 1, b, -1); }
Var operator*(Var a, Var b) { return note(a.value() * b.value(), a, b.value(), b, a.value()); }
Var operator*(Var a, double factor) { return note(a.value() * factor, a, factor); }
Var activate(int act, Var a) { return note(naive::activate(act, a.value()), a, naive::slope(act, a.value())); }

Vars variables(const Values& values) {
  Vars vars;
  for (double value : values) vars.push_back(note(value));
  return vars;
}

Values values_of(const Vars& vars) {
  Values values;
  for (Var v : vars) values.push_back(v.value());
  return values;
}

// Place of the first largest of `count` values, `step` apart from `first` on; a NaN is the largest.
idx first_largest(const Vars& v, idx first, idx count, idx step) {
  idx place = 0;
  for (idx i = 1; i < count; ++i) {
    const double value = v[at(first + i * step)].value(), best = v[at(first + place * step)].value();
    if (value > best || (std::isnan(value) && !std::isnan(best))) place = i;
  }
  return place;
}

Var mean(const Vars& v, idx first, idx count, idx step) {
  Var sum = v[at(first)];
  for (idx i = 1; i < count; ++i) sum = sum + v[at(first + i * step)];
  return sum * (1 / static_cast<double>(count));
}

// act(norm(y)), y [rows][channels]; weight and bias are those of `norm`.
Vars norm_act(const naive::Norm& norm, const Vars& weight, const Vars& bias, const Vars& y, idx channels, int act,
              bool batch) {
  const idx rows = static_cast<idx>(y.size()) / channels;
  Vars z = y;
  for (idx c = 0; c < channels && rows > 0; ++c) {
    Var center = note(norm.mean[at(c)]), var = note(norm.var[at(c)]);
    if (batch) {
      center = mean(y, c, rows, channels);
      Vars squares;
      for (idx r = 0; r < rows; ++r)
        squares.push_back((y[at(r * channels + c)] - center) * (y[at(r * channels + c)] - center));
      var = mean(squares, 0, rows, 1);
    }
    const double invstd = 1 / std::sqrt(var.value() + norm.eps);
    const Var scale = note(invstd, var, -invstd * invstd * invstd / 2) * weight[at(c)];
    for (idx r = 0; r < rows; ++r) {
      const size_t i = at(r * channels + c);
      z[i] = activate(act, (y[i] - center) * scale + bias[at(c)]);
    }
  }
  return z;
}

// Gradients of sum(dout · out).
class Gradients {
 public:
  Gradients(const Vars& out, const Values& dout) : grad_(tape.size()), terms_(tape.size()) {
    for (size_t i = 0; i < out.size(); ++i) add(out[i].node, dout[i]);
    for (size_t i = tape.size(); i-- > 0;)
      add(tape[i].a, grad_[i] * tape[i].by_a), add(tape[i].b, grad_[i] * tape[i].by_b);
  }
  Want of(const Vars& vars) const {
    Want want{{}, 0};
    for (Var v : vars) want.values.push_back(grad_[at(v.node)]), want.terms = std::fmax(want.terms, terms_[at(v.node)]);
    return want;
  }

 private:
  void add(idx node, double value) {
    if (node >= 0) grad_[at(node)] += value, terms_[at(node)] += std::fabs(value);
  }
  Values grad_, terms_;
};

}  // namespace
