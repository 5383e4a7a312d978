// SPDX-License-Identifier: Apache-2.0
// Kernel calls that were recorded, as one call: `_C.Steps([(_C.batch_norm_fwd, False, params), ...]).run()`.
#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/bind.h"
#include "core/gil.h"
#include "step/between.h"

namespace ff {
namespace {

class Steps {
 public:
  explicit Steps(const py::list& calls) {
    for (const py::handle call : calls) {
      const auto [function, f64, params] = py::cast<std::tuple<py::object, bool, py::object>>(call);
      calls_.push_back(bind::kernel_call(function.ptr(), f64, params.ptr()));
      kept_.append(params);  // which keep their tensors
    }
  }

  void run() const {
    const bind::KernelCall* at = nullptr;
    try {
      const WithoutGil without;
      for (const bind::KernelCall& call : calls_) at = &call, call.run(call.params);
    } catch (const std::out_of_range& error) {
      throw py::index_error(error.what());
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      throw std::runtime_error(std::string(at->name) + ": " + error.what());
    }
  }

  std::size_t size() const { return calls_.size(); }

 private:
  std::vector<bind::KernelCall> calls_;
  py::list kept_;
};

// Adds the kernel "step_<name>", of float32 and float64 or of one for both.
template <class Params, void (*f32)(const Params&), void (*f64)(const Params&) = f32>
void add(py::module_& m, const std::string& name) {
  const ParamsType& params = bind::params_type<Params>();
  bind::add_kernel(m, ("step_" + name + "_f32").c_str(), params, bind::run<Params, f32>);
  bind::add_kernel(m, ("step_" + name + "_f64").c_str(), params, bind::run<Params, f64>);
}

}  // namespace

void bind_step(py::module_& m) {
  bind_params<AddParams>(m, "AddParams");
  bind_params<ScaleParams>(m, "ScaleParams");
  bind_params<StridedCopyParams>(m, "StridedCopyParams");
  bind_params<CopyParams>(m, "CopyParams");
  bind_params<FillParams>(m, "FillParams");
  bind_params<CountParams>(m, "CountParams");
  add<AddParams, step::add<float>, step::add<double>>(m, "add");
  add<ScaleParams, step::scale<float>, step::scale<double>>(m, "scale");
  add<StridedCopyParams, step::strided_copy<std::uint32_t>, step::strided_copy<std::uint64_t>>(m, "strided_copy");
  add<CopyParams, step::copy>(m, "copy");
  add<FillParams, step::fill<float>, step::fill<double>>(m, "fill");
  add<CountParams, step::count_up>(m, "count");
  add<CountParams, step::tick<float>, step::tick<double>>(m, "tick");
  m.def("set_recorder", bind::set_recorder, py::arg("recorder").none(true),
        "Who hears of this thread's kernel calls: kernel(name, f64, params) and memory(address); None ends it.");
  py::class_<Steps>(m, "Steps")
      .def(py::init<const py::list&>(), py::arg("calls"))
      .def("run", &Steps::run, "All calls in order, without Python's global lock.")
      .def("__len__", &Steps::size);
}

}  // namespace ff
