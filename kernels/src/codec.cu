// SPDX-License-Identifier: Apache-2.0
//
// Encode, decode and demote: packed bytes and decoded floats are those of package quant, bit by
// bit. Compiled without contraction of products and sums; every sum has its written order.
//
// A warp works on a row, in shared memory of its own; a launch holds the rows of many jobs of any
// codings and dims, which are told apart at run time: a job is too small to be worth a launch.
#include "side.cuh"

namespace {

struct Row {
  CodecJob job;
  int r;     // row of the job
  int lane;
  float* y;  // [dim], shared, of this warp
  float* t;  // [dim]
};

// Finds the warp's row. false: there is none.
__device__ __forceinline__ bool find_row(const CodecParams& p, float* shared, Row* w) {
  const int warp = threadIdx.x / 32;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
  if (item >= p.rows) return false;
  const CodecJob* jobs = ptr<const CodecJob>(p.jobs);
  int lo = 0, hi = p.n_jobs;  // the last job that starts at or before item
  while (hi - lo > 1) {
    const int mid = (lo + hi) / 2;
    if (jobs[mid].first <= item) lo = mid; else hi = mid;
  }
  w->job = jobs[lo];
  w->r = static_cast<int>(item - w->job.first);
  w->lane = threadIdx.x & 31;
  w->y = shared + static_cast<size_t>(warp) * p.shared;
  w->t = w->y + w->job.dim;
  return true;
}

__device__ __forceinline__ float warp_max(float v) {
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_MASK, v, o));
  return v;
}

__device__ __forceinline__ int64_t warp_sum(int64_t v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(FULL_MASK, v, o);
  return v;
}

// The tree sum of the formats: x[i] += x[i+h] for h = P/2 ... 1. Destroys x [n].
__device__ __forceinline__ float tree_sum(float* x, int n, int lane) {
  __syncwarp();
  int h = 1;
  while (h < n) h *= 2;
  for (h /= 2; h > 0; h /= 2) {
    for (int i = lane; i < h && i + h < n; i += 32) x[i] = __fadd_rn(x[i], x[i + h]);
    __syncwarp();
  }
  const float sum = x[0];
  __syncwarp();
  return sum;
}

__device__ __forceinline__ uint16_t f32_to_bf16(float f) {
  const uint32_t b = __float_as_uint(f);
  if ((b & 0x7fffffff) > 0x7f800000) {
    const uint16_t h = b >> 16;
    return h & 0x7f ? h : h | 0x40;
  }
  return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}

__device__ __forceinline__ const uint8_t* source_row(const Row& w) {
  const int64_t at = w.job.index ? ptr<const int32_t>(w.job.index)[w.r] : w.r;
  return ptr<const uint8_t>(w.job.src) + at * w.job.stride;
}

__device__ __forceinline__ float source_value(const uint8_t* row, int dtype, int i) {
  if (dtype == DT_F32) return reinterpret_cast<const float*>(row)[i];
  const uint16_t h = reinterpret_cast<const uint16_t*>(row)[i];
  return dtype == DT_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

__device__ __forceinline__ void fail(const Row& w, int which) {
  if (w.lane == 0) atomicMin(ptr<uint32_t>(w.job.status) + which, static_cast<uint32_t>(w.r));
}

// f32, f16 and bf16: conversion, or the same bits where source and destination have one type.
__device__ __forceinline__ void encode_exact(const Row& w) {
  const CodecJob& j = w.job;
  const uint8_t* src = source_row(w);
  const int64_t at = static_cast<int64_t>(w.r) * j.dim;
  bool bad = false;
  for (int i = w.lane; i < j.dim; i += 32) {
    if (j.format == F32) {
      ptr<uint32_t>(j.dst)[at + i] = j.dtype == DT_F32
                                         ? reinterpret_cast<const uint32_t*>(src)[i]
                                         : __float_as_uint(source_value(src, j.dtype, i));
      continue;
    }
    uint16_t h;
    if (j.format - F32 == j.dtype - DT_F32) {
      h = reinterpret_cast<const uint16_t*>(src)[i];
    } else {
      const float v = source_value(src, j.dtype, i);
      h = j.format == F16 ? f32_to_f16(v) : f32_to_bf16(v);
      bad |= (h & 0x7fff) == (j.format == F16 ? 0x7c00 : 0x7f80) && is_finite(v);
    }
    ptr<uint16_t>(j.dst)[at + i] = h;
  }
  if (__any_sync(FULL_MASK, bad)) fail(w, 0);
}

// One group of 32 values a lane: ggml's q8_0 and q4_0, for exchange.
__device__ __forceinline__ void encode_ggml(const Row& w) {
  const CodecJob& j = w.job;
  const uint8_t* src = source_row(w);
  const bool q8 = j.format == GGML_Q8_0;
  const int bytes = q8 ? 34 : 18, groups = j.dim / 32;
  bool bad = false;
  for (int g = w.lane; g < groups; g += 32) {
    uint8_t* dst = ptr<uint8_t>(j.dst) + (static_cast<int64_t>(w.r) * groups + g) * bytes;
    float top = 0, peak = 0;
    for (int i = 0; i < 32; i++) {
      const float v = source_value(src, j.dtype, g * 32 + i);
      bad |= !is_finite(v);
      if (top < fabsf(v)) {
        top = fabsf(v);
        peak = v;
      }
    }
    const float d = q8 ? __fdiv_rn(top, 127) : __fdiv_rn(peak, -8);
    const uint16_t h = f32_to_f16(d);
    bad |= (h & 0x7c00) == 0x7c00;
    *reinterpret_cast<uint16_t*>(dst) = h;
    float id = d == 0 ? 0 : __fdiv_rn(1, d);
    if (!is_finite(id)) id = 0;
    for (int i = 0; i < (q8 ? 32 : 16); i++) {
      const float a = __fmul_rn(source_value(src, j.dtype, g * 32 + i), id);
      if (q8) {
        dst[2 + i] = static_cast<uint8_t>(static_cast<int>(roundf(a)));
        continue;
      }
      const float b = __fmul_rn(source_value(src, j.dtype, g * 32 + 16 + i), id);
      const int lo = min(15, static_cast<int>(__fadd_rn(a, 8.5f)));
      const int hi = min(15, static_cast<int>(__fadd_rn(b, 8.5f)));
      dst[2 + i] = static_cast<uint8_t>(lo | hi << 4);
    }
  }
  if (__any_sync(FULL_MASK, bad)) fail(w, 0);
}

// Loads the row to y, scaled by a power of two that puts its largest magnitude into [1, 2), and
// rotates it. Returns the exponent that undoes the scaling, or -1000 for a row out of range.
__device__ __forceinline__ int load_rotated(const Row& w) {
  const CodecJob& j = w.job;
  const uint8_t* src = source_row(w);
  float peak = 0;
  bool bad = false;
  for (int i = w.lane; i < j.dim; i += 32) {
    const float v = source_value(src, j.dtype, i);
    bad |= !is_finite(v);
    peak = fmaxf(peak, fabsf(v));
    w.y[i] = v;
  }
  peak = warp_max(peak);
  if (__any_sync(FULL_MASK, bad) || peak > exact_pow2(111)) return -1000;
  int exp = 0;
  if (peak > 0) {  // a subnormal has the exponent field 0, and is clamped either way
    exp = max(static_cast<int>(__float_as_uint(peak) >> 23) - 127, -120);
  }
  const float f = exact_pow2(-exp);
  for (int i = w.lane; i < j.dim; i += 32) w.y[i] = __fmul_rn(w.y[i], f);
  __syncwarp();
  rotate(w.y, j.dim, j.seed, false, w.lane);
  return exp;
}

// Positive thresholds in units of the row's root mean square: of lm4, of which lm1..lm3 take
// every 8th, 4th and 2nd; then of tqmse1..tqmse4.
__constant__ float kvist_nested_thresholds[8] = {
    0, 0.24765398f, 0.50054973f, 0.76546286f, 1.0499573f, 1.3703201f, 1.7479275f, 2.319689f};
__constant__ float kvist_lloyd_thresholds[15] = {
    0, 0, 0.9815988f, 0, 0.50054973f, 1.0499573f, 1.7479275f, 0, 0.25822166f, 0.522404f,
    0.79954979f, 1.0992858f, 1.4371388f, 1.8435318f, 2.4008034f};

__device__ __forceinline__ float threshold(int f, int half, int k) {
  return is_nested(f) ? kvist_nested_thresholds[k * (8 / half)]
                      : kvist_lloyd_thresholds[half - 1 + k];
}

__device__ __forceinline__ float rule_scale(int rule, float xx, float xc, float cc) {
  const float s = rule == LENGTH_KEEPING  ? __fsqrt_rn(__fdiv_rn(xx, cc))
                  : rule == INNER_PRODUCT ? __fdiv_rn(xx, xc)
                                          : __fdiv_rn(xc, cc);
  return __fmul_rn(s, 64);  // exact
}

// lm1..lm4 and tqmse1..tqmse4: writes the codes, and the scale to scratch. Lanes write whole
// bytes of the planes, 8 values each.
__device__ __forceinline__ void encode_planes(const Row& w) {
  const CodecJob& j = w.job;
  const int exp = load_rotated(w);
  if (exp == -1000) return fail(w, 0);
  for (int i = w.lane; i < j.dim; i += 32) w.t[i] = __fmul_rn(w.y[i], w.y[i]);
  const float xx = tree_sum(w.t, j.dim, w.lane);
  const float sigma = __fsqrt_rn(__fdiv_rn(xx, static_cast<float>(j.dim)));
  const int bits = plane_bits(j.format), half = 1 << (bits - 1);
  const float* book = kvist_book + book_start(j.format);
  const int64_t plane = plane_bytes(j.rows, j.dim);
  uint8_t* dst = ptr<uint8_t>(j.dst) + static_cast<int64_t>(w.r) * (j.dim / 8);
  int64_t cc = 0;
  for (int k = w.lane; k < j.dim / 8; k += 32) {
    uint32_t byte[4] = {0, 0, 0, 0};
    for (int i = 0; i < 8; i++) {
      const float v = w.y[8 * k + i];
      int code = half;
      if (sigma > 0) {
        const float mag = fabsf(v);
        int m = 0;
        for (int q = 1; q < half; q++) m += mag >= __fmul_rn(threshold(j.format, half, q), sigma);
        code = v < 0 ? half - 1 - m : half + m;
      }
      for (int p = 0; p < bits; p++) byte[p] |= static_cast<uint32_t>(code >> (bits - 1 - p) & 1) << i;
      const float c = book[code];
      if (is_nested(j.format)) cc += static_cast<int64_t>(c) * static_cast<int64_t>(c);
      w.t[8 * k + i] = __fmul_rn(v, c);
    }
    for (int p = 0; p < bits; p++) dst[p * plane + k] = static_cast<uint8_t>(byte[p]);
  }
  if (w.r == j.rows - 1) {  // the padding of the planes is zero
    for (int64_t at = static_cast<int64_t>(j.rows) * (j.dim / 8) + w.lane; at < plane; at += 32) {
      for (int p = 0; p < bits; p++) ptr<uint8_t>(j.dst)[p * plane + at] = 0;
    }
  }
  float s = 0;
  if (is_nested(j.format)) {
    cc = warp_sum(cc);
    const float xc = tree_sum(w.t, j.dim, w.lane);
    if (sigma != 0) s = rule_scale(j.rule, xx, xc, static_cast<float>(cc));
  } else {
    s = __fsqrt_rn(xx);
  }
  if (w.lane == 0) ptr<float>(j.scales)[w.r] = __fmul_rn(s, exact_pow2(exp));
}

// u8. Phase 0 finds the scales; phase 1, when they are stored, takes the codes with them.
__device__ __forceinline__ void encode_u8(const Row& w, int phase) {
  const CodecJob& j = w.job;
  const int exp = load_rotated(w);
  if (exp == -1000) return fail(w, 0);
  if (phase == 0) {
    float peak = 0;
    for (int i = w.lane; i < j.dim; i += 32) peak = fmaxf(peak, fabsf(w.y[i]));
    peak = warp_max(peak);
    if (w.lane == 0) {
      ptr<float>(j.scales)[w.r] =
          __fmul_rn(__fmul_rn(__fdiv_rn(peak, 127), 64), exact_pow2(exp));
    }
    return;
  }
  uint8_t* dst = ptr<uint8_t>(j.dst);
  const float s = row_scale(dst, U8, j.form, j.rows, j.dim, w.r);
  const float step = __fmul_rn(__fmul_rn(s, exact_pow2(-exp)), 1.0f / 64);
  const int64_t at = static_cast<int64_t>(w.r) * j.dim;
  for (int i = w.lane; i < j.dim; i += 32) {
    float q = step > 0 ? rintf(__fdiv_rn(w.y[i], step)) : 0;
    q = fminf(fmaxf(q, -127), 127);
    dst[at + i] = static_cast<uint8_t>(128 + static_cast<int>(q));
  }
  if (w.r == j.rows - 1) {
    const int64_t end = code_bytes(U8, j.rows, j.dim);
    for (int64_t i = at + j.dim + w.lane; i < end; i += 32) dst[i] = 0;
  }
}

// The nearest 8-bit logarithm: quant's count of midpoints that s lies below, by bisection.
__device__ __forceinline__ uint8_t log8_code(float base, float s, bool up) {
  if (s == 0) return 255;
  int lo = 0, hi = 254;
  while (lo < hi) {
    const int k = (lo + hi) / 2;
    const float bound = up ? log8_scale(base, k + 1)
                           : __fmul_rn(__fmul_rn(base, kvist_log8_mid[k & 15]),
                                       exact_pow2(-(k >> 4)));
    if (s > bound || (s == bound && !up)) hi = k; else lo = k + 1;
  }
  return static_cast<uint8_t>(lo);
}

}  // namespace

// Packs rows of any job. A warp a row.
// grid: rows / warps of a block; shared: CodecParams.shared floats a warp (2 dim).
// Reads dim source values, writes bits/8 * dim bytes and a float32 scale a row.
extern "C" __global__ void __launch_bounds__(128, 1) kvist_encode(const CodecParams p) {
  KVIST_SHARED(float, shared);
  Row w;
  if (!find_row(p, shared, &w)) return;
  const int f = w.job.format;
  if (f == U8) {
    encode_u8(w, p.phase);
  } else if (p.phase == 0) {
    if (is_exact(f)) {
      encode_exact(w);
    } else if (is_rotated(f)) {
      encode_planes(w);
    } else {
      encode_ggml(w);
    }
  }
}

// Stores the row scales of scratch in the form of each job. A thread block a job.
// grid: jobs; shared: 4 floats.
extern "C" __global__ void __launch_bounds__(128, 1) kvist_scales(const CodecParams p) {
  KVIST_SHARED(float, shared);
  const CodecJob j = ptr<const CodecJob>(p.jobs)[blockIdx.x];
  if (!is_rotated(j.format) || j.rows == 0 || j.scales == 0) return;
  uint32_t* const status = ptr<uint32_t>(j.status);
  // A row that is out of range has no scale: nothing is stored, and the launcher reports it.
  if (status[0] != 0xffffffffu) return;
  uint8_t* tail = ptr<uint8_t>(j.dst) + code_bytes(j.format, j.rows, j.dim);
  const float* scales = ptr<const float>(j.scales);
  if (j.form == SCALE_F16 || is_turbo(j.format)) {
    for (int r = threadIdx.x; r < j.rows; r += blockDim.x) {
      const uint16_t h = f32_to_f16(scales[r]);
      if ((h & 0x7c00) == 0x7c00) atomicMin(status + 1, static_cast<uint32_t>(r));
      reinterpret_cast<uint16_t*>(tail)[r] = h;
    }
    return;
  }
  float base = 0;
  for (int r = threadIdx.x; r < j.rows; r += blockDim.x) {
    if (!is_finite(scales[r])) atomicMin(status + 1, static_cast<uint32_t>(r));
    base = fmaxf(base, scales[r]);
  }
  base = warp_max(base);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x / 32] = base;
  __syncthreads();
  for (int i = 0; i < blockDim.x / 32; i++) base = fmaxf(base, shared[i]);
  if (threadIdx.x == 0) *reinterpret_cast<float*>(tail) = base;
  for (int r = threadIdx.x; r < j.rows; r += blockDim.x) {
    tail[4 + r] = log8_code(base, scales[r], j.format == U8);
  }
}

// Unpacks rows to float32 in the original basis. A warp a row.
// grid, shared: as kvist_encode. Reads bits/8 * dim bytes, writes 4 * dim.
extern "C" __global__ void __launch_bounds__(128, 1) kvist_decode(const CodecParams p) {
  KVIST_SHARED(float, shared);
  Row w;
  if (!find_row(p, shared, &w)) return;
  const CodecJob& j = w.job;
  const uint8_t* side = ptr<const uint8_t>(j.src);
  uint32_t* dst = ptr<uint32_t>(j.dst) + static_cast<int64_t>(w.r) * j.dim;
  if (!is_rotated(j.format)) {
    for (int i = w.lane; i < j.dim; i += 32) {
      dst[i] = __float_as_uint(raw_value(side, j.format, j.rows, j.dim, w.r, i, kvist_book));
    }
    return;
  }
  const float unit = row_unit(side, j.format, j.form, j.rows, j.dim, w.r);
  for (int i = w.lane; i < j.dim; i += 32) {
    w.y[i] = __fmul_rn(unit, raw_value(side, j.format, j.rows, j.dim, w.r, i, kvist_book));
  }
  __syncwarp();
  rotate(w.y, j.dim, j.seed, true, w.lane);
  for (int i = w.lane; i < j.dim; i += 32) dst[i] = __float_as_uint(w.y[i]);
}

// Re-codes lm rows to fewer bits: copies the planes that stay where dst is not src, and writes the
// new scales to scratch; kvist_scales stores them, which may overwrite planes that go. A warp a row.
// grid, shared: as kvist_encode. Reads bits/8 * dim bytes, writes as many of them as stay.
extern "C" __global__ void __launch_bounds__(128, 1) kvist_demote(const CodecParams p) {
  KVIST_SHARED(float, shared);
  Row w;
  if (!find_row(p, shared, &w)) return;
  const CodecJob& j = w.job;
  const uint8_t* src = ptr<const uint8_t>(j.src);
  const int bits = plane_bits(j.from), keep = plane_bits(j.format);
  const int64_t plane = plane_bytes(j.rows, j.dim), row = j.dim / 8;
  const float* fine = kvist_book + book_start(j.from);
  const float* coarse = kvist_book + book_start(j.format);
  int64_t xx = 0, xc = 0, cc = 0;
  for (int k = w.lane; k < row; k += 32) {
    uint32_t byte[4] = {0, 0, 0, 0};
    for (int q = 0; q < bits; q++) byte[q] = src[q * plane + w.r * row + k];
    for (int i = 0; i < 8; i++) {
      int code = 0;
      for (int q = 0; q < bits; q++) code = code << 1 | (byte[q] >> i & 1);
      const int a = static_cast<int>(fine[code]), b = static_cast<int>(coarse[code >> (bits - keep)]);
      xx += a * a;
      xc += a * b;
      cc += b * b;
    }
    if (j.dst != j.src) {
      for (int q = 0; q < keep; q++) {
        ptr<uint8_t>(j.dst)[q * plane + w.r * row + k] = static_cast<uint8_t>(byte[q]);
      }
    }
  }
  if (w.r == j.rows - 1 && j.dst != j.src) {  // the padding of the planes
    for (int64_t at = j.rows * row + w.lane; at < plane; at += 32) {
      for (int q = 0; q < keep; q++) ptr<uint8_t>(j.dst)[q * plane + at] = src[q * plane + at];
    }
  }
  xx = warp_sum(xx);
  xc = warp_sum(xc);
  cc = warp_sum(cc);
  float s = row_scale(src, j.from, j.form, j.rows, j.dim, w.r);
  if (s != 0) {
    const float ratio = __fmul_rn(rule_scale(j.rule, static_cast<float>(xx), static_cast<float>(xc),
                                             static_cast<float>(cc)), 1.0f / 64);
    s = __fmul_rn(s, ratio);
    if (j.form == SCALE_F16 && s > 65504) s = 65504;
  }
  if (w.lane == 0) ptr<float>(j.scales)[w.r] = s;
}

// Copies packed rows to a new side, as quant.Gather. A warp a row; the warp of a job's last row clears
// padding, that of its first row stores the base of 8-bit logarithms.
// grid: rows / 4; block: 128; no shared memory. Reads and writes bits/8 * dim bytes.
extern "C" __global__ void __launch_bounds__(128, 1) kvist_gather(const GatherParams p) {
  const int lane = threadIdx.x & 31;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (item >= p.rows) return;
  const GatherJob* jobs = ptr<const GatherJob>(p.jobs);
  int lo = 0, hi = p.n_jobs;  // the last job that starts at or before item
  while (hi - lo > 1) {
    const int mid = (lo + hi) / 2;
    if (jobs[mid].first <= item) lo = mid; else hi = mid;
  }
  const GatherJob j = jobs[lo];
  const GatherRow from = ptr<const GatherRow>(p.taken)[item];
  const int r = static_cast<int>(item - j.first), f = j.format, bits = plane_bits(f);
  uint8_t* const dst = ptr<uint8_t>(j.dst);
  const uint8_t* const src = ptr<const uint8_t>(from.side);
  const int64_t dim = j.dim;
  const int64_t row = bits ? dim / 8 : f == U8 ? dim : f == F32 ? 4 * dim
                    : f == GGML_Q8_0 ? dim / 32 * 34 : f == GGML_Q4_0 ? dim / 32 * 18 : 2 * dim;
  const int64_t to_plane = plane_bytes(j.rows, dim), from_plane = plane_bytes(from.rows, dim);
  for (int q = 0; q < max(1, bits); q++) {
    for (int64_t k = lane; k < row; k += 32) {
      dst[q * to_plane + r * row + k] = src[q * from_plane + from.row * row + k];
    }
  }
  if (!is_rotated(f)) return;
  uint8_t* const tail = dst + code_bytes(f, j.rows, dim);
  if (r == j.rows - 1) {
    const int64_t end = bits ? to_plane : code_bytes(f, j.rows, dim);
    for (int q = 0; q < max(1, bits); q++) {
      for (int64_t k = j.rows * row + lane; k < end; k += 32) dst[q * to_plane + k] = 0;
    }
  }
  if (lane != 0) return;
  const uint8_t* const old = src + code_bytes(f, from.rows, dim);
  if (j.form != SCALE_LOG8) {
    reinterpret_cast<uint16_t*>(tail)[r] = reinterpret_cast<const uint16_t*>(old)[from.row];
    return;
  }
  uint32_t base = 0;  // the largest, compared as bits
  for (int i = 0; i < j.n_bases; i++) {
    base = max(base, *ptr<const uint32_t>(ptr<const uint64_t>(j.bases)[i]));
  }
  const uint32_t own = *reinterpret_cast<const uint32_t*>(old);
  uint8_t code = old[4 + from.row];
  if (own != base) {
    const float s = log8_scale(__uint_as_float(own), code);
    code = static_cast<uint8_t>(log8_code(__uint_as_float(base), s, f == U8));
  }
  tail[4 + r] = code;
  if (r == 0) *reinterpret_cast<uint32_t*>(tail) = base;
}
