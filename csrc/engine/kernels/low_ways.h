// SPDX-License-Identifier: Apache-2.0
// The way that this ISA multiplies in low precision: in tile registers where it has them, else in vector registers.
#pragma once
#if defined(__AMX_TILE__) || defined(FF_EMULATE_TILES)
#include "engine/kernels/low_matrix.h"
#else
#include "engine/kernels/low_tile.h"
#endif

namespace ff {
namespace FF_ISA {
namespace {

#if defined(__AMX_TILE__) || defined(FF_EMULATE_TILES)
template <class Products, int Pack>
using LowWay = MatrixTiles<Products, Pack>;
#else
template <class Products, int Pack>
using LowWay = RegisterTiles<Products, Pack>;
#endif

template <class Tiles>
constexpr LowTiles low_tiles(int offset, decltype(LowTiles::packed) packed, decltype(LowTiles::pack_weights) pack) {
  return {Tiles::kWay, offset, Tiles::run, Tiles::enter, Tiles::leave, Tiles::panel, Tiles::block_size, packed, pack};
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
