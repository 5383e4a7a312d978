// SPDX-License-Identifier: Apache-2.0
// The kernels of every family by name, as a host library: launch() returns the message of the first error, or nullptr.
#include <string.h>

#include "cuda/registry.h"

namespace ff::cuda {
#define FF_FAMILY_host(family)
#define FF_FAMILY_cuda(family) extern const Kernel family##_kernels[];
#define FF_FAMILY(family, device) FF_FAMILY_##device(family)
#include FF_FAMILIES
#undef FF_FAMILY_cuda
}  // namespace ff::cuda

namespace {

#define FF_FAMILY_cuda(family) ff::cuda::family##_kernels,
const ff::cuda::Kernel* const kFamilies[] = {
#include FF_FAMILIES
};
#undef FF_FAMILY_cuda

}  // namespace

extern "C" const char* launch(const char* name, const int64_t* grid, int threads, const int64_t* words, int count) {
  for (const ff::cuda::Kernel* kernel : kFamilies)
    for (; kernel->name; ++kernel)
      if (strcmp(kernel->name, name) == 0)
        return count == kernel->parameters ? shim::run(kernel->body, words, grid, threads)
                                           : "wrong number of arguments";
  return "no such kernel";
}

extern "C" void sample(int64_t blocks) { shim::sample(blocks); }

// The i-th kernel's name, or nullptr.
extern "C" const char* kernel_name(int i) {
  for (const ff::cuda::Kernel* kernel : kFamilies)
    for (; kernel->name; ++kernel)
      if (i-- == 0) return kernel->name;
  return nullptr;
}
