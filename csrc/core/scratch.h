// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a thread: grows to the largest need, then is reused, so that no kernel call faults fresh pages in
// (1.6 us per 4 KiB page on a virtual machine, more than the arithmetic on it).
#pragma once
#include <stddef.h>

namespace ff {

// `shared` is filled by the calling thread and read by all; `task` is private to the task that runs.
enum class Scratch : int { shared, task, count };

// At least `bytes` bytes, 64-byte aligned (2 MiB and huge pages above 1 MiB); valid until the same thread reserves the
// same kind again. Contents are undefined.
void* scratch_reserve(Scratch kind, size_t bytes);
// Frees the calling thread's scratch.
void scratch_release();

}  // namespace ff
