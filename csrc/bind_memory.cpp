// SPDX-License-Identifier: Apache-2.0
// Huge-page blocks as DLPack capsules, which torch turns into tensors that give the block back when they are freed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "core/bind.h"
#include "core/huge_pages.h"
#include "core/scratch.h"

namespace py = pybind11;

namespace ff {
namespace {

// The layout of DLPack's unversioned structs (github.com/dmlc/dlpack, dlpack.h).
struct DlDevice {
  int32_t type, id;
};
struct DlType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};
constexpr int32_t kDlCpu = 1;
constexpr uint8_t kDlFloat = 2;

struct Owner {
  DlManaged managed;
  std::vector<int64_t> shape, strides;
};

void free_owner(DlManaged* managed) {
  huge_release(managed->tensor.data);
  delete static_cast<Owner*>(managed->context);
}

// Runs only when nobody took the tensor: torch renames the capsule when it does.
void free_capsule(PyObject* capsule) {
  if (auto* managed = static_cast<DlManaged*>(
          PyCapsule_IsValid(capsule, "dltensor") ? PyCapsule_GetPointer(capsule, "dltensor") : nullptr))
    managed->deleter(managed);
}

py::capsule huge_empty(bool f64, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  size_t bytes = f64 ? 8 : 4;
  for (const int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) throw std::bad_alloc();
  auto owner = std::make_unique<Owner>();
  owner->shape = std::move(shape), owner->strides = std::move(strides);
  owner->managed = {{huge_acquire(bytes),
                     {kDlCpu, 0},
                     static_cast<int32_t>(owner->shape.size()),
                     {kDlFloat, static_cast<uint8_t>(f64 ? 64 : 32), 1},
                     owner->shape.data(),
                     owner->strides.data(),
                     0},
                    owner.get(),
                    free_owner};
  PyObject* capsule = PyCapsule_New(&owner->managed, "dltensor", free_capsule);
  if (!capsule) {
    huge_release(owner->managed.tensor.data);
    throw py::error_already_set();
  }
  const void* const address = owner->managed.tensor.data;
  owner.release();
  auto made = py::reinterpret_steal<py::capsule>(capsule);
  bind::tell_memory(address);
  return made;
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def("huge_empty", huge_empty, "DLPack capsule of an uninitialised float32 or (f64) float64 tensor on huge pages.");
  m.def(
      "release_memory",
      [] {
        huge_trim();
        scratch_release();
      },
      "Give idle activation blocks and the calling thread's scratch memory back to the system.");
}

}  // namespace ff
