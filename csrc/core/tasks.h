// SPDX-License-Identifier: Apache-2.0
// parallel_for with a lambda.
#pragma once
#include "core/inline.h"
#include "core/parallel.h"

namespace ff {

// Runs body(task) for task in [0, tasks) on at most `threads` threads.
template <class Body>
FF_INLINE void for_tasks(idx tasks, int threads, const Body& body) {
  parallel_for(
      tasks, threads, [](void* context, idx task) { (*static_cast<const Body*>(context))(task); },
      const_cast<Body*>(&body));
}

}  // namespace ff
