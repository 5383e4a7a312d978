// SPDX-License-Identifier: Apache-2.0
// The kernels of this ISA, for plans to call. AVX-512 BF16 takes float32 from AVX-512: nothing would be gained by
// compiling the same code again.
#pragma once
#include "engine/kernels/types.h"

#if FF_LOW_PRECISION

#include "engine/kernels/low.h"
#include "engine/kernels/strips.h"

namespace ff {
namespace FF_ISA {

const engine::Kernels& engine_kernels() {
  static const engine::Kernels all = [] {
    engine::Kernels k = avx512::engine_kernels();
    k.conv_panel = conv_panel, k.conv_packed = conv_packed, k.pack_conv = pack_conv, k.conv = conv;
    k.depthwise_packed = depthwise_packed, k.pack_depthwise = pack_depthwise, k.depthwise = depthwise;
    k.gate = gate, k.convert = convert, k.strips_scratch = strips_scratch, k.strips = strips;
    k.low_precision = true, k.low_packed = low_packed, k.pack_low = pack_low;
    return k;
  }();
  return all;
}

}  // namespace FF_ISA
}  // namespace ff

#else

#include "engine/kernels/planar.h"
#include "engine/kernels/strassen.h"
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
    strassen_band,
    strassen_panel,
    strassen_packed,
    pack_strassen,
    strassen_scratch,
    strassen,
    depthwise_packed,
    pack_depthwise,
    depthwise,
    gate,
    convert,
    strips_scratch,
    strips,
    plane_conv_packed,
    pack_plane_conv,
    plane_conv,
    planes_read,
    planes_pool,
    planes_gate,
    planes_to_map,
    false,
    nullptr,
    nullptr,
};

}  // namespace

const engine::Kernels& engine_kernels() { return kEngineKernels; }

}  // namespace FF_ISA
}  // namespace ff

#endif
