// SPDX-License-Identifier: Apache-2.0
// From the maps of a face detector of YuNet's kind to faces. A cell (row, column) of a grid of `stride` pixels says of
// a face, in units of the stride: centre minus the cell, logarithms of width and height; points minus the cell. The
// score is the root of class times object.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/types.h"

namespace ff {
namespace pictures {

struct Grid {
  const float *classes, *objects, *boxes, *points;  // [cells], [cells], [cells][4], [cells][10]
  idx rows, columns;
  float stride;
};

// left, top, width, height; five points x, y; score: in pixels.
struct FaceRow {
  float values[15];
  float score() const { return values[14]; }
};

inline float between_0_and_1(float value) { return std::min(std::max(value, 0.0f), 1.0f); }

// Appends the cells that reach `score`. NaN reaches nothing.
inline void add_candidates(const Grid& grid, float score, std::vector<FaceRow>& found) {
  const float least = score * score;
  for (idx cell = 0; cell < grid.rows * grid.columns; ++cell) {
    // Both have to reach the product, as neither counts for more than 1: few of thousands of cells are left.
    if (!(grid.classes[cell] >= least) || !(grid.objects[cell] >= least)) continue;
    const float both = between_0_and_1(grid.classes[cell]) * between_0_and_1(grid.objects[cell]);
    if (!(both >= least)) continue;
    const float x = static_cast<float>(cell % grid.columns), y = static_cast<float>(cell / grid.columns);
    const float *box = grid.boxes + 4 * cell, *points = grid.points + 10 * cell;
    FaceRow face;
    const float width = std::exp(box[2]) * grid.stride, height = std::exp(box[3]) * grid.stride;
    face.values[0] = (x + box[0]) * grid.stride - width / 2, face.values[1] = (y + box[1]) * grid.stride - height / 2;
    face.values[2] = width, face.values[3] = height;
    for (int i = 0; i < 10; ++i) face.values[4 + i] = (points[i] + (i % 2 ? y : x)) * grid.stride;
    face.values[14] = std::sqrt(both);
    found.push_back(face);
  }
}

inline float common_area(const FaceRow& a, const FaceRow& b) {
  const float *p = a.values, *q = b.values;
  const float width = std::min(p[0] + p[2], q[0] + q[2]) - std::max(p[0], q[0]);
  const float height = std::min(p[1] + p[3], q[1] + q[3]) - std::max(p[1], q[1]);
  return std::max(width, 0.0f) * std::max(height, 0.0f);
}

// Best first, at most `most` of them; then without those that a better one that stays covers by more than `overlap`,
// the intersection over the union.
inline std::vector<FaceRow> best_apart(std::vector<FaceRow> found, float overlap, idx most) {
  std::stable_sort(found.begin(), found.end(),
                   [](const FaceRow& a, const FaceRow& b) { return a.score() > b.score(); });
  if (static_cast<idx>(found.size()) > most) found.resize(static_cast<size_t>(most));
  std::vector<FaceRow> kept;
  for (const FaceRow& face : found) {
    const bool apart = std::all_of(kept.begin(), kept.end(), [&](const FaceRow& better) {
      const float common = common_area(better, face);
      const float areas = better.values[2] * better.values[3] + face.values[2] * face.values[3];
      return common <= overlap * (areas - common);
    });
    if (apart) kept.push_back(face);
  }
  return kept;
}

}  // namespace pictures
}  // namespace ff
