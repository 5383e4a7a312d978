// SPDX-License-Identifier: Apache-2.0
// What makes a build on any Linux run on glibc 2.28 and later (manylinux_2_28). The linker takes the newest version of
// a symbol that the machine has: pthread_create, say, as of 2.34, when it moved into libc.so.6, though every glibc has
// it under its oldest version, too. cmake/portable.cmake has the linker send every call of these, those of the C++
// library that is linked in as well, to a function here (--wrap), which names the oldest version.
#include <pthread.h>
#include <stddef.h>

#if defined(__aarch64__)
#define FF_OLDEST "GLIBC_2.17"
#else
#define FF_OLDEST "GLIBC_2.2.5"
#endif

// In __libc_single_threaded's place, which came with 2.32: reference counts are atomic always.
extern "C" {
char __libc_single_threaded = 0;
}

#define FF_OLD(result, name, types, arguments)              \
  extern "C" result ff_old_##name types;                    \
  __asm__(".symver ff_old_" #name "," #name "@" FF_OLDEST); \
  extern "C" result __wrap_##name types;                    \
  extern "C" result __wrap_##name types { return ff_old_##name arguments; }

// cmake/portable.cmake reads the names from these rows.
FF_OLD(void*, dlopen, (const char* file, int flags), (file, flags))
FF_OLD(void*, dlsym, (void* library, const char* name), (library, name))
FF_OLD(double, log, (double x), (x))
FF_OLD(int, pthread_create, (pthread_t * thread, const pthread_attr_t* with, void* (*run)(void*), void* data),
       (thread, with, run, data))
FF_OLD(int, pthread_detach, (pthread_t thread), (thread))
FF_OLD(int, pthread_once, (pthread_once_t * once, void (*run)()), (once, run))
FF_OLD(int, __pthread_key_create, (pthread_key_t * key, void (*free)(void*)), (key, free))
