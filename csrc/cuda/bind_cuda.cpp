// SPDX-License-Identifier: Apache-2.0
// The submodule _C.cuda: what it was built for, and launches of the listed kernels by handle. Built with CUDA only.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace ff::cuda {

struct Kernel {  // as registry.h, whose device code this compiler does not read
  const char* name;
  const void* function;
  int parameters;
};
#define FF_FAMILY_host(family)
#define FF_FAMILY_cuda(family) extern const Kernel family##_kernels[];
#define FF_FAMILY(family, device) FF_FAMILY_##device(family)
#include "families.inc"
#undef FF_FAMILY_cuda

}  // namespace ff::cuda

namespace ff {
namespace {

constexpr std::size_t kMaxParameters = 48;

const std::vector<cuda::Kernel>& kernels() {
  static const std::vector<cuda::Kernel> all = [] {
    std::vector<cuda::Kernel> list;
#define FF_FAMILY_cuda(family) \
  for (const cuda::Kernel* k = cuda::family##_kernels; k->name; ++k) list.push_back(*k);
#include "families.inc"
#undef FF_FAMILY_cuda
    return list;
  }();
  return all;
}

int handle_of(const std::string& name) {
  static const std::unordered_map<std::string, int> handles = [] {
    std::unordered_map<std::string, int> map;
    for (std::size_t i = 0; i < kernels().size(); ++i) map[kernels()[i].name] = static_cast<int>(i);
    return map;
  }();
  const auto found = handles.find(name);
  if (found == handles.end()) throw std::invalid_argument("no CUDA kernel " + name + " was built");
  return found->second;
}

// Asynchronous on `stream`, a cudaStream_t of the current device; reports what the launch itself refuses.
void launch(int handle, std::array<unsigned, 3> grid, unsigned threads, const pybind11::tuple& values,
            std::uintptr_t stream) {
  const cuda::Kernel& kernel = kernels().at(static_cast<std::size_t>(handle));
  const std::size_t count = values.size();
  if (count != static_cast<std::size_t>(kernel.parameters) || count > kMaxParameters)
    throw std::invalid_argument(std::string(kernel.name) + ": expected " + std::to_string(kernel.parameters) +
                                " arguments, got " + std::to_string(count));
  std::array<std::int64_t, kMaxParameters> words;
  std::array<void*, kMaxParameters> addresses;
  for (std::size_t i = 0; i < count; ++i) {
    const pybind11::object value = values[i];
    if (pybind11::isinstance<pybind11::float_>(value)) {
      const double number = value.cast<double>();
      std::memcpy(&words[i], &number, sizeof number);
    } else {
      words[i] = value.cast<std::int64_t>();
    }
    addresses[i] = &words[i];
  }
  const cudaError_t error = cudaLaunchKernel(kernel.function, dim3(grid[0], grid[1], grid[2]), dim3(threads),
                                             addresses.data(), 0, reinterpret_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel.name) + ": " + cudaGetErrorString(error));
}

}  // namespace

void bind_cuda(pybind11::module_& m) {
  using pybind11::arg;
  pybind11::module_ cuda = m.def_submodule("cuda", "Launches of the kernels that nvcc compiled.");
  cuda.attr("archs") = FASTFER_CUDA_ARCHS;  // as CMAKE_CUDA_ARCHITECTURES, with commas: "80-real,90-real,120"
  cuda.attr("toolkit") = CUDART_VERSION;    // 1000 · major + 10 · minor
  cuda.def("handle", &handle_of, arg("name"));
  cuda.def("names", [] {
    pybind11::list names;
    for (const cuda::Kernel& kernel : kernels()) names.append(kernel.name);
    return names;
  });
  cuda.def(
      "launch",
      [](int handle, unsigned x, unsigned y, unsigned z, unsigned threads, const pybind11::tuple& values,
         std::uintptr_t stream) { launch(handle, {x, y, z}, threads, values, stream); },
      arg("handle"), arg("x"), arg("y"), arg("z"), arg("threads"), arg("values"), arg("stream"));
}

}  // namespace ff
