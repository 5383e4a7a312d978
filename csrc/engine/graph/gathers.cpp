// SPDX-License-Identifier: Apache-2.0
#include "engine/graph/gathers.h"

#include <stdexcept>
#include <string>

namespace ff::engine {
namespace {

// Of a gather's output: their places are computed one by one when the plan is made.
constexpr idx kMostGathered = idx{1} << 26;

[[noreturn]] void fail(const char* op, const std::string& text) {
  throw std::invalid_argument("engine file: " + (op + (": " + text)));
}

idx elements_of(const Shape& s) { return idx{s.channels} * s.height * s.width; }

}  // namespace

int whole_number(const char* op, const Weights& w, idx i, idx most) {
  const float v = w.data[i];
  if (!(v >= -1.f && v <= static_cast<float>(most)) || v != static_cast<float>(static_cast<int>(v)))
    fail(op, "index: expected whole numbers of -1 to " + std::to_string(most) + ", got " + std::to_string(v));
  return static_cast<int>(v);
}

std::vector<int> sources(const graph::Gather& op, const Shape& x, const Shape& y) {
  const idx count = elements_of(y);
  if (count > kMostGathered)
    fail(op.kName, "expected at most " + std::to_string(kMostGathered) + " elements, got " + std::to_string(count));
  const idx limit = elements_of(x);
  std::vector<int> all(1, 0);
  idx first = 0;
  for (int d = 0; d < graph::kGatherDims; ++d) {
    std::vector<idx> part;
    for (int i = 0; i < op.n[d]; ++i) {
      const int index = whole_number(op.kName, op.index, first + i, (1 << 24) - 1);
      part.push_back(index < 0 ? -1 : idx{index} * op.stride[d]);
    }
    first += op.n[d];
    std::vector<int> next;
    next.reserve(all.size() * part.size());
    for (const int before : all)
      for (const idx p : part) {
        const idx at = before < 0 || p < 0 ? -1 : before + p;
        if (at >= limit)
          fail(op.kName, "index: expected places below " + std::to_string(limit) + ", got " + std::to_string(at));
        next.push_back(static_cast<int>(at));
      }
    all = std::move(next);
  }
  return all;
}

bool ByPixels::fits(const std::vector<int>& from, const Shape& x, const Shape& y) {
  channels.assign(static_cast<size_t>(y.channels), -1), rows.assign(static_cast<size_t>(y.height), -1);
  columns.assign(static_cast<size_t>(y.width), -1);
  each(from, y, [&](int c, int i, int j, int at) {
    if (at < 0) return true;
    channels[static_cast<size_t>(c)] = at / (x.height * x.width);
    rows[static_cast<size_t>(i)] = at / x.width % x.height, columns[static_cast<size_t>(j)] = at % x.width;
    return true;
  });
  return each(from, y, [&](int c, int i, int j, int at) {
    const int ch = channels[static_cast<size_t>(c)], row = rows[static_cast<size_t>(i)],
              column = columns[static_cast<size_t>(j)];
    return at == (ch < 0 || row < 0 || column < 0 ? -1 : (ch * x.height + row) * x.width + column);
  });
}

}  // namespace ff::engine
