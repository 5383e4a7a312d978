// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a thread: grows to the largest need, then is reused, so that no kernel call faults fresh pages in
// (1.6 us per 4 KiB page on a virtual machine, more than the arithmetic on it). Kernels take it through core/arena.h.
#pragma once
#include <stddef.h>

namespace ff {

// `shared` is filled by the calling thread and read by all; `task` is private to the task that runs.
enum class Scratch : int { shared, task, count };

// What was taken from the kind before is given up.
void scratch_restart(Scratch kind);
// `bytes` (a multiple of 64) bytes, 64-byte aligned; valid until the same thread restarts the same kind. Contents are
// undefined. Throws std::bad_alloc.
void* scratch_take(Scratch kind, size_t bytes);
// Frees the calling thread's scratch.
void scratch_release();

}  // namespace ff
