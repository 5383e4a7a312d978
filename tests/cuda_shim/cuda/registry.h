// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/registry.h on the host: each listed instance behind a function that takes its parameters as 8-byte words.
#pragma once
#include <stdint.h>
#include <string.h>

#include <utility>

#include "cuda/device.cuh"

namespace ff::cuda {

struct Kernel {
  const char* name;
  shim::Body body;
  int parameters;
};

template <class T>
T parameter(const int64_t& word) {
  static_assert(sizeof(T) == 8, "kernel parameters have 8 bytes each");
  T value;
  memcpy(&value, &word, 8);
  return value;
}

template <auto kernel>
struct Instance;
template <class... Params, void (*kernel)(Params...)>
struct Instance<kernel> {
  template <size_t... i>
  static void call(const int64_t* words, std::index_sequence<i...>) {
    kernel(parameter<Params>(words[i])...);
  }
  static void body(const int64_t* words) { call(words, std::index_sequence_for<Params...>{}); }
  static constexpr int parameters = sizeof...(Params);
};

}  // namespace ff::cuda

#define FF_TEXT_OF(...) #__VA_ARGS__
#define FF_KERNELS_BEGIN(family)          \
  extern const Kernel family##_kernels[]; \
  const Kernel family##_kernels[] = {
#define FF_KERNEL(...) {FF_TEXT_OF(__VA_ARGS__), &Instance<&__VA_ARGS__>::body, Instance<&__VA_ARGS__>::parameters},
#define FF_KERNELS_END {nullptr, nullptr, 0}} \
  ;
