// SPDX-License-Identifier: Apache-2.0
//
// Packed sides as package quant lays them out: codebooks, row scales, values, and the randomised
// Hadamard rotation. Everything that decides bytes is written with one rounding an operation, in
// the order of package quant; codec.cu is compiled without contraction.
#pragma once
#include "params.cuh"

// Centroids by code. lm<b> starts at 2^b - 2, tqmse<b> at 30 + 2^b - 2.
#define BOOK_FLOATS 60
__constant__ float kvist_book[BOOK_FLOATS] = {
    -64, 64,
    -121, -37, 37, 121,
    -88, -55, -31, -10, 10, 31, 55, 88,
    -109, -81, -63, -49, -37, -26, -15, -5, 5, 15, 26, 37, 49, 63, 81, 109,
    -0.79788456f, 0.79788456f,
    -1.5104176f, -0.45278003f, 0.45278003f, 1.5104176f,
    -2.1519457f, -1.3439093f, -0.75600528f, -0.24509418f,
    0.24509418f, 0.75600528f, 1.3439093f, 2.1519457f,
    -2.7325896f, -2.069017f, -1.6180464f, -1.2562312f, -0.94234046f, -0.65675911f, -0.3880483f,
    -0.12839503f, 0.12839503f, 0.3880483f, 0.65675911f, 0.94234046f, 1.2562312f, 1.6180464f,
    2.069017f, 2.7325896f};

// 2^(-i/16), and 2^(-(i+1/2)/16).
__constant__ float kvist_log8_frac[16] = {
    1, 0.9576032807f, 0.9170040432f, 0.8781260802f, 0.8408964153f, 0.805245166f, 0.7711054127f,
    0.738413073f, 0.7071067812f, 0.6771277735f, 0.6484197773f, 0.620928906f, 0.5946035575f,
    0.5693943174f, 0.5452538663f, 0.5221368912f};
__constant__ float kvist_log8_mid[16] = {
    0.9785720621f, 0.9370838171f, 0.8973545375f, 0.8593096491f, 0.8228777391f, 0.7879904226f,
    0.7545822138f, 0.7225904035f, 0.691954941f, 0.6626183216f, 0.6345254786f, 0.60762368f,
    0.5818624294f, 0.5571933713f, 0.5335702003f, 0.5109485743f};

__device__ __forceinline__ bool is_nested(int f) { return f >= LM1 && f <= LM4; }
__device__ __forceinline__ bool is_turbo(int f) { return f >= TQMSE1 && f <= TQMSE4; }
__device__ __forceinline__ bool is_exact(int f) { return f >= F32 && f <= BF16; }
__device__ __forceinline__ bool is_rotated(int f) {
  return f == U8 || is_nested(f) || is_turbo(f);
}
__device__ __forceinline__ int plane_bits(int f) {
  return is_nested(f) ? f - LM1 + 1 : is_turbo(f) ? f - TQMSE1 + 1 : 0;
}
__device__ __forceinline__ int book_start(int f) {
  return (is_turbo(f) ? 30 : 0) + (1 << plane_bits(f)) - 2;
}

// Bytes of a bit plane, padding included.
__device__ __forceinline__ int64_t plane_bytes(int64_t rows, int64_t dim) {
  return (rows * (dim / 8) + 7) / 8 * 8;
}

// Bytes before the scales of u8, lm and tqmse.
__device__ __forceinline__ int64_t code_bytes(int f, int64_t rows, int64_t dim) {
  return f == U8 ? (rows * dim + 7) / 8 * 8 : plane_bits(f) * plane_bytes(rows, dim);
}

__device__ __forceinline__ float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exp = h >> 10 & 0x1f, man = h & 0x3ff;
  if (exp == 0x1f) return __uint_as_float(sign | 0x7f800000u | man << 13);
  if (exp != 0) return __uint_as_float(sign | (exp + 112) << 23 | man << 13);
  const float v = static_cast<float>(man) * (1.0f / (1 << 24));  // exact
  return __uint_as_float(__float_as_uint(v) | sign);
}

__device__ __forceinline__ uint16_t f32_to_f16(float f) {
  uint32_t b = __float_as_uint(f);
  const uint16_t sign = b >> 16 & 0x8000;
  b &= 0x7fffffff;
  if (b > 0x7f800000) {
    const uint16_t m = b >> 13 & 0x3ff;
    return sign | 0x7c00 | (m ? m : 0x200);
  }
  if (b >= 0x477ff000) return sign | 0x7c00;
  if (b < 0x38800000) {
    const float v = __fadd_rn(__uint_as_float(b), 0.5f);
    return sign | static_cast<uint16_t>(__float_as_uint(v) - 0x3f000000);
  }
  b += 0xfff + (b >> 13 & 1);
  return sign | static_cast<uint16_t>((b - 0x38000000) >> 13);
}

__device__ __forceinline__ float bf16_to_f32(uint16_t h) {
  return __uint_as_float(static_cast<uint32_t>(h) << 16);
}

// Base 2 logarithmic scale k below base; 255 is zero.
__device__ __forceinline__ float log8_scale(float base, int k) {
  if (k == 255) return 0;
  return __fmul_rn(__fmul_rn(base, kvist_log8_frac[k & 15]), exact_pow2(-(k >> 4)));
}

// The stored row scale, as quant.RowScales gives it. 0 for formats without.
__device__ __forceinline__ float row_scale(const uint8_t* side, int f, int form, int rows, int dim,
                                           int r) {
  if (!is_rotated(f)) return 0;
  const uint8_t* tail = side + code_bytes(f, rows, dim);
  if (form == SCALE_LOG8) {
    return log8_scale(*reinterpret_cast<const float*>(tail), tail[4 + r]);
  }
  const float s = f16_to_f32(reinterpret_cast<const uint16_t*>(tail)[r]);
  return is_turbo(f) ? __fdiv_rn(s, __fsqrt_rn(static_cast<float>(dim))) : s;
}

// What a stored integer or centroid is multiplied with: 1 where the value is complete.
__device__ __forceinline__ float row_unit(const uint8_t* side, int f, int form, int rows, int dim,
                                          int r) {
  if (!is_rotated(f)) return 1;
  const float s = row_scale(side, f, form, rows, dim, r);
  return is_turbo(f) ? s : __fmul_rn(s, 1.0f / 64);
}

// Value i of row r before it is multiplied with row_unit. book holds kvist_book.
__device__ __forceinline__ float raw_value(const uint8_t* side, int f, int rows, int dim, int r,
                                           int i, const float* book) {
  const int64_t at = static_cast<int64_t>(r) * dim + i;
  switch (f) {
    case F32: return reinterpret_cast<const float*>(side)[at];
    case F16: return f16_to_f32(reinterpret_cast<const uint16_t*>(side)[at]);
    case BF16: return bf16_to_f32(reinterpret_cast<const uint16_t*>(side)[at]);
    case U8: return static_cast<float>(static_cast<int>(side[at]) - 128);
    case GGML_Q8_0: {
      const uint8_t* g = side + at / 32 * 34;
      const float d = f16_to_f32(*reinterpret_cast<const uint16_t*>(g));
      return __fmul_rn(static_cast<float>(static_cast<int8_t>(g[2 + (i & 31)])), d);
    }
    case GGML_Q4_0: {
      const uint8_t* g = side + at / 32 * 18;
      const float d = f16_to_f32(*reinterpret_cast<const uint16_t*>(g));
      const int code = g[2 + (i & 15)] >> ((i & 16) ? 4 : 0) & 15;
      return __fmul_rn(static_cast<float>(code - 8), d);
    }
  }
  const int64_t plane = plane_bytes(rows, dim);
  const uint8_t* byte = side + at / 8;
  int code = 0;
  for (int p = 0; p < plane_bits(f); p++) code = code << 1 | (byte[p * plane] >> (i & 7) & 1);
  return book[book_start(f) + code];
}

// Output n of SplitMix64 started at seed.
__device__ __forceinline__ uint64_t split_mix64(uint64_t seed, uint64_t n) {
  uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

// Walsh-Hadamard butterflies of v [n], by one warp; strides ascend, as the format demands.
__device__ __forceinline__ void butterflies(float* v, int n, int lane) {
  for (int h = 1; h < n; h *= 2) {
    for (int p = lane; p < n / 2; p += 32) {
      const int i = (p & ~(h - 1)) << 1 | (p & (h - 1));
      const float a = v[i], b = v[i + h];
      v[i] = __fadd_rn(a, b);
      v[i + h] = __fsub_rn(a, b);
    }
    __syncwarp();
  }
}

// Flips the signs that words word0... of the seed's sequence say.
__device__ __forceinline__ void flip(float* v, int n, uint64_t seed, int word0, int lane) {
  uint64_t bits = 0;
  int have = -1;
  for (int i = lane; i < n; i += 32) {
    if (i / 64 != have) {
      have = i / 64;
      bits = split_mix64(seed, word0 + have);
    }
    if (bits >> (i & 63) & 1) v[i] = -v[i];
  }
  __syncwarp();
}

// Rotates v [dim] in place, by one warp: quant.Rotation.Forward, or Inverse. v in shared memory;
// the warp must have met at a barrier since it was written.
__device__ __forceinline__ void rotate(float* v, int dim, uint64_t seed, bool inverse, int lane) {
  int word = 0;
  for (int start = 0; start < dim;) {
    int n = 8;
    while (n * 2 <= dim - start) n *= 2;
    if (!inverse) flip(v + start, n, seed, word, lane);
    butterflies(v + start, n, lane);
    // 1/sqrt(n) as float32(1/sqrt(float64)): the correctly rounded value, exact for even powers.
    const float norm = static_cast<float>(1.0 / sqrt(static_cast<double>(n)));
    for (int i = lane; i < n; i += 32) v[start + i] = __fmul_rn(v[start + i], norm);
    __syncwarp();
    if (inverse) flip(v + start, n, seed, word, lane);
    word += (n + 63) / 64;
    start += n;
  }
}
