// SPDX-License-Identifier: Apache-2.0
// The metadata of an engine file: a JSON object, read strictly.
#pragma once
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace ff::capi {

struct Json {
  enum class Kind { null, boolean, number, text, list, object };

  Kind kind = Kind::null;
  bool truth = false;
  double number = 0;
  std::string text;  // UTF-8
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  bool is(Kind k) const { return kind == k; }
  // The last member of this name; null where there is none, or this is no object.
  const Json& operator[](const char* name) const;
};

// Throws std::invalid_argument for what is not JSON in UTF-8, or is nested deeper than 64. NaN and Infinity, which
// Python writes, are numbers.
Json parse_json(const std::string& text);

}  // namespace ff::capi
