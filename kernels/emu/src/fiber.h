// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "emu.h"

namespace emu {

struct KernelEntry {
  std::string name;
  void (*call)(const void* params);
  size_t size;  // of the parameter struct
};

std::vector<KernelEntry>& kernels();

// Why the last kernel failed.
enum Fault { NO_FAULT = 0, ILLEGAL_ADDRESS = 1, TRAP = 2, MISALIGNED = 3 };

// Runs a kernel to its end. seed != 0 shuffles the order in which threads run. why gets the cause.
Fault run(const KernelEntry& k, dim3 grid, dim3 threads, const void* params, size_t shared_bytes,
          unsigned seed, std::string* why);

// Ends the running kernel with a cause.
[[noreturn]] void trap(const char* why);

// Of the running launch.
unsigned schedule_seed();
size_t shared_size();

constexpr size_t max_shared = 227 << 10;

}  // namespace emu
