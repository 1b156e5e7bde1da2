// SPDX-License-Identifier: Apache-2.0
//
// Attention of 8 heads with products of 8-bit integers, for pieces whose K and V both are bit planes
// (lm1..lm4) of rows of 64 or 128 values: the twin of attend<8>.
//
// Centroids are bytes. A query is two digits of 8 bits, so that its values are multiples of 1/32512 of
// its largest one; weights are multiples of 1/65535 of the largest product of a weight and its row's
// unit among the rows of a round. A product has 16 rows: the high digits of 8 heads, and the low ones.
//
// A warp works on its own: on sub-tile `warp` of every tile, in rounds of ROUND. In a round it takes K
// of all its sub-tiles and keeps the scores, each for the lane that needs it later; then it knows the
// references exactly and takes V. Sums of a round are integers; rounds, and then warps, are added in
// float32, as many as a piece has.
//
// Planes come through a ring in shared memory, STAGES sub-tiles of K or V ahead. A lane copies a row of
// each plane: rows are 16 bytes, or 8.
#pragma once
#include "attend.cuh"
#include "planes.cuh"

namespace kvist {

#define INT8_HEADS 8
#define ROUND 4        // sub-tiles of a warp whose scores are kept
#define STAGES 4       // of the ring
#define PIECE_TILES 16 // at most, in a piece
#define QUERY_TOP 32512.0f   // 127 * 256: both digits of it are signed bytes
#define WEIGHT_TOP 65535.0f
#define FRAGMENTS 16   // registers of digits of queries

// The planes of a side.
struct alignas(16) Planes {
  uint64_t at;      // the first row in the highest plane
  uint32_t stride;  // bytes
  int32_t last;     // lanes up to this one have a row; -1: nothing
};

// Scales of the rows of a side.
struct Scales {
  uint64_t at;  // of its first row: 8-bit logarithms below base, or binary16
  float base;
  int32_t log8;
};

// Where a sub-tile comes from.
struct alignas(16) Source {
  Planes planes[2];  // of K, of V
  int32_t bits[2];
  int32_t block, row0;
  int32_t rows;      // 0: nothing
  int32_t odd;       // rows differ in more than their scales, or some head may not see one
  Scales k_scale, v_scale;
  float add, noise;  // of all rows, in units of log 2; noise lacks the square of the scale
  uint64_t mean_k;
};

struct alignas(16) RowTerm {
  float unit, add, noise, length;  // add and noise in units of log 2; length: log2 of V's unit
};

// What a unit's queries see of positions, if there are any.
struct Sight {
  int64_t first, last;  // of its queries
};

// What a warp has in shared memory. Its ring is first the place where queries are turned.
template <int DIM>
struct WarpArea {
  alignas(16) uint8_t ring[STAGES][4][SUB_ROWS * DIM / 8];
  alignas(16) float score[ROUND][32][8];  // by lane
  RowTerm terms[SUB_ROWS];
  float length[ROUND][SUB_ROWS];
  int64_t pos[SUB_ROWS];
  uint64_t mean;            // of K that shift is for; 0: none
  float shift[INT8_HEADS];  // what it adds to a score, in units of log 2
  Source source[PIECE_TILES];
};

template <int DIM>
struct Int8Area {
  float plain[INT8_HEADS * DIM];  // queries, only turned
  uint32_t digits[FRAGMENTS * 32];
  uint32_t table[4][4];
  float log8[16];
  float energy[INT8_HEADS];
  float unit[INT8_HEADS];  // of a product, with the scale of scores, in units of log 2
  float top[4][INT8_HEADS], sum[4][INT8_HEADS];
  WarpArea<DIM> warp[4];
};

// kernels.Int8Shared computes the same.
static_assert(sizeof(Int8Area<64>) == 49792, "Int8Area<64>.size");
static_assert(sizeof(Int8Area<128>) == 68224, "Int8Area<128>.size");

// Rows of a lane by place in its 8 scores.
template <int DIM>
__device__ __forceinline__ int row_of(int t, int i) {
  return DIM == 64 ? i / 4 * 16 + 4 * t + i % 4 : i / 2 * 8 + 2 * t + i % 2;
}

// Column n of group c and product k of the sums.
template <int DIM>
__device__ __forceinline__ int column_of(int n, int c, int k) {
  return (DIM == 64 ? 16 * (n & 3) + 8 * (n >> 2) : 16 * n) + 4 * c + k;
}

// The digits of the unit's queries, each where a lane loads it for a product: register 4k + x of lane
// (g, t) is 4 values of head g, x & 1 says which digit.
template <int DIM>
__device__ __forceinline__ void split_queries_int8(Int8Area<DIM>& a, const float* rotated, int heads,
                                                   float scale) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  for (int h = warp; h < INT8_HEADS; h += 4) {
    float peak = 0;
    bool odd = false;  // digits cannot hold what is no number: the unit says it of all scores
    for (int d = lane; h < heads && d < DIM; d += 32) {
      const float x = rotated[h * DIM + d];
      peak = fmaxf(peak, fabsf(x));
      odd |= !is_finite(x);
    }
    for (int o = 16; o; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(FULL_MASK, peak, o));
    if (__any_sync(FULL_MASK, odd)) peak = __uint_as_float(0x7fffffffu);
    if (lane == 0) a.unit[h] = peak;
  }
  __syncthreads();
  const int g = lane / 4, t = lane % 4, k = warp;
  const float peak = a.unit[g];
  // Divided in two steps, since the reciprocal of a subnormal number is none.
  const float even = exact_pow2(min(max(static_cast<int>(__float_as_uint(peak) >> 23) - 127, -126), 126));
  const float inverse = peak == 0 ? 0 : QUERY_TOP / (peak / even);
#pragma unroll
  for (int x = 0; x < 4; x++) {
    uint32_t w = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int d = 32 * (DIM == 64 ? t & 1 : t) + 4 * (j + 4 * (x >> 1)) + k;
      const float q = g < heads ? rotated[g * DIM + d] / even * inverse : 0;
      // Added to 1.5 * 2^23, a number is rounded to an integer, half to even.
      const int v = static_cast<int>(__float_as_uint(q + 12582912.0f)) - 0x4b400000;
      const int high = (v + 128) >> 8, low = v - 256 * high;
      w |= static_cast<uint32_t>((x & 1 ? low : high) & 255) << 8 * j;
    }
    a.digits[(4 * k + x) * 32 + lane] = w;
  }
  __syncthreads();
  if (threadIdx.x < INT8_HEADS) a.unit[threadIdx.x] *= scale * LOG2E / QUERY_TOP;
}

__device__ __forceinline__ Scales scales_of(uint64_t side, int format, int form, uint32_t plane,
                                            int row0) {
  const uint64_t tail = side + static_cast<uint64_t>(plane) * plane_bits(format);
  if (form != SCALE_LOG8) return {tail + 2 * static_cast<uint32_t>(row0), 0, 0};
  return {tail + 4 + static_cast<uint32_t>(row0), *ptr<const float>(tail), 1};
}

// A sub-tile of this warp, by one lane.
template <int DIM>
__device__ __forceinline__ void find_source(const AttendParams& p, const SubTile& sub,
                                            const Sight& sight, Source* s) {
  s->rows = 0;
  s->odd = 0;
  s->bits[0] = s->bits[1] = 2;  // any: nothing comes of their products
  s->planes[0].last = s->planes[1].last = -1;
  if (sub.block < 0) return;
  const BlockDesc& b = ptr<const BlockDesc>(p.blocks)[sub.block];
  const uint32_t plane = static_cast<uint32_t>(plane_bytes(b.rows, DIM));
  s->block = sub.block;
  s->row0 = sub.row0;
  s->rows = min(SUB_ROWS, b.rows - sub.row0);
  const uint32_t first = static_cast<uint32_t>(sub.row0) * (DIM / 8);
  s->planes[0] = {b.k + first, plane, s->rows - 1};
  s->planes[1] = {b.v + first, plane, s->rows - 1};
  s->bits[0] = plane_bits(b.k_format);
  s->bits[1] = plane_bits(b.v_format);
  s->k_scale = scales_of(b.k, b.k_format, b.k_form, plane, sub.row0);
  s->v_scale = scales_of(b.v, b.v_format, b.v_form, plane, sub.row0);
  s->add = b.tokens == 1 ? 0 : logf(static_cast<float>(b.tokens)) * LOG2E;
  s->noise = 0.5f * (p.scale * p.scale) * b.noise * LOG2E;
  s->mean_k = b.mean_k;
  bool odd = b.pos || b.count || b.bias || b.limit > 0;
  if (p.pos && !odd) {
    const int64_t at = b.base + static_cast<int64_t>(sub.row0) * b.stride;
    odd = sight.first < at + static_cast<int64_t>(s->rows - 1) * b.stride ||
          (p.window > 0 && sight.last - at >= p.window);
  }
  s->odd = odd;
}

// The scale of this lane's row.
__device__ __forceinline__ float scale_of(const Scales& s, const float* log8) {
  const int lane = threadIdx.x & 31;
  if (!s.log8) return half_to_float(__ldg(ptr<const uint16_t>(s.at) + lane));
  const int k = __ldg(ptr<const uint8_t>(s.at) + lane);  // as log8_scale
  return k == 255 ? 0 : s.base * log8[k & 15] * exact_pow2(-(k >> 4));
}

// Starts the copy of the planes that a warp needs in a step: K of a round's sub-tiles, then V of them.
template <int DIM>
__device__ __forceinline__ void fetch_planes(const WarpArea<DIM>& w, Shared ring, int step, int tiles) {
  const int lane = threadIdx.x & 31;
  if (step < 2 * tiles) {
    const int first = step / (2 * ROUND) * ROUND, at = step % (2 * ROUND), n = min(ROUND, tiles - first);
    const int v = at >= n;
    const Source& s = w.source[first + (v ? at - n : at)];
    const Planes planes = s.planes[v];
    if (lane <= planes.last) {
      const int bits = s.bits[v];
      const uint8_t* from = ptr<const uint8_t>(planes.at) + lane * (DIM / 8);
      const Shared to = ring + step % STAGES * static_cast<Shared>(sizeof(w.ring[0])) + lane * (DIM / 8);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (i < bits) copy_async<DIM / 8>(to + i * (SUB_ROWS * DIM / 8), from);
        from += planes.stride;
      }
    }
  }
  copy_commit();
}

}  // namespace kvist
