// SPDX-License-Identifier: Apache-2.0
// Pictures before the network and faces after it. Addresses come in; the GIL is not held meanwhile.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "core/bind.h"
#include "core/isa.h"
#include "pictures/faces.h"
#include "pictures/resize.h"

namespace ff {
namespace {

using pictures::Colours;
using pictures::FaceRow;
using pictures::Grid;
using pictures::Source;
using pictures::Target;

// source and target: (address, row, step, swapped, height, width), the target's with (plane, channels) besides.
using SourceFields = std::tuple<Address, idx, int, bool, idx, idx>;
using TargetFields = std::tuple<Address, idx, idx, bool, idx, idx, idx, int>;

void resize_picture(const SourceFields& from, const TargetFields& to) {
  const auto& [data, row, step, swapped, height, width] = from;
  const auto& [out, out_row, out_step, out_swapped, out_height, out_width, plane, channels] = to;
  if (height < 1 || width < 1 || out_height < 1 || out_width < 1)
    throw py::value_error("resize_picture: sizes: expected at least 1");
  if ((step != 1 && step != 3 && step != 4) || (channels != 1 && channels != 3))
    throw py::value_error("resize_picture: step, channels: expected 1, 3 or 4 and 1 or 3");
  const Source source{static_cast<const uint8_t*>(pointer(data)), row, Colours{step, swapped}, height, width};
  const Target target{
      static_cast<uint8_t*>(pointer(out)), out_row, out_step, plane, channels, out_swapped, out_height, out_width};
  const pictures::Kernels& kernels = pictures::kernels_of(active_isa());
  const WithoutGil release;
  pictures::resize(kernels, source, target);
}

constexpr int kStrides[] = {8, 16, 32};

// maps: addresses of the classes, objects, boxes and points of each stride.
py::bytes find_faces(const std::array<Address, 12>& maps, idx height, idx width, float score, float overlap, idx most) {
  std::vector<FaceRow> found;
  {
    const WithoutGil release;
    for (size_t i = 0; i < 3; ++i) {
      const auto map = [&](size_t kind) { return static_cast<const float*>(pointer(maps[3 * kind + i])); };
      const int stride = kStrides[i];
      pictures::add_candidates(
          {map(0), map(1), map(2), map(3), height / stride, width / stride, static_cast<float>(stride)}, score, found);
    }
    found = pictures::best_apart(std::move(found), overlap, most);
  }
  return py::bytes(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(FaceRow));
}

// The layout of Arrow's C data interface.
struct ArrowArray {
  int64_t length, null_count, offset, n_buffers, n_children;
  const void** buffers;
  ArrowArray** children;
  ArrowArray* dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

// Address of the bytes of an array of bytes, or of lists of bytes, and how many there are; they live as long as the
// capsule.
std::pair<Address, int64_t> arrow_bytes(const py::capsule& capsule) {
  if (!PyCapsule_IsValid(capsule.ptr(), "arrow_array")) throw py::type_error("arrow_bytes: expected an Arrow array");
  const auto* array = static_cast<const ArrowArray*>(PyCapsule_GetPointer(capsule.ptr(), "arrow_array"));
  if (array->n_children == 1) array = array->children[0];
  if (array->n_buffers != 2 || array->offset != 0 || array->n_children != 0)
    throw py::value_error("arrow_bytes: expected one array of bytes");
  return {reinterpret_cast<Address>(array->buffers[1]), array->length};
}

}  // namespace

void bind_pictures(py::module_& m) {
  m.def("resize_picture", resize_picture, py::arg("source"), py::arg("target"),
        "A picture of bytes at another size, of other colours, or as planes.");
  m.def("find_faces", find_faces, py::arg("maps"), py::arg("height"), py::arg("width"), py::arg("score"),
        py::arg("overlap"), py::arg("most"), "Rows of 15 floats: box, points and score of the faces of a detector.");
  m.def("arrow_bytes", arrow_bytes, py::arg("capsule"), "Address and number of the bytes of an Arrow array.");
}

}  // namespace ff
