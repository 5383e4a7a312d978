// SPDX-License-Identifier: Apache-2.0
// Large activations on huge pages, kept for reuse. glibc returns every block above 32 MiB to the kernel at free, and
// the next op faults it in again, 1.6 us per 4 KiB page: 20 ms for 51 MB, several times what a kernel spends on it.
#pragma once
#include <stddef.h>

namespace ff {

// Memory of at least `bytes` bytes, 2 MiB aligned; contents undefined. Throws std::bad_alloc.
void* huge_acquire(size_t bytes);
// Returns a block to be reused; blocks beyond one and a half times the largest total ever in use at once go back.
void huge_release(void* block);
// Returns all blocks that are not in use to the kernel.
void huge_trim();

}  // namespace ff
