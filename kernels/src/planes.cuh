// SPDX-License-Identifier: Apache-2.0
//
// Bit planes of lm1..lm4 become operands of integer products. PRMT looks 4 codes up at a time in a
// table of 8 bytes, which is two registers: its selectors are the codes, a nibble each, and come from
// words of planes by rotations and bit selections.
//
// Which value stands where in a product is free, as long as both operands agree. So a nibble takes
// the bits of 4 neighbouring values, one value a product.
#pragma once
#include "int8.cuh"
#include "side.cuh"

namespace kvist {

// The table of a format: registers 0 and 1 are its centroids in the order of codes. lm4 has 16: 0
// and 1 are codes 8..15, plus 1, and 2 and 3 are codes 0..7. Its value is the sum of two look-ups, of
// which bit 3 of the code turns one into the sign of its byte: -1 for the negative table, 0 for the
// positive one. lm1 is looked up as 2 bits that are equal.
__device__ __forceinline__ uint32_t table_word(int format, int word, const float* book) {
  uint32_t w = 0;
  for (int i = 0; i < 4; i++) {
    const int at = word * 4 + i;
    int v = 0;
    switch (format) {
      case LM1: v = static_cast<int>(book[book_start(LM1) + (at & 1)]); break;
      case LM2: v = static_cast<int>(book[book_start(LM2) + (at & 3)]); break;
      case LM3: v = static_cast<int>(book[book_start(LM3) + (at & 7)]); break;
      default: v = static_cast<int>(book[book_start(LM4) + (at ^ 8)]) + (at < 8 ? 1 : 0);
    }
    w |= static_cast<uint32_t>(v & 255) << 8 * i;
  }
  return w;
}

// Positions k and k + 1, modulo 4, of every nibble.
__device__ __forceinline__ uint32_t two_of_four(int k) {
  return k == 0 ? 0x33333333u : k == 1 ? 0x66666666u : k == 2 ? 0xccccccccu : 0x99999999u;
}

// One word of each plane, w[0] the highest bit, to values: byte j of b[k][h] is that of bit
// 4(j + 4h) + k. For 4 bits the value is b + n.
template <int BITS>
__device__ __forceinline__ void unpack_planes(const uint32_t table[4], const uint32_t words[BITS],
                                              uint32_t b[4][2], uint32_t n[4][2]) {
  const uint32_t even = 0x55555555u;
  uint32_t w[BITS];
#pragma unroll
  for (int p = 0; p < BITS; p++) w[p] = rotate_right(words[p], (32 - (BITS - 1 - p)) & 31);
  uint32_t x[2];  // the two lowest planes, for even k and for odd: the lower one at k, the other at k + 1
  x[0] = select(even, w[BITS - 1], w[BITS - 2]);
  x[1] = select(even, w[BITS - 2], w[BITS - 1]);
  uint32_t y[2] = {0, 0};
  if (BITS == 3) {
    y[0] = w[0] & even;
    y[1] = w[0] & ~even;
  }
  if (BITS == 4) {
    y[0] = select(even, w[BITS == 4 ? 1 : 0], w[0]);
    y[1] = select(even, w[0], w[BITS == 4 ? 1 : 0]);
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const uint32_t t =
        BITS == 2 ? x[k & 1] & two_of_four(k) : select(two_of_four(k), x[k & 1], y[k & 1]);
    const uint32_t s[2] = {rotate_right(t, k), rotate_right(t, k + 16)};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      b[k][h] = prmt(table[0], table[1], BITS == 4 ? s[h] ^ 0x8888u : s[h]);
      n[k][h] = BITS == 4 ? prmt(table[2], table[3], s[h]) : 0;
    }
  }
}

// The planes of lm1 to lm4 by number of bits.
template <int BITS>
__device__ __forceinline__ void unpack(const uint32_t table[4], const uint32_t words[BITS],
                                       uint32_t b[4][2], uint32_t n[4][2]) {
  if (BITS == 1) {
    const uint32_t twice[2] = {words[0], words[0]};
    unpack_planes<2>(table, twice, b, n);
  } else {
    unpack_planes<BITS == 1 ? 2 : BITS>(table, words, b, n);
  }
}

// Rows of 128 columns, a plane. r[i] is what load_matrices_t gives of rows 8i..8i+7: 16 columns of
// row 8i + 2t, and of row 8i + 2t + 1. Nibble j of u[c] is columns 4c..4c+3 of those in row
// 2t + {0, 8, 1, 9, 16, 24, 17, 25}[j].
__device__ __forceinline__ void nibbles_of_rows(const uint32_t r[4], uint32_t u[4]) {
  const uint32_t low = 0x0f0f0f0fu;
  uint32_t e[2], o[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    e[h] = select(low, r[2 * h], r[2 * h + 1] << 4);
    o[h] = select(low, r[2 * h] >> 4, r[2 * h + 1]);
  }
  u[0] = prmt(e[0], e[1], 0x6420u);
  u[1] = prmt(o[0], o[1], 0x6420u);
  u[2] = prmt(e[0], e[1], 0x7531u);
  u[3] = prmt(o[0], o[1], 0x7531u);
}

// Rows of 64 columns: two lie in the 16 bytes of a row of a matrix, so that half of the lanes have
// even rows, 16 columns each, and half odd ones. Lanes g and g ^ 4 swap: then each has 8 columns of
// both, 16 (g & 3) + 8 (g / 4) and on. Nibble j of u[c] is columns 4c..4c+3 of those in row
// 16 (j / 4) + 4t + j % 4.
__device__ __forceinline__ void nibbles_of_half_rows(const uint32_t r[2], bool upper, uint32_t u[2]) {
  const uint32_t low = 0x0f0f0f0fu;
  const uint32_t keep = prmt(r[0], r[1], upper ? 0x7531u : 0x6420u);
  const uint32_t give = prmt(r[0], r[1], upper ? 0x6420u : 0x7531u);
  const uint32_t got = __shfl_xor_sync(FULL_MASK, give, 16);
  const uint32_t even = upper ? got : keep, odd = upper ? keep : got;
  u[0] = select(low, even, odd << 4);
  u[1] = select(low, even >> 4, odd);
}

}  // namespace kvist
