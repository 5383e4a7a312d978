// SPDX-License-Identifier: Apache-2.0
// Plans of random networks against float64: random_engine [networks] [first seed] [instruction set]. A network that
// fails is found again by its number as the first seed.
#include <csignal>
#include <cstdlib>

#include "engine_random.h"

namespace {

uint64_t running = 0;
struct sigaction before;

// A step that reads or writes beside its buffers ends here: says in which network, then leaves the rest to who was
// first.
void crashed(int) {
  char text[80];
  const int size =
      std::snprintf(text, sizeof text, "CRASHED in random network %llu\n", static_cast<unsigned long long>(running));
  if (write(STDOUT_FILENO, text, static_cast<size_t>(size)) < 0) std::abort();
  sigaction(SIGSEGV, &before, nullptr);
}

}  // namespace

int main(int count, char** arguments) {
  const long networks = count > 1 ? std::atol(arguments[1]) : 20000;
  const uint64_t first = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  if (count > 3 && !set_isa(arguments[3])) {
    std::printf("unknown instruction set %s\n", arguments[3]);
    return 2;
  }
  struct sigaction action = {};
  action.sa_handler = crashed;
  sigaction(SIGSEGV, &action, &before);
  double worst = 0;
  const int failures = random_networks(active_isa(), first, networks, &worst, &running);
  std::printf("random networks %llu to %llu on %s: %d failures, the largest error %.2f of what is allowed\n",
              static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first) + static_cast<unsigned long long>(networks) - 1,
              isa_name(active_isa()), failures, worst);
  return failures ? 1 : 0;
}
