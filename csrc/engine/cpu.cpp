// SPDX-License-Identifier: Apache-2.0
// The engine's kernels of one ISA, as two tables.
#include "engine/kernels/arithmetic.h"
#include "engine/kernels/gates.h"
#include "engine/kernels/plain.h"
#include "engine/kernels/tokens.h"

namespace ff {
namespace FF_ISA {
namespace {

size_t no_scratch(const Stem&) { return 0; }

const engine::Kernels kKernels = {
    static_cast<int>(kLanes), plain_panel, plain_panel,          plain_packed,         plain_pack,     plain_conv,
    no_scratch,               plain_stem,  plain_depthwise_packed, plain_pack_depthwise, plain_depthwise,
};

const engine::Glue kGlue = {
    import, export_map, window_pool, line_pools, reduce,         binary,        affine,             place,
    pixel_pools, pixel_gate, gated,  line_gated, neighbour_gate, dot_attention, additive_attention,
};

}  // namespace

const engine::Kernels& engine_kernels() { return kKernels; }
const engine::Glue& engine_glue() { return kGlue; }

}  // namespace FF_ISA
}  // namespace ff
