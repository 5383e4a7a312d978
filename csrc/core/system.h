// SPDX-License-Identifier: Apache-2.0
// What each operating system does in a way of its own: sleeping on a word, large pages, which libraries are
// loaded, what it says of the CPU.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ff {

// Sleeps while `word` has this value, until sleep_end; may return early, so the caller looks again. The value is
// compared and the sleep begun as one: a sleep_end after a change of the word is never missed.
void sleep_while(std::atomic<uint32_t>& word, uint32_t value);
// Ends the sleep of at least `threads` of the threads that sleep on the word.
void sleep_end(std::atomic<uint32_t>& word, int threads);

// Asks for pages of 2 MB behind a block; a system that has none, or hands them out by itself, does nothing.
void advise_huge_pages(void* block, size_t bytes);

// The path of the first loaded library for whose path `wanted` is true, or "".
std::string loaded_library(bool (*wanted)(const char* path));

// Asks for the use of tile registers by this process: "" where it has it, else why not. Linux gives them to who asks:
// its signal frames are 8 KiB longer from then on.
std::string tile_refusal();

// What the system says that the CPU has, word 1 or 2 of bits (AT_HWCAP, AT_HWCAP2); 0 where it does not say.
unsigned long cpu_bits(int word);

}  // namespace ff
