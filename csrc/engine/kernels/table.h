// SPDX-License-Identifier: Apache-2.0
// The kernels of float32 of this ISA, for plans to call.
#pragma once
#include "engine/kernels/depthwise.h"
#include "engine/kernels/planar.h"
#include "engine/kernels/strassen.h"
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
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    plane_conv_packed,
    pack_plane_conv,
    plane_conv,
    planes_read,
    planes_pool,
    planes_gate,
    planes_to_map,
    nullptr,
    nullptr,
};

}  // namespace

const engine::Kernels& engine_floats() { return kEngineKernels; }

}  // namespace FF_ISA
}  // namespace ff
