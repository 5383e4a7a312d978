// SPDX-License-Identifier: Apache-2.0
// class EnginePlan. Images and outputs come as addresses, and run() holds no GIL.
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/bind.h"
#include "engine/graph/file.h"
#include "engine/low_tiles.h"
#include "engine/plan/plan.h"
#include "engine/plan/program.h"

namespace ff {
namespace {

using engine::Plan;
using engine::Shape;

// The bytes of any contiguous buffer.
class Bytes {
 public:
  explicit Bytes(const py::buffer& source) {
    if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~Bytes() { PyBuffer_Release(&view_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  const void* data() const { return view_.buf; }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_;
};

py::tuple as_tuple(const Shape& s) { return py::make_tuple(s.channels, s.height, s.width); }

Isa isa_of(const std::string& name) {
  if (name == "auto") return active_isa();
  for (int i = 0; i < static_cast<int>(Isa::count); ++i)
    if (name == isa_name(static_cast<Isa>(i)) && isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  throw py::value_error("EnginePlan: isa: expected \"auto\" or an instruction set of this CPU, got '" + name + "'" +
                        isa_refusal(name.c_str()));
}

engine::Pixels pixels_of(const std::string& dtype) {
  if (dtype == "float32") return engine::Pixels::float32;
  if (dtype == "uint8") return engine::Pixels::uint8;
  throw py::value_error("EnginePlan: image dtype: expected float32 or uint8, got '" + dtype + "'");
}

engine::Type type_of(const std::string& dtype) {
  if (dtype == "float32") return engine::Type::float32;
  if (dtype == "bfloat16") return engine::Type::bfloat16;
  if (dtype == "int8") return engine::Type::uint8;  // of maps; weights are int8
  throw py::value_error("EnginePlan: dtype: expected float32, bfloat16 or int8, got '" + dtype + "'");
}

std::string way_of(const std::string& dtype) {
  const engine::LowTiles* tiles = engine::kernels_of(active_isa()).tiles(type_of(dtype));
  return tiles ? tiles->way : "float32";
}

std::unique_ptr<Plan> make_plan(const py::buffer& file, int threads, const std::string& dtype, const std::string& isa,
                                std::vector<float> scale, std::vector<float> shift, int image_threads, bool strict,
                                bool apart) {
  if (threads < 1) throw py::value_error("EnginePlan: threads: expected at least 1, got " + std::to_string(threads));
  if (image_threads < 0)
    throw py::value_error("EnginePlan: image_threads: expected 0 or more, got " + std::to_string(image_threads));
  if (scale.size() != shift.size())
    throw py::value_error("EnginePlan: scale, shift: expected as many of each, got " + std::to_string(scale.size()) +
                          " and " + std::to_string(shift.size()));
  const Bytes bytes(file);
  engine::PlanOptions options;
  options.isa = isa_of(isa), options.type = type_of(dtype);
  options.threads = threads, options.image_threads = image_threads, options.strict = strict, options.apart = apart;
  options.bytes = {std::move(scale), std::move(shift)};
  const WithoutGil release;
  // Weights are read as floats.
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(float) == 0)
    return std::make_unique<Plan>(bytes.data(), bytes.size(), options);
  const auto* first = static_cast<const char*>(bytes.data());
  const std::vector<char> copy(first, first + bytes.size());
  return std::make_unique<Plan>(copy.data(), copy.size(), options);
}

void run_plan(const Plan& plan, Address images, const std::string& dtype, idx batch,
              const std::vector<Address>& outputs) {
  if (outputs.size() != plan.outputs().size())
    throw py::value_error("EnginePlan.run: outputs: expected " + std::to_string(plan.outputs().size()) +
                          " addresses, got " + std::to_string(outputs.size()));
  float* places[engine::kMostOutputs];
  for (size_t i = 0; i < outputs.size(); ++i) places[i] = static_cast<float*>(pointer(outputs[i]));
  const engine::Pixels type = pixels_of(dtype);
  const WithoutGil release;
  plan.run(pointer(images), type, batch, places);
}

// (name, node, seconds, macs, bytes, tasks) of each step.
using Row = std::tuple<std::string, int, double, double, double, int>;

std::vector<Row> profile_plan(const Plan& plan, Address image, const std::string& dtype, int repeats) {
  if (repeats < 1)
    throw py::value_error("EnginePlan.profile: repeats: expected at least 1, got " + std::to_string(repeats));
  const engine::Pixels type = pixels_of(dtype);
  std::vector<engine::StepTime> steps;
  {
    const WithoutGil release;
    steps = plan.profile(pointer(image), type, repeats);
  }
  std::vector<Row> rows;
  for (const auto& s : steps) rows.emplace_back(s.name, s.node, s.seconds, s.macs, s.bytes, s.tasks);
  return rows;
}

void plan_values(const Plan& plan, Address image, const std::string& dtype, const std::vector<Address>& to) {
  const engine::Pixels type = pixels_of(dtype);
  std::vector<float*> places;
  for (const Address place : to) places.push_back(static_cast<float*>(pointer(place)));
  const WithoutGil release;
  plan.values(pointer(image), type, places);
}

using OpRow = std::tuple<std::string, uint32_t, int, std::vector<std::string>, std::vector<std::string>>;

std::vector<OpRow> op_rows() {
  std::vector<OpRow> rows;
  for (auto& op : engine::op_table()) rows.emplace_back(op.name, op.code, op.inputs, op.attrs, op.weights);
  return rows;
}

py::tuple shape_of(const std::string& name, const std::vector<std::tuple<int, int, int>>& inputs,
                   const std::vector<int>& attrs, const std::vector<idx>& weights) {
  std::vector<Shape> shapes;
  for (const auto& [channels, height, width] : inputs) {
    if (channels < 1 || height < 1 || width < 1) throw py::value_error(name + ": inputs: expected sizes of at least 1");
    shapes.push_back({channels, height, width});
  }
  std::vector<engine::Weights> parts;
  for (const idx count : weights) parts.push_back({nullptr, count});
  static const std::vector<engine::OpNames> table = engine::op_table();
  for (const auto& op : table)
    if (op.name == name) return as_tuple(engine::output_shape(engine::make_op(op.code, attrs, parts, ""), shapes, ""));
  throw py::value_error("engine_output_shape: op: expected a known name, got '" + name + "'");
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<Plan>(m, "EnginePlan", "A network from the bytes of an engine file, ready to run.")
      .def(py::init(&make_plan), py::arg("file"), py::arg("threads") = 1, py::arg("dtype") = "float32",
           py::arg("isa") = "auto", py::arg("scale") = std::vector<float>(), py::arg("shift") = std::vector<float>(),
           py::arg("image_threads") = 0, py::arg("strict") = false, py::arg("apart") = false)
      .def("run", run_plan, py::arg("images"), py::arg("dtype"), py::arg("batch"), py::arg("outputs"))
      .def("profile", profile_plan, py::arg("image"), py::arg("dtype"), py::arg("repeats") = 20)
      .def("values", plan_values, py::arg("image"), py::arg("dtype"), py::arg("to"))
      .def_property_readonly("metadata", [](const Plan& p) { return py::bytes(p.metadata()); })
      .def_property_readonly("input", [](const Plan& p) { return as_tuple(p.input()); })
      .def_property_readonly("outputs",
                             [](const Plan& p) {
                               py::list shapes;
                               for (const Shape& s : p.outputs()) shapes.append(as_tuple(s));
                               return shapes;
                             })
      .def_property_readonly("threads", &Plan::threads)
      .def_property_readonly("way", &Plan::way)
      .def_property_readonly("isa", [](const Plan& p) { return isa_name(p.isa()); })
      .def_property_readonly("image_threads", &Plan::image_threads)
      .def_property_readonly("arena_bytes", &Plan::arena_bytes)
      .def_property_readonly("weight_bytes", &Plan::weight_bytes);
  m.def(
      "engine_checksum",
      [](const py::buffer& data) {
        const Bytes bytes(data);
        return engine::checksum(bytes.data(), bytes.size());
      },
      "Checksum of an engine file's bytes from 32 on.");
  m.def("engine_ops", op_rows,
        "The operations of engine files: name, code, number of inputs (-1: one or more), names of attributes and of "
        "weights.");
  m.def("engine_way", way_of, py::arg("dtype"),
        "What dense convolutions of that dtype multiply with on the ISA in use; float32 where it has nothing of its "
        "own.");
  m.def("engine_output_shape", shape_of, py::arg("op"), py::arg("inputs"), py::arg("attrs"), py::arg("weights"),
        "The (C, H, W) that an operation makes of maps of such shapes; of weights the numbers of floats. ValueError "
        "where they do not fit.");
}

}  // namespace ff
