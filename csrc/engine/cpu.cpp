// SPDX-License-Identifier: Apache-2.0
// The inference engine's kernels for one ISA.
#include "engine/kernels/glue_table.h"
#include "engine/kernels/table.h"
