// SPDX-License-Identifier: Apache-2.0
//
// CUDA C++ for a C++ compiler: the part of the language and of its built-in functions that the
// kernels use. A CUDA thread is a fiber; see fiber.cc. Only for the stand-in driver, for tests.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensor.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
using std::max;
using std::min;

namespace emu {

enum Op : uint8_t { SHFL_XOR, BALLOT, ALL, ANY, SYNCWARP };

// One CUDA thread.
struct Fiber {
  void* sp;
  uint3 tid;
  unsigned lane, warp;
  enum { READY, WARP_WAIT, BLOCK_WAIT, DONE } state;
  Op op;           // collective it waits in
  uint32_t mask;
  uint64_t value, result;
  int arg;
  int line;        // barrier it waits at
};

struct Launch {
  uint3 block;
  dim3 grid, threads;
};

extern Fiber* current;
extern Launch launch;
extern unsigned char shared[];  // dynamic shared memory of the thread block

uint64_t warp_collective(Op op, uint32_t mask, uint64_t value, int arg);
void block_barrier(int line);

// Shows something of this thread to its warp, and returns that of all its lanes when it is there. It
// must stay until the warp has met again.
const void* const* show(const void* mine);

template <class T>
inline uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t b = 0;
  memcpy(&b, &v, sizeof v);
  return b;
}
template <class T>
inline T from_bits(uint64_t b) {
  T v;
  memcpy(&v, &b, sizeof v);
  return v;
}

// Registers a kernel that takes one struct by value.
void register_kernel(const char* name, void (*call)(const void* params), size_t size);
template <class P, void (*F)(P)>
struct Kernel {
  explicit Kernel(const char* name) {
    register_kernel(name, [](const void* params) {
      P p;
      memcpy(&p, params, sizeof p);
      F(p);
    }, sizeof(P));
  }
};

}  // namespace emu

#define KVIST_REGISTER(P, name) static emu::Kernel<P, name> kvist_register_##name(#name);
#define KVIST_SHARED(type, name) type* const name = reinterpret_cast<type*>(emu::shared)

#define threadIdx (emu::current->tid)
#define blockIdx (emu::launch.block)
#define blockDim (emu::launch.threads)
#define gridDim (emu::launch.grid)

static inline void __syncthreads(int line = __builtin_LINE()) { emu::block_barrier(line); }
static inline void __syncwarp(uint32_t m = 0xffffffffu) {
  emu::warp_collective(emu::SYNCWARP, m, 0, 0);
}
template <class T>
static inline T __shfl_xor_sync(uint32_t m, T v, int x) {
  return emu::from_bits<T>(emu::warp_collective(emu::SHFL_XOR, m, emu::to_bits(v), x));
}
static inline uint32_t __ballot_sync(uint32_t m, int p) {
  return static_cast<uint32_t>(emu::warp_collective(emu::BALLOT, m, p != 0, 0));
}
static inline int __any_sync(uint32_t m, int p) {
  return static_cast<int>(emu::warp_collective(emu::ANY, m, p != 0, 0));
}
static inline int __all_sync(uint32_t m, int p) {
  return static_cast<int>(emu::warp_collective(emu::ALL, m, p != 0, 0));
}

// Thread blocks run one after another and fibers do not run at once: plain code is atomic.
template <class T>
static inline T atomicMin(T* p, T v) {
  const T old = *p;
  *p = std::min(old, v);
  return old;
}

template <class T>
static inline T __ldg(const T* p) { return *p; }
static inline uint32_t __float_as_uint(float f) { return emu::from_bits<uint32_t>(emu::to_bits(f)); }
static inline float __uint_as_float(uint32_t u) { return emu::from_bits<float>(u); }
static inline float __int_as_float(int i) {
  return emu::from_bits<float>(static_cast<uint32_t>(i));
}
// Compiled with -ffp-contract=off: each of these rounds once.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
