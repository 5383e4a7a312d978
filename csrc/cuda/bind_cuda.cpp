// SPDX-License-Identifier: Apache-2.0
// The submodule _C.cuda: what it was built for, and one bind_<family>_cuda each. Built with CUDA only.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

namespace ff {

void bind_elementwise_cuda(pybind11::module_& m);

void bind_cuda(pybind11::module_& m) {
  pybind11::module_ cuda = m.def_submodule("cuda", "Launches of the kernels that nvcc compiled.");
  cuda.attr("archs") = FASTFER_CUDA_ARCHS;  // as CMAKE_CUDA_ARCHITECTURES, with commas: "80-real,90-real,120"
  cuda.attr("toolkit") = CUDART_VERSION;    // 1000 · major + 10 · minor
  bind_elementwise_cuda(cuda);
}

}  // namespace ff
