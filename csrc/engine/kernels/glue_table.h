// SPDX-License-Identifier: Apache-2.0
// What stands between this ISA's convolutions, for plans to call.
#pragma once
#include "engine/glue.h"

#include "engine/kernels/arithmetic.h"
#include "engine/kernels/gates.h"
#include "engine/kernels/tokens.h"

namespace ff {
namespace FF_ISA {
namespace {

#define FF_ENTRY(name, result, arguments) name,
constexpr engine::Glue kEngineGlue = {FF_GLUE(FF_ENTRY)};
#undef FF_ENTRY

}  // namespace

const engine::Glue& engine_glue() { return kEngineGlue; }

}  // namespace FF_ISA
}  // namespace ff
