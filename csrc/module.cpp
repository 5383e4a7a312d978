// SPDX-License-Identifier: Apache-2.0
// The extension module: one bind_<family> each, and what was compiled, detected and run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "core/bind.h"
#include "core/dispatch.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace ff {

#define FF_FAMILY(name, device) void bind_##name(py::module_& m);
#include "families.inc"
#undef FF_FAMILY
void bind_engine(py::module_& m);
void bind_memory(py::module_& m);
void bind_pictures(py::module_& m);
void bind_step(py::module_& m);
#ifdef FASTFER_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

std::vector<std::string> isas(bool only_supported) {
  std::vector<std::string> names;
  for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (!only_supported || isa_supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

void choose_isa(const std::string& name) {
  if (set_isa(name.c_str())) return;
  std::string known;
  for (const std::string& isa : isas(true)) known += ", " + isa;
  throw py::value_error("ISA: expected auto" + known + ", got '" + name + "'" + isa_refusal(name.c_str()));
}

// kernel -> {ISA: calls}, ISAs that ran only.
std::map<std::string, std::map<std::string, idx>> kernels() {
  int count = 0;
  const KernelInfo* table = kernel_table(&count);
  std::map<std::string, std::map<std::string, idx>> result;
  for (int k = 0; k < count; ++k) {
    auto& calls = result[table[k].name];
    for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
      const idx n = __atomic_load_n(&table[k].calls[i], __ATOMIC_RELAXED);
      if (n) calls[isa_name(static_cast<Isa>(i))] = n;
    }
  }
  return result;
}

}  // namespace
}  // namespace ff

PYBIND11_MODULE(_C, m) {
  using namespace ff;
  m.doc() = "Native kernels of fastfer; addresses in, nothing out: call them through fastfer.ops.";
  m.def("isa", [] { return isa_name(active_isa()); }, "ISA in use.");
  m.def("set_isa", choose_isa, py::arg("name"), "Use an ISA by name, or \"auto\".");
  m.def("isas", isas, py::arg("only_supported") = false, "ISAs compiled in, or those this CPU runs.");
  m.def("kernels", kernels, "Calls of every kernel by ISA since the process started.");
  m.def("openmp_runtime", openmp_runtime, "File of the OpenMP runtime shared with torch, or \"none\".");
  m.attr("compiler") = __VERSION__;
  bind_memory(m);
  bind_engine(m);
  bind_pictures(m);
#define FF_FAMILY(name, device) bind_##name(m);
#include "families.inc"
#undef FF_FAMILY
  bind_step(m);
#ifdef FASTFER_CUDA
  bind_cuda(m);  // the submodule "cuda"
#else
  m.attr("cuda") = py::none();
#endif
}
