// SPDX-License-Identifier: Apache-2.0
// Python functions over the launches of cuda.cu: codes, device addresses, element count, stream. Built with CUDA only.
#include <pybind11/pybind11.h>

#include <cstdint>

namespace ff::cuda {
void launch_activation_fwd(int dtype, int act, const void* x, void* y, long long n, void* stream);
void launch_activation_bwd(int dtype, int act, const void* dy, const void* x, void* dx, long long n, void* stream);
}  // namespace ff::cuda

namespace ff {

void bind_elementwise_cuda(pybind11::module_& m) {
  using pybind11::arg;
  using Address = std::uintptr_t;
  const auto device = [](Address a) { return reinterpret_cast<void*>(a); };
  m.def(
      "activation_fwd",
      [device](int dtype, int act, Address x, Address y, long long n, Address stream) {
        const pybind11::gil_scoped_release unlocked;
        cuda::launch_activation_fwd(dtype, act, device(x), device(y), n, device(stream));
      },
      arg("dtype"), arg("act"), arg("x"), arg("y"), arg("n"), arg("stream"));
  m.def(
      "activation_bwd",
      [device](int dtype, int act, Address dy, Address x, Address dx, long long n, Address stream) {
        const pybind11::gil_scoped_release unlocked;
        cuda::launch_activation_bwd(dtype, act, device(dy), device(x), device(dx), n, device(stream));
      },
      arg("dtype"), arg("act"), arg("dy"), arg("x"), arg("dx"), arg("n"), arg("stream"));
}

}  // namespace ff
