// SPDX-License-Identifier: Apache-2.0
// The kernels of tensors.h of this ISA, for plans to call; AVX-512 BF16 takes them from AVX-512.
#include "engine/tensors.h"

#if defined(__AVX512BF16__)

namespace ff {
namespace FF_ISA {

const engine::tensors::Table& engine_tensors() { return avx512::engine_tensors(); }

}  // namespace FF_ISA
}  // namespace ff

#else

#include "engine/kernels/elements.h"
#include "engine/kernels/moves.h"
#include "engine/kernels/products.h"
#include "engine/kernels/reductions.h"

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

#endif
