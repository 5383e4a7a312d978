// SPDX-License-Identifier: Apache-2.0
// The inference engine's convolutions of float32 for one ISA; cpu_*.cpp have what stands between them, objects of their
// own because each takes a compiler long.
#include "engine/kernels/table.h"
