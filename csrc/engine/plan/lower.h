// SPDX-License-Identifier: Apache-2.0
// Each operation as steps.
#pragma once
#include "engine/plan/lowering.h"

namespace ff::engine {

// lower_conv.cpp
void lower(Lowering& l, const Node& node, const graph::Conv& op);
void lower(Lowering& l, const Node& node, const graph::DilatedConv& op);
void lower(Lowering& l, const Node& node, const graph::Strips& op);
void lower(Lowering& l, const Node& node, const graph::MeanConv& op);

// lower_maps.cpp
void lower(Lowering& l, const Node& node, const graph::MaxPool& op);
void lower(Lowering& l, const Node& node, const graph::AvgPool& op);
void lower(Lowering& l, const Node& node, const graph::GlobalPool& op);
void lower(Lowering& l, const Node& node, const graph::LinePool& op);
void lower(Lowering& l, const Node& node, const graph::ChannelPool& op);
void lower(Lowering& l, const Node& node, const graph::Add& op);
void lower(Lowering& l, const Node& node, const graph::Mul& op);
void lower(Lowering& l, const Node& node, const graph::Activate& op);
void lower(Lowering& l, const Node& node, const graph::Affine& op);
void lower(Lowering& l, const Node& node, const graph::Concat& op);

// lower_gates.cpp
void lower(Lowering& l, const Node& node, const graph::Cbam& op);
void lower(Lowering& l, const Node& node, const graph::Se& op);
void lower(Lowering& l, const Node& node, const graph::Eca& op);
void lower(Lowering& l, const Node& node, const graph::Scse& op);
void lower(Lowering& l, const Node& node, const graph::Sa& op);
void lower(Lowering& l, const Node& node, const graph::Csa& op);
void lower(Lowering& l, const Node& node, const graph::Coordinate& op);
// Channel gates of two dense layers of the means, scale · the sum of `count` lines, or of the sum over means and
// maxima.
Slot mlp_gate(Lowering& l, const graph::Mlp& mlp, const PoolSlots& pools, int count, float scale, Act act, Act gate);

// lower_attention.cpp
void lower(Lowering& l, const Node& node, const graph::DotAttention& op);
void lower(Lowering& l, const Node& node, const graph::AdditiveAttention& op);

// lower_planes.cpp
void lower(Lowering& l, const Node& node, const graph::Planar& op);

// lower_tensors.cpp
void lower(Lowering& l, const Node& node, const graph::Gather& op);
void lower(Lowering& l, const Node& node, const graph::Channels& op);
void lower(Lowering& l, const Node& node, const graph::Constant& op);
void lower(Lowering& l, const Node& node, const graph::Join& op);
void lower(Lowering& l, const Node& node, const graph::Unary& op);
void lower(Lowering& l, const Node& node, const graph::Binary& op);
void lower(Lowering& l, const Node& node, const graph::Select& op);
void lower(Lowering& l, const Node& node, const graph::Reduce& op);
void lower(Lowering& l, const Node& node, const graph::Softmax& op);
void lower(Lowering& l, const Node& node, const graph::Resample& op);
void lower(Lowering& l, const Node& node, const graph::Normalise& op);
void lower(Lowering& l, const Node& node, const graph::MatMul& op);
void lower(Lowering& l, const Node& node, const graph::Sample& op);

// A step that gives y the channels of `inputs`, at most Channels::kMostInputs. Of a block of which any channel comes,
// those that say kThere stay, and those of other negative numbers become 0.
constexpr int kThere = -1;
void take_channels(Lowering& l, const char* name, const Slot& y, std::vector<Slot> inputs,
                   const std::vector<graph::Channels::Source>& from);

constexpr Window kPoint{1, 1, 1, 1, 0, 0};

// One thread runs the step.
inline void serial(Step& step) { step.by_rows = step.by_blocks = false; }
inline float inverse(int a, int b) { return 1.f / (static_cast<float>(a) * static_cast<float>(b)); }

}  // namespace ff::engine
