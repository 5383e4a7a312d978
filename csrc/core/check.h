// SPDX-License-Identifier: Apache-2.0
// Assertions of the kernels: arguments are checked once, in Python; these hold on in debug and sanitizer builds.
#pragma once
#include <assert.h>

#define FF_ASSERT(condition) assert(condition)
