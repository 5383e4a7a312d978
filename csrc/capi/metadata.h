// SPDX-License-Identifier: Apache-2.0
// What an engine needs of its file's metadata; the rules are those of fastfer/engine/metadata.py.
#pragma once
#include <string>
#include <vector>

#include "capi/json.h"
#include "engine/plan/plan.h"

namespace ff::capi {

// The JSON object. Throws std::invalid_argument for anything else.
Json parse_metadata(const std::string& text);

// Scale and shift that make of a pixel 0 to 255 what the network takes; empty where not known, or where pixels are
// equalised first, which no engine does.
engine::Normalisation normalisation(const Json& metadata);

// "float32", "bfloat16" or "int8", and whether Winograd's and Strassen's algorithms are left out, as compiled.
std::string precision(const Json& metadata);
bool strict(const Json& metadata);

// Names of the `logits`; empty where not known. Throws std::invalid_argument unless there is a distinct one for each.
std::vector<std::string> class_names(const Json& metadata, size_t logits);

}  // namespace ff::capi
