// SPDX-License-Identifier: Apache-2.0
//
// What attend_int8.cuh asks of the hardware: products of 8-bit integers in tensor cores, moves of
// bytes within registers, loads of small matrices from shared memory, and copies to it that run
// beside the arithmetic. Each has an exact twin for the processor in kernels/emu/src/tensor.cc.
#pragma once
#include "portable.cuh"

namespace kvist {

// An address in shared memory: 32 bits, so that it takes one register.
typedef uint32_t Shared;

__device__ __forceinline__ Shared shared_address(const void* p) {
#ifdef KVIST_EMU
  return emu::shared_offset(p);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#endif
}

// Byte i of the result is byte s >> 4i & 7 of b:a. With bit 3 of that nibble it is the byte's sign,
// eight times. __byte_perm clears that bit, so this is the bare instruction.
__device__ __forceinline__ uint32_t prmt(uint32_t a, uint32_t b, uint32_t s) {
#ifdef KVIST_EMU
  return emu::prmt(a, b, s);
#else
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(s));
  return d;
#endif
}

// Bits of a where mask is 1, of b where it is 0, in one instruction.
__device__ __forceinline__ uint32_t select(uint32_t mask, uint32_t a, uint32_t b) {
#ifdef KVIST_EMU
  return (a & mask) | (b & ~mask);
#else
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(d) : "r"(mask), "r"(a), "r"(b));
  return d;
#endif
}

__device__ __forceinline__ uint32_t rotate_right(uint32_t x, int k) {
#ifdef KVIST_EMU
  return k ? x >> k | x << (32 - k) : x;
#else
  return k ? __funnelshift_r(x, x, k) : x;
#endif
}

// 2^x, 0 below the normal numbers.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef KVIST_EMU
  return x < -126 ? 0 : exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// log2(x) of a normal x, or of 0, off by at most 2^-22.
__device__ __forceinline__ float fast_log2(float x) {
#ifdef KVIST_EMU
  return log2f(x);
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// c += a b, by one warp: a is 16x32 of signed bytes (of unsigned ones in mma_u8), b 32x8 of signed
// bytes, c 16x8 of int32. With g = lane / 4 and t = lane % 4 a lane holds, in ascending bytes,
//   a[0] (g, 4t..4t+3)  a[1] (g+8, 4t..4t+3)  a[2] (g, 4t+16..4t+19)  a[3] (g+8, 4t+16..4t+19)
//   b[0] (4t..4t+3, g)  b[1] (4t+16..4t+19, g)
//   c[0] (g, 2t)  c[1] (g, 2t+1)  c[2] (g+8, 2t)  c[3] (g+8, 2t+1)
__device__ __forceinline__ void mma_s8(int c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef KVIST_EMU
  emu::mma_int8(c, a, b, true);
#else
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
               "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_u8(int c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef KVIST_EMU
  emu::mma_int8(c, a, b, false);
#else
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
               "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Loads N matrices of 8 rows of 16 bytes, by one warp: lane 8i + j gives the address of row j of
// matrix i, a multiple of 16. r[i] is word t of row g of matrix i. load_matrices_t takes the rows as
// 8 numbers of 16 bits and gives number g of row 2t, and of row 2t + 1 in the upper half.
template <int N>
__device__ __forceinline__ void load_matrices(uint32_t r[N], Shared row) {
  static_assert(N == 2 || N == 4, "matrices");
#ifdef KVIST_EMU
  emu::ldmatrix(r, N, row, false);
#else
  if (N == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[N - 2]), "=r"(r[N - 1]) : "r"(row) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
        : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
  }
#endif
}

template <int N>
__device__ __forceinline__ void load_matrices_t(uint32_t r[N], Shared row) {
  static_assert(N == 2 || N == 4, "matrices");
#ifdef KVIST_EMU
  emu::ldmatrix(r, N, row, true);
#else
  if (N == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[N - 2]), "=r"(r[N - 1]) : "r"(row) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
        : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
  }
#endif
}

// Copies N bytes, 8 or 16, from global to shared memory, both multiples of N. The bytes are there
// for this thread after copy_wait, and for its warp after a further __syncwarp.
template <int N>
__device__ __forceinline__ void copy_async(Shared to, const void* from) {
  static_assert(N == 8 || N == 16, "bytes");
#ifdef KVIST_EMU
  emu::cp_async(to, from, N);
#else
  if (N == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" :: "r"(to), "l"(from) : "memory");
  }
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() {
#ifdef KVIST_EMU
  emu::cp_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of copies but the last N.
template <int N>
__device__ __forceinline__ void copy_wait() {
#ifdef KVIST_EMU
  emu::cp_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
#endif
}

}  // namespace kvist
