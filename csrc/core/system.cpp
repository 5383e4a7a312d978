// SPDX-License-Identifier: Apache-2.0
#include "core/system.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

// FF_POSIX: as on a system that has POSIX alone, so that Linux may test it.
#if defined(__linux__) && !defined(FF_POSIX)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#else
#include <link.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ff {

#if defined(__linux__) && !defined(FF_POSIX)

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void sleep_end(std::atomic<uint32_t>& word, int threads) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

#else

namespace {

struct Beds {
  std::mutex mutex;
  std::condition_variable changed;
};

// Words share a few of these, by address; never destroyed, as threads may sleep to the end of the process.
Beds& beds_of(const void* word) {
  constexpr size_t kCount = 64;
  static Beds* const all = new Beds[kCount];
  return all[reinterpret_cast<uintptr_t>(word) / 64 % kCount];
}

}  // namespace

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  Beds& beds = beds_of(&word);
  std::unique_lock<std::mutex> lock(beds.mutex);
  if (word.load() == value) beds.changed.wait(lock);
}

void sleep_end(std::atomic<uint32_t>& word, int) {
  Beds& beds = beds_of(&word);
  // Who is between the comparison and its sleep holds the lock.
  const std::lock_guard<std::mutex> lock(beds.mutex);
  beds.changed.notify_all();
}

#endif

void advise_huge_pages(void* block, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  madvise(block, bytes, MADV_HUGEPAGE);
#else
  (void)block, (void)bytes;
#endif
}

#if defined(__APPLE__)

std::string loaded_library(bool (*wanted)(const char* path)) {
  for (uint32_t i = 0; i < _dyld_image_count(); ++i)
    if (const char* path = _dyld_get_image_name(i); path && wanted(path)) return path;
  return {};
}

#else

namespace {

struct Search {
  bool (*wanted)(const char* path);
  std::string found;
};

int look_at(dl_phdr_info* info, size_t, void* out) {
  Search& search = *static_cast<Search*>(out);
  if (!search.wanted(info->dlpi_name)) return 0;
  search.found = info->dlpi_name;
  return 1;
}

}  // namespace

std::string loaded_library(bool (*wanted)(const char* path)) {
  Search search{wanted, {}};
  dl_iterate_phdr(look_at, &search);
  return search.found;
}

#endif

std::string tile_refusal() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM; the component of a thread's state
  if (!syscall(SYS_arch_prctl, kRequest, kTileData)) return {};
  return std::string("permission for tile registers (arch_prctl: ") + std::strerror(errno) + ")";
#else
  return "permission for tile registers";
#endif
}

unsigned long cpu_bits(int word) {
#if defined(__linux__)
  return getauxval(word == 1 ? AT_HWCAP : AT_HWCAP2);
#else
  (void)word;
  return 0;
#endif
}

}  // namespace ff
