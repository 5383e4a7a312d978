// SPDX-License-Identifier: Apache-2.0
// The kernels of this ISA, for plans to call. AVX-512 BF16 takes float32 from AVX-512: nothing would be gained by compiling
// the same code again.
#pragma once
#include "engine/map.h"

#if defined(__AVX512BF16__)

namespace ff {
namespace FF_ISA {

const engine::Kernels& engine_kernels() { return avx512::engine_kernels(); }

}  // namespace FF_ISA
}  // namespace ff

#else

#include "engine/kernels/planar.h"
#include "engine/kernels/strips.h"
#include "engine/kernels/winograd.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr engine::Kernels kEngineKernels = {
    L,
    conv_panel,
    stem_panel,
    conv_packed,
    pack_conv,
    conv,
    stem_scratch,
    stem,
    winograd_panel,
    winograd_packed,
    pack_winograd,
    winograd_scratch,
    winograd,
    depthwise_packed,
    pack_depthwise,
    depthwise,
    gate,
    strips_scratch,
    strips,
    plane_conv_packed,
    pack_plane_conv,
    plane_conv,
    planes_read,
    planes_pool,
    planes_gate,
    planes_to_map,
};

}  // namespace

const engine::Kernels& engine_kernels() { return kEngineKernels; }

}  // namespace FF_ISA
}  // namespace ff

#endif
