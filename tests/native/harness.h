// SPDX-License-Identifier: Apache-2.0
// What the self-test's files share: random values, guarded memory, comparison, and the same bits for any number of
// threads.
#pragma once
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "core/kernels.h"
#include "naive.h"

namespace {

using namespace ff;
using naive::at;
using naive::Values;

int passed = 0, failed = 0;

void check(bool good, const std::string& what) {
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s\n", what.c_str());
}

// Values in (-2, 2) that float32 holds exactly.
class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  double next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 17, state_ ^= state_ << 5;
    return static_cast<double>(state_ >> 10) / (1 << 20) - 2;
  }
  Values values(idx n, double scale = 1) {
    Values v = naive::zeros(n);
    for (double& x : v) x = static_cast<float>(next() * scale);
    return v;
  }
  naive::Norm norm(idx channels) {
    naive::Norm norm{values(channels), values(channels), values(channels), values(channels)};
    for (double& v : norm.var) v = static_cast<float>(v * v / 2 + 0.5);
    return norm;
  }

 private:
  uint32_t state_;
};

// An input of exactly the given values: a sanitizer sees the first element read beyond them.
template <class T>
struct In {
  std::vector<T> data;
  explicit In(const Values& v) : data(v.begin(), v.end()) {}
  const T* ptr() const { return data.empty() ? nullptr : data.data(); }
};

// An output between guards, filled with NaN (integers: with what no result is) before the kernel runs; `aligned`: to
// the longest vector, else to no more than an element.
template <class T>
class Out {
 public:
  explicit Out(idx n, bool aligned = false) : data_(at(n + 2 * kGuard + kLine), kMark), start_(kGuard) {
    const idx past = static_cast<idx>(reinterpret_cast<uintptr_t>(data_.data() + start_) % 64 / sizeof(T));
    if (aligned && past) start_ += kLine - past;
    if (!aligned && !past) ++start_;
    end_ = start_ + n;
    for (idx i = start_; i < end_; ++i) data_[at(i)] = kReal ? T(NAN) : T(251);
  }
  T* ptr() { return data_.data() + start_; }
  std::vector<T> take(const std::string& name) const {
    bool whole = true;
    for (idx i = 0; i < static_cast<idx>(data_.size()); ++i) {
      if (i == start_) i = end_;
      whole = whole && data_[at(i)] == kMark;
    }
    check(whole, name + " wrote outside its output");
    return {data_.begin() + start_, data_.begin() + end_};
  }

 private:
  static constexpr idx kGuard = 32, kLine = 64 / static_cast<idx>(sizeof(T));
  static constexpr bool kReal = std::is_floating_point<T>::value;
  static constexpr T kMark = kReal ? T(-777) : T(77);
  std::vector<T> data_;
  idx start_, end_;
};

// Places, as numbers that `expect` compares.
template <class T, class P>
std::vector<T> numbers(const std::vector<P>& places) {
  return {places.begin(), places.end()};
}

template <class T>
using Results = std::vector<std::pair<std::string, std::vector<T>>>;

struct Want {
  Values values;
  double terms = 0;  // largest sum of the sizes of the terms, where they may cancel
};

// |got - want| <= 8·sqrt(length)·eps·(|want| + largest |want| or terms), or both NaN; `length` is that of the longest
// sum.
template <class T>
void compare(const std::string& name, const std::vector<T>& got, const Want& expected, idx length) {
  const Values& want = expected.values;
  const double largest = std::fmax(std::fmax(naive::largest(want), expected.terms), 1e-3);
  double worst = 0;
  size_t place = 0;
  bool good = got.size() == want.size();
  const double eps = sizeof(T) == 8 ? 2.3e-16 : 1.2e-7;
  const double allowed = 8 * std::sqrt(static_cast<double>(length) + 16) * eps;
  for (size_t i = 0; good && i < want.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    const double error = std::fabs(got[i] - want[i]) / (std::fabs(want[i]) + largest);
    if (!(error <= worst)) worst = error, place = i;
  }
  good = good && worst <= allowed;
  check(good, name + ": relative error " + std::to_string(worst / eps) + " eps at element " + std::to_string(place) +
                  ", allowed " + std::to_string(allowed / eps));
}

// run(threads) computes the results for each number of threads; want, in the same order, is what they should be.
template <class T, class Run>
void expect(const std::string& name, const std::vector<Want>& want, idx length, const Run& run) {
  const Results<T> first = run(1);
  check(first.size() == want.size(), name + ": number of results");
  for (size_t i = 0; i < want.size(); ++i) compare<T>(name + " " + first[i].first, first[i].second, want[i], length);
  for (int threads : {2, 3, 7}) {
    const Results<T> other = run(threads);
    for (size_t i = 0; i < want.size(); ++i) {
      const size_t bytes = first[i].second.size() * sizeof(T);
      check(!bytes || std::memcmp(first[i].second.data(), other[i].second.data(), bytes) == 0,
            name + " " + first[i].first + ": " + std::to_string(threads) + " threads give other bits than one");
    }
  }
}

DepthwiseShape shape(idx n, idx h, idx w, idx c, int kh, int kw, int sh, int sw, int top, int left, int bottom,
                     int right) {
  return {n, h, w, c, (h + top + bottom - kh) / sh + 1, (w + left + right - kw) / sw + 1, kh, kw, sh, sw, top, left};
}

idx pixels(const DepthwiseShape& s) { return s.n * s.oh * s.ow; }

std::string text(const DepthwiseShape& s) {
  char buffer[160];
  std::snprintf(buffer, sizeof buffer, " n%d h%d w%d c%d k%dx%d s%dx%d", int(s.n), int(s.h), int(s.w), int(s.c), s.kh,
                s.kw, s.sh, s.sw);
  return buffer;
}

template <class T, class Params>
void call(void (*f32)(const Params&), void (*f64)(const Params&), const Params& p) {
  (sizeof(T) == 8 ? f64 : f32)(p);
}

template <class T>
struct NormIn {
  In<T> weight, bias, mean, var;
  explicit NormIn(const naive::Norm& n) : weight(n.weight), bias(n.bias), mean(n.mean), var(n.var) {}
  NormParams params(double eps) const {
    NormParams p{};
    p.weight = weight.ptr(), p.bias = bias.ptr(), p.mean = mean.ptr(), p.var = var.ptr(), p.eps = eps;
    return p;
  }
};

}  // namespace
