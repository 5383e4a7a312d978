// SPDX-License-Identifier: Apache-2.0
// The kernels of tensors.h of this ISA, for plans to call.
#include "engine/tensors.h"

#include "engine/kernels/elements.h"
#include "engine/kernels/moves.h"
#include "engine/kernels/products.h"
#include "engine/kernels/reductions.h"
#include "engine/kernels/sampling.h"

namespace ff {
namespace FF_ISA {
namespace {

#define FF_ENTRY(name, result, arguments) name,
constexpr engine::tensors::Table kEngineTensors = {FF_TENSORS(FF_ENTRY)};
#undef FF_ENTRY

}  // namespace

const engine::tensors::Table& engine_tensors() { return kEngineTensors; }

}  // namespace FF_ISA
}  // namespace ff
