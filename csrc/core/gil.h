// SPDX-License-Identifier: Apache-2.0
// Native calls without Python's global lock.
#pragma once
#include <Python.h>
#include <unistd.h>

namespace ff {

// No GIL for as long as it lives. A thread that wants the GIL back while the interpreter exits is ended by Python with
// pthread_exit, whose unwinding ends in std::terminate at the first destructor or noexcept function. Such a thread
// waits here for the end of the process instead, as Python itself does it from 3.14 on.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace ff
