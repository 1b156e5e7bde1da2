// SPDX-License-Identifier: Apache-2.0
//
// Rows of packed sides meet queries, or weights: 8 values at a time are unpacked once for all
// heads. The code of a format is chosen by a switch that is uniform over a warp.
#pragma once
#include "side.cuh"

namespace kvist {

// Kinds of unpacking; 1..4 are bit planes of that many bits, of lm or tqmse.
enum Kind { K_F32 = 5, K_F16, K_BF16, K_U8, K_Q8_0, K_Q4_0 };

struct View {
  const uint8_t* side;
  const float* book;  // of the format
  int64_t plane;      // bytes of a bit plane
  bool vec;           // rows start on multiples of 8 values
};

__device__ __forceinline__ View view_of(uint64_t side, int f, int rows, int dim, const float* book) {
  return {ptr<const uint8_t>(side), book + (plane_bits(f) ? book_start(f) : 0),
          plane_bytes(rows, dim), dim % 8 == 0};
}

// binary16 to float32 by the hardware, and its twin. Only payloads of NaNs may differ.
__device__ __forceinline__ float half_to_float(uint16_t h) {
#ifdef KVIST_EMU
  return f16_to_f32(h);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
#endif
}

// Centroid k of 8 codes of 4 bits: the offset in bytes is cut out in two operations.
__device__ __forceinline__ float centroid(const float* book, uint32_t codes, int k) {
  const uint32_t offset = (k == 0 ? codes << 2 : codes >> (4 * k - 2)) & 0x3c;
  return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(book) + offset);
}

// Bit i of b goes to bit 4i.
__device__ __forceinline__ uint32_t spread(uint32_t b) {
  b = (b | b << 12) & 0x000f000fu;
  b = (b | b << 6) & 0x03030303u;
  return (b | b << 3) & 0x11111111u;
}

// Values at, at + 1, ... of a side, n of them; the rest of x is 0. They lack row_unit.
template <int KIND>
__device__ __forceinline__ void unpack8(const View& w, int64_t at, int n, float x[8]) {
  if (KIND <= 4) {
    uint32_t codes = 0;
#pragma unroll
    for (int p = 0; p < KIND; p++) {
      codes |= spread(__ldg(w.side + p * w.plane + at / 8)) << (KIND - 1 - p);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = centroid(w.book, codes, i);
  } else if (KIND == K_U8) {
    const uint2 c = __ldg(reinterpret_cast<const uint2*>(w.side + at));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      x[i] = static_cast<float>(static_cast<int>((i < 4 ? c.x : c.y) >> 8 * (i & 3) & 255) - 128);
    }
  } else if (KIND == K_F32) {
    const float* src = reinterpret_cast<const float*>(w.side) + at;
    if (w.vec) {
      const float4 a = __ldg(reinterpret_cast<const float4*>(src));
      const float4 b = __ldg(reinterpret_cast<const float4*>(src) + 1);
      x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
      x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = i < n ? __ldg(src + i) : 0;
    }
  } else if (KIND == K_F16 || KIND == K_BF16) {
    const uint16_t* src = reinterpret_cast<const uint16_t*>(w.side) + at;
    uint32_t h[4] = {0, 0, 0, 0};
    if (w.vec) {
      const uint4 a = __ldg(reinterpret_cast<const uint4*>(src));
      h[0] = a.x, h[1] = a.y, h[2] = a.z, h[3] = a.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (i < n) h[i / 2] |= static_cast<uint32_t>(__ldg(src + i)) << 16 * (i & 1);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint16_t v = static_cast<uint16_t>(h[i / 2] >> 16 * (i & 1));
      x[i] = KIND == K_F16 ? half_to_float(v) : bf16_to_f32(v);
    }
  } else {
    const uint8_t* g = w.side + at / 32 * (KIND == K_Q8_0 ? 34 : 18);
    const float d = half_to_float(__ldg(reinterpret_cast<const uint16_t*>(g)));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int j = static_cast<int>(at & 31) + i;
      x[i] = d * (KIND == K_Q8_0
                      ? static_cast<float>(static_cast<int8_t>(__ldg(g + 2 + j)))
                      : static_cast<float>((__ldg(g + 2 + (j & 15)) >> (j & 16 ? 4 : 0) & 15) - 8));
    }
  }
}

template <int H>
__device__ __forceinline__ void add_dot(const float* q, int stride, const float x[8], float dot[H]) {
#pragma unroll
  for (int h = 0; h < H; h++) {
    const float4 a = reinterpret_cast<const float4*>(q + h * stride)[0];
    const float4 b = reinterpret_cast<const float4*>(q + h * stride)[1];
    dot[h] += a.x * x[0];
    dot[h] += a.y * x[1];
    dot[h] += a.z * x[2];
    dot[h] += a.w * x[3];
    dot[h] += b.x * x[4];
    dot[h] += b.y * x[5];
    dot[h] += b.z * x[6];
    dot[h] += b.w * x[7];
  }
}

template <int H, int KIND>
__device__ __forceinline__ void dot_row_kind(const View& w, int dim, int r, const float* q,
                                             int stride, float dot[H]) {
  const int64_t at = static_cast<int64_t>(r) * dim;
  float x[8];
  if (KIND <= 4 && dim % 32 == 0) {  // rows are whole words of every plane
#pragma unroll 1
    for (int i = 0; i < dim; i += 32) {
      uint32_t word[4];
#pragma unroll
      for (int p = 0; p < KIND && p < 4; p++) {
        word[p] = __ldg(reinterpret_cast<const uint32_t*>(w.side + p * w.plane + (at + i) / 8));
      }
#pragma unroll
      for (int s = 0; s < 4; s++) {
        uint32_t codes = 0;
#pragma unroll
        for (int p = 0; p < KIND && p < 4; p++) {
          codes |= spread(word[p] >> 8 * s & 255) << (KIND - 1 - p);
        }
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] = centroid(w.book, codes, k);
        add_dot<H>(q + i + 8 * s, stride, x, dot);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < dim; i += 8) {
    unpack8<KIND>(w, at + i, dim - i, x);
    add_dot<H>(q + i, stride, x, dot);
  }
}

// dot[h] = <q_h, row r>, without the row's unit. q: [H, stride] in shared memory, zero beyond dim.
template <int H>
__device__ __forceinline__ void dot_row(const View& w, int f, int dim, int r, const float* q,
                                        int stride, float dot[H]) {
#pragma unroll
  for (int h = 0; h < H; h++) dot[h] = 0;
  switch (f) {
    case F32: return dot_row_kind<H, K_F32>(w, dim, r, q, stride, dot);
    case F16: return dot_row_kind<H, K_F16>(w, dim, r, q, stride, dot);
    case BF16: return dot_row_kind<H, K_BF16>(w, dim, r, q, stride, dot);
    case U8: return dot_row_kind<H, K_U8>(w, dim, r, q, stride, dot);
    case GGML_Q8_0: return dot_row_kind<H, K_Q8_0>(w, dim, r, q, stride, dot);
    case GGML_Q4_0: return dot_row_kind<H, K_Q4_0>(w, dim, r, q, stride, dot);
  }
  switch (plane_bits(f)) {
    case 1: return dot_row_kind<H, 1>(w, dim, r, q, stride, dot);
    case 2: return dot_row_kind<H, 2>(w, dim, r, q, stride, dot);
    case 3: return dot_row_kind<H, 3>(w, dim, r, q, stride, dot);
    case 4: return dot_row_kind<H, 4>(w, dim, r, q, stride, dot);
  }
}

// acc[h] += weight[h][row] * 8 values of rows r0 + from, + step, ... below r0 + n. A row whose
// weight is 0 is left out for that head, whatever it holds. weight: [H, TILE_ROWS], from r0 on.
template <int H, int KIND>
__device__ __forceinline__ void add_rows_kind(const View& w, int dim, int i0, int r0, int n,
                                              int from, int step, const float* weight,
                                              float acc[H][8]) {
#pragma unroll 1
  for (int r = from; r < n; r += step) {
    float x[8];
    unpack8<KIND>(w, static_cast<int64_t>(r0 + r) * dim + i0, dim - i0, x);
#pragma unroll
    for (int h = 0; h < H; h++) {
      const float p = weight[h * TILE_ROWS + r];
      if (KIND <= 4 || KIND == K_U8 || p != 0) {  // codes are finite: 0 times one is 0
#pragma unroll
        for (int i = 0; i < 8; i++) acc[h][i] += p * x[i];
      }
    }
  }
}

template <int H>
__device__ __forceinline__ void add_rows(const View& w, int f, int dim, int i0, int r0, int n,
                                         int from, int step, const float* weight, float acc[H][8]) {
  switch (f) {
    case F32: return add_rows_kind<H, K_F32>(w, dim, i0, r0, n, from, step, weight, acc);
    case F16: return add_rows_kind<H, K_F16>(w, dim, i0, r0, n, from, step, weight, acc);
    case BF16: return add_rows_kind<H, K_BF16>(w, dim, i0, r0, n, from, step, weight, acc);
    case U8: return add_rows_kind<H, K_U8>(w, dim, i0, r0, n, from, step, weight, acc);
    case GGML_Q8_0: return add_rows_kind<H, K_Q8_0>(w, dim, i0, r0, n, from, step, weight, acc);
    case GGML_Q4_0: return add_rows_kind<H, K_Q4_0>(w, dim, i0, r0, n, from, step, weight, acc);
  }
  switch (plane_bits(f)) {
    case 1: return add_rows_kind<H, 1>(w, dim, i0, r0, n, from, step, weight, acc);
    case 2: return add_rows_kind<H, 2>(w, dim, i0, r0, n, from, step, weight, acc);
    case 3: return add_rows_kind<H, 3>(w, dim, i0, r0, n, from, step, weight, acc);
    case 4: return add_rows_kind<H, 4>(w, dim, i0, r0, n, from, step, weight, acc);
  }
}

// Turns q by RoPE: pair i of each of n heads by the angle whose sine and cosine turn [2, pairs]
// holds. q: [n, stride]. Threads tid of threads share the work; the caller synchronises.
template <class Params>
__device__ __forceinline__ void turn_queries(const Params& p, float* q, int n, int stride,
                                             const float* turn, int tid, int threads) {
  for (int k = tid; k < n * p.pairs; k += threads) {
    const int i = k % p.pairs;
    float* const v = q + k / p.pairs * stride;
    const int a = p.interleaved ? 2 * i : i, b = p.interleaved ? 2 * i + 1 : i + p.pairs;
    const float x = v[a], y = v[b], sin = turn[i], cos = turn[p.pairs + i];
    v[a] = x * cos - y * sin;
    v[b] = x * sin + y * cos;
  }
}

// Brings q through a metric, A^-T q: [n, stride], from plain, which holds the same values. Threads
// tid of threads share the work; the caller synchronises.
template <class Params>
__device__ __forceinline__ void through_metric(const Params& p, const Variant& v, float* q,
                                               const float* plain, int n, int stride, int tid,
                                               int threads) {
  const float* const m = ptr<const float>(p.metrics) + v.metric;
  for (int k = tid; k < n * p.head_dim; k += threads) {
    const int h = k / p.head_dim, i = k % p.head_dim;
    if (!v.matrix) {
      q[h * stride + i] = plain[h * stride + i] / m[i];
      continue;
    }
    float s = 0;
    for (int j = 0; j < p.head_dim; j++) s += m[j * p.head_dim + i] * plain[h * stride + j];
    q[h * stride + i] = s;
  }
}

// The sum of a value over a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(FULL_MASK, x, o);
  return x;
}

// |q|^2, by one warp.
__device__ __forceinline__ float energy_of(const float* q, int dim, int lane) {
  float e = 0;
  for (int d = lane; d < dim; d += 32) e += q[d] * q[d];
  return warp_sum(e);
}

// <q, mean> with a mean in binary16, by one warp. The whole warp must call it.
__device__ __forceinline__ float dot_mean(const float* q, uint64_t mean, int dim, int lane) {
  const uint16_t* const m = ptr<const uint16_t>(mean);
  float s = 0;
  for (int d = lane; d < dim; d += 32) s += q[d] * half_to_float(m[d]);
  return warp_sum(s);
}

// What a row adds to the score of every head, and what |q|^2 is multiplied with and subtracted.
struct RowTerms {
  int64_t pos;
  float unit, add, noise;
  bool hidden;
};

template <class Params>
__device__ __forceinline__ RowTerms row_terms(const Params& p, const BlockDesc& b, int r) {
  RowTerms t;
  const uint8_t* k = ptr<const uint8_t>(b.k);
  const float s = row_scale(k, b.k_format, b.k_form, b.rows, p.head_dim, r);
  t.unit = !is_rotated(b.k_format) ? 1.0f : is_turbo(b.k_format) ? s : s * (1.0f / 64);
  const int64_t place = b.pos ? static_cast<int64_t>(ptr<const uint16_t>(b.pos)[r])
                              : static_cast<int64_t>(r) * b.stride;
  t.pos = b.base + place;
  t.hidden = b.limit > 0 && place >= b.limit;
  t.add = 0;
  const int count = b.count ? ptr<const uint16_t>(b.count)[r] : b.tokens;
  if (count != 1) t.add = logf(static_cast<float>(count));
  if (b.bias) t.add += ptr<const float>(b.bias)[r];
  t.noise = b.noise != 0 ? 0.5f * (p.scale * p.scale) * b.noise * (s * s) : 0;
  return t;
}

// The score of a row, -Inf where the query does not see it. shift is what a mean of K adds to dot.
template <class Params>
__device__ __forceinline__ float row_score(const Params& p, const RowTerms& t, float dot,
                                           float shift, float energy, int64_t query) {
  if (t.hidden) return NEG_INF;
  if (p.pos) {
    const int64_t d = ptr<const int64_t>(p.pos)[query] - t.pos;
    if (d < 0 || (p.window > 0 && d >= p.window)) return NEG_INF;
  }
  float x = dot * t.unit * p.scale + shift * p.scale;
  if (p.softcap > 0) x = p.softcap * tanhf(x / p.softcap);
  return x + (t.add - energy * t.noise);
}

}  // namespace kvist
