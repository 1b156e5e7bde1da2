// SPDX-License-Identifier: Apache-2.0
//
// What every kernel needs: fixed-width types, and one way to name shared memory. The same sources
// go through NVRTC, to PTX, and through a C++ compiler, to the stand-in driver of kernels/emu.
#pragma once

#ifdef KVIST_EMU
#include "emu.h"
#else
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define offsetof(type, field) __INTADDR__(&(((type*)0)->field))
// All shared memory is dynamic, sized by the launcher, so that the emulator can place it.
#define KVIST_SHARED(type, name)                \
  extern __shared__ float4 kvist_shared_mem[]; \
  type* const name = reinterpret_cast<type*>(kvist_shared_mem)
#endif

#define FULL_MASK 0xffffffffu
#define NEG_INF __int_as_float(static_cast<int>(0xff800000u))

template <class T>
__device__ __forceinline__ T* ptr(uint64_t address) {
  return reinterpret_cast<T*>(static_cast<size_t>(address));
}

__device__ __forceinline__ float exact_pow2(int e) {  // 2^e for e in [-126, 127]
  return __int_as_float((e + 127) << 23);
}

__device__ __forceinline__ bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}
