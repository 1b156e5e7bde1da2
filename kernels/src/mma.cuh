// SPDX-License-Identifier: Apache-2.0
//
// The tensor core operation that attend_mma.cu uses, and its twin for the processor.
#pragma once
#include "attend.cuh"

namespace kvist {

__device__ __forceinline__ uint32_t float_to_half(float f) {
#ifdef KVIST_EMU
  return f32_to_f16(f);
#else
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
#endif
}

// c += a b, by one warp: a is 16x16, b 16x8, both binary16; c 16x8 float32. With g = lane / 4 and
// t = lane % 4 a lane holds
//   a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..2t+1)  a[2] (g, 2t+8..2t+9)  a[3] (g+8, 2t+8..2t+9)
//   b[0] (2t..2t+1, g)  b[1] (2t+8..2t+9, g)
//   c[0] (g, 2t)  c[1] (g, 2t+1)  c[2] (g+8, 2t)  c[3] (g+8, 2t+1)
__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef KVIST_EMU
  // Each lane shows its operands as floats; all have arrived before anybody reads.
  float mine[12];
  for (int i = 0; i < 4; i++) {
    mine[2 * i] = f16_to_f32(static_cast<uint16_t>(a[i]));
    mine[2 * i + 1] = f16_to_f32(static_cast<uint16_t>(a[i] >> 16));
  }
  for (int i = 0; i < 2; i++) {
    mine[8 + 2 * i] = f16_to_f32(static_cast<uint16_t>(b[i]));
    mine[9 + 2 * i] = f16_to_f32(static_cast<uint16_t>(b[i] >> 16));
  }
  const void* const* lanes = emu::show(mine);
  const int g = emu::current->lane / 4, t = emu::current->lane % 4;
  float sum[4] = {0, 0, 0, 0};
  for (int at = 0; at < 4; at++) {  // of the lanes that hold row g, and columns 2t and 2t + 1
    const float* x = static_cast<const float*>(lanes[4 * g + at]);
    const float* y = static_cast<const float*>(lanes[8 * t + at]) + 8;
    const float* z = static_cast<const float*>(lanes[8 * t + 4 + at]) + 8;
    for (int i = 0; i < 4; i++) {  // 2 at, 2 at + 1, 2 at + 8, 2 at + 9 of the 16
      const int k = i / 2 * 4 + i % 2;
      sum[0] += x[k] * y[i];
      sum[1] += x[k] * z[i];
      sum[2] += x[k + 2] * y[i];
      sum[3] += x[k + 2] * z[i];
    }
  }
  for (int i = 0; i < 4; i++) c[i] += sum[i];
  __syncwarp();  // before anybody's operands go
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
               "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace kvist
