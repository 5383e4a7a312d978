// SPDX-License-Identifier: Apache-2.0
// The names of a params struct's fields. core/bind.h makes the Python type of the struct from them: a field is given by
// its name, and the type stubs (fastfer/_C.pyi) are written from the same lists. Every field is in one of the two
// lists; the compiler counts them, so that none is forgotten.
#pragma once

// Fields that every caller must give.
#define FF_REQUIRED(...)                 \
  template <class Visit>                 \
  constexpr void required(Visit visit) { \
    visit(#__VA_ARGS__)(__VA_ARGS__);    \
  }

// Fields that are zero, null or false where a caller does not give them.
#define FF_OPTIONAL(...)                 \
  template <class Visit>                 \
  constexpr void optional(Visit visit) { \
    visit(#__VA_ARGS__)(__VA_ARGS__);    \
  }
