// SPDX-License-Identifier: Apache-2.0
#include "capi/metadata.h"

#include <cmath>
#include <set>
#include <stdexcept>

namespace ff::capi {
namespace {

using Kind = Json::Kind;

std::vector<double> numbers(const char* name, const Json& value) {
  std::vector<double> result;
  for (const Json& item : value.items)
    if (item.is(Kind::number) && std::isfinite(item.number)) result.push_back(item.number);
  if (!value.is(Kind::list) || result.size() != value.items.size())
    throw std::invalid_argument(std::string(name) + ": expected a list of finite numbers");
  return result;
}

}  // namespace

Json parse_metadata(const std::string& text) {
  Json metadata = parse_json(text);
  if (!metadata.is(Kind::object)) throw std::invalid_argument("metadata: expected a JSON object");
  return metadata;
}

engine::Normalisation normalisation(const Json& metadata) {
  const Json &mean = metadata["mean"], &std = metadata["std"], &equalise = metadata["preprocess"]["equalise"];
  if ((mean.is(Kind::null) && std.is(Kind::null)) || equalise.truth) return {};
  const std::vector<double> means = numbers("mean", mean), deviations = numbers("std", std);
  engine::Normalisation result;
  for (size_t i = 0; i < means.size() && i < deviations.size(); ++i) {
    if (!(deviations[i] > 0)) break;
    result.scale.push_back(static_cast<float>(1 / (255 * deviations[i])));
    result.shift.push_back(static_cast<float>(-means[i] / deviations[i]));
  }
  if (result.scale.size() != means.size() || means.size() != deviations.size())
    throw std::invalid_argument("mean and std: expected as many of each, std above 0");
  return result;
}

std::string precision(const Json& metadata) {
  const Json& dtype = metadata["dtype"];
  return dtype.is(Kind::null) ? "float32" : dtype.text;
}

bool strict(const Json& metadata) { return metadata["strict"].truth; }

std::vector<std::string> class_names(const Json& metadata, size_t logits) {
  const Json& classes = metadata["classes"];
  std::vector<std::string> names;
  if (classes.is(Kind::null)) return names;
  for (const Json& name : classes.items)
    if (name.is(Kind::text) && name.text.find('\0') == std::string::npos) names.push_back(name.text);
  if (!classes.is(Kind::list) || names.size() != classes.items.size() || names.size() != logits ||
      std::set<std::string>(names.begin(), names.end()).size() != names.size())
    throw std::invalid_argument("classes: expected " + std::to_string(logits) +
                                " distinct names without zeros, one for each logit");
  return names;
}

}  // namespace ff::capi
