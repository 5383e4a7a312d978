// SPDX-License-Identifier: Apache-2.0
// Plain types shared by every kernel, the dispatcher and the bindings.
#pragma once
#include <stdint.h>

#include "core/fields.h"

namespace ff {

using idx = int64_t;

// Codes as fastfer._checks.ACTIVATIONS.
enum class Act : int { none, relu, relu6, hardswish, hardsigmoid, silu, sigmoid };

}  // namespace ff
