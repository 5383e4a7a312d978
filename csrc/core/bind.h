// SPDX-License-Identifier: Apache-2.0
// From the field lists of an op.h to Python: each params struct is a type of its name, `_C.NormParams(weight=w,
// eps=1e-5)`, and each kernel of kernels.inc a function `_C.batch_norm_fwd(f64, params)`. A wrong, missing or unknown
// name raises. Where the struct has a pointer the caller gives a tensor, or None for null: its data_ptr() is taken, and
// the params hold the tensor, so that a temporary lives as long as they do. The extension does not know torch: any
// object with data_ptr() is a tensor here.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/gil.h"
#include "core/kernels.h"
#include "core/types.h"

namespace ff {

namespace py = pybind11;
using Address = std::uintptr_t;  // data_ptr(), 0 for "none"

inline void* pointer(Address address) { return reinterpret_cast<void*>(address); }

struct ParamsType;

enum class FieldKind { tensor, integer64, integer32, flag, real, nested };

struct Field {
  PyObject* name;  // interned
  FieldKind kind;
  std::size_t offset;
  const ParamsType* nested;  // of kind nested
};

// A params struct as a Python type. An object of it is the object header, the struct, and one reference for each field.
struct ParamsType {
  const char* name = nullptr;
  std::size_t size = 0;
  std::size_t required = 0;  // the first so many fields
  std::vector<Field> fields;
  PyTypeObject* type = nullptr;
  std::string qualified, doc;  // of the type, which refers to them
};

namespace bind {

constexpr std::size_t kParamsAt = sizeof(PyObject);

// `fields` of the struct as one Python object; the vectorcall and the destructor of its type.
PyObject* construct(const ParamsType& info, PyObject* const* args, std::size_t nargsf, PyObject* names);
void destroy(const ParamsType& info, PyObject* self);
// Creates the type and adds it to the module.
void add_type(py::module_& m, ParamsType& info, vectorcallfunc construct, destructor destroy);
// Adds "<op>_<pass>" for a kernel "<op>_<pass>_f32" or "..._f64"; the first of the two creates the function.
void add_kernel(py::module_& m, const char* name, const ParamsType& params, void (*run)(const void*));
// A kernel with its params, which the caller keeps. TypeError unless `function` is a kernel and `params` are its own.
struct KernelCall {
  const char* name;
  void (*run)(const void*);
  const void* params;
};
KernelCall kernel_call(PyObject* function, bool f64, PyObject* params);
// From now on this thread's kernel calls, and the memory that it takes, are told to `recorder`; None ends that.
void set_recorder(const py::object& recorder);
void tell_memory(const void* address);
// Appends a field; `names` is the rest of a comma-separated list, and loses its first name.
void add_field(ParamsType& info, const char*& names, FieldKind kind, std::size_t offset, const ParamsType* nested);

// How many fields an aggregate has: the most values of any type that it can be initialised from.
struct Anything {
  template <class T>
  operator T() const;
};
template <class T, std::size_t... I>
auto takes(std::index_sequence<I...>) -> decltype(T{(static_cast<void>(I), Anything())...}, std::true_type());
template <class T>
std::false_type takes(...);
template <class T, std::size_t N = 1>
constexpr std::size_t field_count() {
  if constexpr (decltype(takes<T>(std::make_index_sequence<N>()))::value) return field_count<T, N + 1>();
  return N - 1;
}

template <class T>
constexpr std::size_t listed_count() {
  T params{};
  std::size_t count = 0;
  const auto visit = [&](const char*) { return [&](auto&... fields) { count += sizeof...(fields); }; };
  params.required(visit), params.optional(visit);
  return count;
}

template <class Params>
ParamsType& params_type();

template <class T>
void describe(ParamsType& info, const char*& names, std::size_t offset) {
  if constexpr (std::is_pointer_v<T>)
    add_field(info, names, FieldKind::tensor, offset, nullptr);
  else if constexpr (std::is_same_v<T, bool>)
    add_field(info, names, FieldKind::flag, offset, nullptr);
  else if constexpr (std::is_same_v<T, double>)
    add_field(info, names, FieldKind::real, offset, nullptr);
  else if constexpr (std::is_same_v<T, idx>)
    add_field(info, names, FieldKind::integer64, offset, nullptr);
  else if constexpr (std::is_same_v<T, int> || std::is_enum_v<T>)
    add_field(info, names, FieldKind::integer32, offset, nullptr);
  else
    add_field(info, names, FieldKind::nested, offset, &params_type<T>());
}

template <class Params>
ParamsType make_params_type() {
  static_assert(listed_count<Params>() == field_count<Params>(),
                "FF_REQUIRED and FF_OPTIONAL must list every field once");
  static_assert(listed_count<Params>() <= 64, "one bit of a word marks each field");
  ParamsType info;
  info.size = sizeof(Params);
  Params params{};
  const auto visit = [&](const char* names) {
    return [&info, &params, names](auto&... fields) mutable {
      (describe<std::remove_reference_t<decltype(fields)>>(
           info, names, static_cast<std::size_t>(reinterpret_cast<char*>(&fields) - reinterpret_cast<char*>(&params))),
       ...);
    };
  };
  params.required(visit);
  info.required = info.fields.size();
  params.optional(visit);
  return info;
}

template <class Params>
ParamsType& params_type() {
  static ParamsType info = make_params_type<Params>();
  return info;
}

template <class Params, void (*kernel)(const Params&)>
void run(const void* params) {
  kernel(*static_cast<const Params*>(params));
}

}  // namespace bind

// The kernels of kernels.inc that take these params.
template <class Params>
void bind_kernels(py::module_& m) {
#define FF_KERNEL(name, KernelParams)                 \
  if constexpr (std::is_same_v<Params, KernelParams>) \
    bind::add_kernel(m, #name, bind::params_type<Params>(), bind::run<Params, name>);
#include "kernels.inc"
#undef FF_KERNEL
}

// The Python type of a params struct, and its kernels. A family names all structs that it uses, and the first one to do
// so creates the type.
template <class Params>
void bind_params(py::module_& m, const char* name) {
  ParamsType& info = bind::params_type<Params>();
  if (info.type) return;
  info.name = name;
  bind::add_type(
      m, info,
      [](PyObject*, PyObject* const* args, std::size_t nargsf, PyObject* names) {
        return bind::construct(bind::params_type<Params>(), args, nargsf, names);
      },
      [](PyObject* self) { bind::destroy(bind::params_type<Params>(), self); });
  bind_kernels<Params>(m);
}

}  // namespace ff
