// SPDX-License-Identifier: Apache-2.0
#include "core/bind.h"

#include <structmember.h>

#include <cstring>
#include <exception>
#include <map>
#include <new>
#include <stdexcept>

namespace ff {
namespace bind {
namespace {

// Where libraries, threads and large blocks lie on every 64-bit system; lower addresses may be memory as well.
constexpr std::uintptr_t kLowestMemory = std::uintptr_t{1} << 40;

char* params_of(PyObject* self) { return reinterpret_cast<char*>(self) + kParamsAt; }

PyObject** held_by(const ParamsType& info, PyObject* self) {
  return reinterpret_cast<PyObject**>(params_of(self) + info.size);
}

// Whether the params refer to what was given for the field.
bool held(const Field& field) { return field.kind == FieldKind::tensor || field.kind == FieldKind::nested; }

const char* type_name(PyObject* value) {
  const char *name = Py_TYPE(value)->tp_name, *dot = std::strrchr(name, '.');
  return dot ? dot + 1 : name;
}

bool refuse(const ParamsType& info, const Field& field, const char* expected, PyObject* got) {
  PyErr_Format(PyExc_TypeError, "%s: %U: expected %s, got %.100s", info.name, field.name, expected, type_name(got));
  return false;
}

template <class T>
void put(char* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

// Raises where a tensor has elements and no memory for them: of a tensor whose storage was freed data_ptr() is the
// offset alone, as of one without elements. Python knows how to look; here is only who is looked at.
bool has_memory(const ParamsType& info, const Field& field, PyObject* value) {
  PyObject* const elements = PyObject_CallMethod(value, "numel", nullptr);
  if (!elements) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return false;
    PyErr_Clear();  // no torch tensor
    return true;
  }
  const bool empty = PyObject_Not(elements) == 1;
  Py_DECREF(elements);
  if (empty) return true;
  PyObject* const memory = PyImport_ImportModule("fastfer._memory");
  PyObject* const checked =
      memory ? PyObject_CallMethod(memory, "check", "sOO", info.name, field.name, value) : nullptr;
  Py_XDECREF(memory), Py_XDECREF(checked);
  return checked != nullptr;
}

bool put_tensor(const ParamsType& info, const Field& field, char* at, PyObject* value) {
  static PyObject* const method = PyUnicode_InternFromString("data_ptr");
  if (value == Py_None) return true;
  PyObject* address = PyObject_CallMethodNoArgs(value, method);
  if (!address) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return false;
    PyErr_Clear();
    return refuse(info, field, "a tensor or None", value);
  }
  void* const pointer = PyLong_AsVoidPtr(address);
  Py_DECREF(address);
  if (PyErr_Occurred()) return false;
  put(at, pointer);
  return reinterpret_cast<std::uintptr_t>(pointer) >= kLowestMemory || has_memory(info, field, value);
}

bool put_integer(const ParamsType& info, const Field& field, char* at, PyObject* value) {
  if (!PyIndex_Check(value)) return refuse(info, field, "an integer", value);
  const long long number = PyLong_AsLongLong(value);
  if (number == -1 && PyErr_Occurred()) return false;
  if (field.kind == FieldKind::integer64) {
    put(at, static_cast<idx>(number));
    return true;
  }
  if (number != static_cast<int>(number)) {
    PyErr_Format(PyExc_ValueError, "%s: %U: expected 32 bits, got %lld", info.name, field.name, number);
    return false;
  }
  put(at, static_cast<int>(number));
  return true;
}

bool put_nested(const ParamsType& info, const Field& field, char* at, PyObject* value) {
  if (value == Py_None) return true;
  if (Py_TYPE(value) != field.nested->type) return refuse(info, field, field.nested->name, value);
  std::memcpy(at, params_of(value), field.nested->size);
  return true;
}

bool put_value(const ParamsType& info, const Field& field, char* at, PyObject* value) {
  switch (field.kind) {
    case FieldKind::tensor: return put_tensor(info, field, at, value);
    case FieldKind::nested: return put_nested(info, field, at, value);
    case FieldKind::flag:
      if (!PyBool_Check(value)) return refuse(info, field, "a bool", value);
      put(at, value == Py_True);
      return true;
    case FieldKind::real: {
      const double number = PyFloat_AsDouble(value);
      if (number == -1 && PyErr_Occurred()) return refuse(info, field, "a number", value);
      put(at, number);
      return true;
    }
    default: return put_integer(info, field, at, value);
  }
}

// The field of that name. Callers give names mostly in the order of the lists, so the search starts at `next`.
std::size_t find(const ParamsType& info, PyObject* name, std::size_t next) {
  const std::size_t count = info.fields.size();
  for (std::size_t i = 0; i < count; ++i, ++next) {
    if (next >= count) next = 0;
    if (info.fields[next].name == name) return next;
  }
  for (std::size_t i = 0; i < count; ++i)  // a name that is not interned
    if (PyUnicode_Compare(info.fields[i].name, name) == 0) return i;
  return count;
}

bool fill(const ParamsType& info, PyObject* self, PyObject* const* values, PyObject* names) {
  const std::size_t count = names ? static_cast<std::size_t>(PyTuple_GET_SIZE(names)) : 0;
  std::uint64_t given = 0;
  std::size_t next = 0;
  for (std::size_t i = 0; i < count; ++i, ++next) {
    PyObject* name = PyTuple_GET_ITEM(names, static_cast<Py_ssize_t>(i));
    next = find(info, name, next);
    if (next == info.fields.size()) {
      PyErr_Format(PyExc_TypeError, "%s: %U: expected a name of %s", info.name, name, info.doc.c_str());
      return false;
    }
    const Field& field = info.fields[next];
    if (!put_value(info, field, params_of(self) + field.offset, values[i])) return false;
    if (held(field)) Py_INCREF(values[i]), held_by(info, self)[next] = values[i];
    given |= std::uint64_t{1} << next;
  }
  for (std::size_t i = 0; i < info.required; ++i) {
    if (given >> i & 1) continue;
    PyErr_Format(PyExc_TypeError, "%s: %U: expected a value, got none", info.name, info.fields[i].name);
    return false;
  }
  return true;
}

const char* python_type(const Field& field) {
  switch (field.kind) {
    case FieldKind::tensor: return "Tensor | None";
    case FieldKind::flag: return "bool";
    case FieldKind::real: return "float";
    case FieldKind::nested: return field.nested->name;
    default: return "int";
  }
}

// "(*, x: Tensor | None, count: int, dy: Tensor | None = ...)"; the type stubs are written from this.
std::string signature(const ParamsType& info) {
  std::string text = "(*";
  for (std::size_t i = 0; i < info.fields.size(); ++i) {
    const Field& field = info.fields[i];
    text += std::string(", ") + PyUnicode_AsUTF8(field.name) + ": " + python_type(field);
    if (field.kind == FieldKind::nested) text += " | None";
    if (i >= info.required) text += " = ...";
  }
  return text + ")";
}

// Every field can be read back as an attribute.
std::vector<PyMemberDef> members(const ParamsType& info) {
  std::vector<PyMemberDef> members;
  for (std::size_t i = 0; i < info.fields.size(); ++i) {
    const Field& field = info.fields[i];
    int code = T_OBJECT;  // the tensor or the params that were given
    std::size_t at = kParamsAt + info.size + i * sizeof(PyObject*);
    if (!held(field)) {
      at = kParamsAt + field.offset;
      code = field.kind == FieldKind::integer64   ? T_LONGLONG
             : field.kind == FieldKind::integer32 ? T_INT
             : field.kind == FieldKind::flag      ? T_BOOL
                                                  : T_DOUBLE;
    }
    members.push_back({PyUnicode_AsUTF8(field.name), code, static_cast<Py_ssize_t>(at), READONLY, nullptr});
  }
  members.push_back({nullptr, 0, 0, 0, nullptr});
  return members;
}

struct Kernel {
  std::string name, doc;
  const ParamsType* params = nullptr;
  void (*f32)(const void*) = nullptr;
  void (*f64)(const void*) = nullptr;
  PyMethodDef method{};
};

thread_local PyObject* recorder = nullptr;  // owned; told of what this thread calls

PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const auto& kernel = *static_cast<const Kernel*>(PyCapsule_GetPointer(self, nullptr));
  if (count != 2) return PyErr_Format(PyExc_TypeError, "%s: expected 2 arguments, got %zd", kernel.name.c_str(), count);
  if (!PyBool_Check(args[0]))
    return PyErr_Format(PyExc_TypeError, "%s: f64: expected a bool, got %.100s", kernel.name.c_str(),
                        type_name(args[0]));
  if (Py_TYPE(args[1]) != kernel.params->type)
    return PyErr_Format(PyExc_TypeError, "%s: params: expected %s, got %.100s", kernel.name.c_str(),
                        kernel.params->name, type_name(args[1]));
  const bool f64 = args[0] == Py_True;
  try {
    const py::gil_scoped_release release;
    (f64 ? kernel.f64 : kernel.f32)(params_of(args[1]));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::out_of_range& error) {
    return PyErr_Format(PyExc_IndexError, "%s", error.what());
  } catch (const std::exception& error) {
    return PyErr_Format(PyExc_RuntimeError, "%s: %s", kernel.name.c_str(), error.what());
  }
  if (recorder) return PyObject_CallMethod(recorder, "kernel", "sOO", kernel.name.c_str(), args[0], args[1]);
  Py_RETURN_NONE;
}

void add(py::module_& m, const char* name, PyObject* object) {
  if (!object || PyModule_AddObjectRef(m.ptr(), name, object) < 0) throw py::error_already_set();
  Py_DECREF(object);
}

}  // namespace

KernelCall kernel_call(PyObject* function, bool f64, PyObject* params) {
  const bool native =
      PyCFunction_Check(function) &&
      PyCFunction_GET_FUNCTION(function) == reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call));
  if (!native) throw py::type_error(std::string("calls: expected a kernel, got ") + type_name(function));
  const auto& kernel = *static_cast<const Kernel*>(PyCapsule_GetPointer(PyCFunction_GET_SELF(function), nullptr));
  if (Py_TYPE(params) != kernel.params->type)
    throw py::type_error(kernel.name + ": params: expected " + kernel.params->name + ", got " + type_name(params));
  return {kernel.name.c_str(), f64 ? kernel.f64 : kernel.f32, params_of(params)};
}

void set_recorder(const py::object& next) {
  Py_XDECREF(recorder);
  recorder = next.is_none() ? nullptr : py::object(next).release().ptr();
}

void tell_memory(const void* address) {
  if (!recorder) return;
  PyObject* const heard = PyObject_CallMethod(recorder, "memory", "K", reinterpret_cast<unsigned long long>(address));
  if (!heard) throw py::error_already_set();
  Py_DECREF(heard);
}

PyObject* construct(const ParamsType& info, PyObject* const* args, std::size_t nargsf, PyObject* names) {
  if (PyVectorcall_NARGS(nargsf))
    return PyErr_Format(PyExc_TypeError, "%s: expected names, got a value without", info.name);
  PyObject* self = info.type->tp_alloc(info.type, 0);  // all zeros
  if (self && !fill(info, self, args, names)) Py_CLEAR(self);
  return self;
}

void destroy(const ParamsType& info, PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  for (std::size_t i = 0; i < info.fields.size(); ++i) Py_XDECREF(held_by(info, self)[i]);
  type->tp_free(self);
  Py_DECREF(type);
}

void add_field(ParamsType& info, const char*& names, FieldKind kind, std::size_t offset, const ParamsType* nested) {
  names += std::strspn(names, ", ");
  const std::size_t length = std::strcspn(names, ", ");
  PyObject* name = PyUnicode_FromStringAndSize(names, static_cast<Py_ssize_t>(length));
  if (!name) throw py::error_already_set();
  PyUnicode_InternInPlace(&name);
  for (const Field& other : info.fields)
    if (other.offset == offset) throw std::logic_error(std::string(names, length) + " is listed twice");
  info.fields.push_back({name, kind, offset, nested});
  names += length;
}

void add_type(py::module_& m, ParamsType& info, vectorcallfunc construct, destructor destroy) {
  for (const Field& field : info.fields)
    if (field.nested && !field.nested->type)
      throw std::logic_error(std::string(info.name) + ": bind the struct of " + PyUnicode_AsUTF8(field.name) +
                             " before");
  info.qualified = std::string("fastfer._C.") + info.name;
  info.doc = info.name + signature(info);
  std::vector<PyMemberDef> numbers = members(info);  // the type copies them
  PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                         {Py_tp_doc, const_cast<char*>(info.doc.c_str())},
                         {Py_tp_members, numbers.data()},
                         {0, nullptr}};
  PyType_Spec spec{info.qualified.c_str(),
                   static_cast<int>(kParamsAt + info.size + info.fields.size() * sizeof(PyObject*)), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  PyObject* type = PyType_FromSpec(&spec);
  if (!type) throw py::error_already_set();
  info.type = reinterpret_cast<PyTypeObject*>(type);
  info.type->tp_vectorcall = construct;
  add(m, info.name, type);
}

void add_kernel(py::module_& m, const char* name, const ParamsType& params, void (*run)(const void*)) {
  static std::map<std::string, Kernel> kernels;
  const std::string full(name), suffix = full.substr(full.rfind('_') + 1), base = full.substr(0, full.rfind('_'));
  Kernel& kernel = kernels[base];
  (suffix == "f64" ? kernel.f64 : kernel.f32) = run;
  if (kernel.params) return;
  kernel.name = base, kernel.params = &params;
  kernel.doc = base + "(f64: bool, params: " + params.name + ", /) -> None";
  kernel.method = {kernel.name.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
                   METH_FASTCALL, kernel.doc.c_str()};
  PyObject* self = PyCapsule_New(&kernel, nullptr, nullptr);
  PyObject* module = PyModule_GetNameObject(m.ptr());
  PyObject* function = self && module ? PyCFunction_NewEx(&kernel.method, self, module) : nullptr;
  Py_XDECREF(self), Py_XDECREF(module);
  add(m, kernel.name.c_str(), function);
}

}  // namespace bind

}  // namespace ff
