// SPDX-License-Identifier: Apache-2.0
// What stands between the inference engine's convolutions for one ISA.
#include "engine/kernels/glue_table.h"
