// SPDX-License-Identifier: Apache-2.0
// parallel_for on the OpenMP runtime that the process has loaded already (torch's), so that there is one thread team.
#pragma once
#include "core/types.h"

namespace ff {

using TaskFn = void (*)(void* context, idx task);

// Runs fn(context, 0 .. tasks-1): a contiguous share of the tasks for each of at most `threads` threads. What a task
// computes must not depend on which thread runs it; then no result depends on the number of threads.
void parallel_for(idx tasks, int threads, TaskFn fn, void* context);

// File of the OpenMP runtime in use; "none" when the process has none, and then everything runs on the caller.
const char* openmp_runtime();

}  // namespace ff
