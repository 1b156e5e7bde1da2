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

// Where a sub-tile comes from.
struct alignas(16) Source {
  uint64_t k, v;              // its first row in the highest plane
  uint32_t k_plane, v_plane;  // bytes
  int32_t block, row0;
  int32_t rows;               // 0: nothing
  int32_t k_format, v_format;
  int32_t pad;
};

struct alignas(16) RowTerm {
  float unit, add, noise, length;  // add and noise in units of log 2; length: log2 of V's unit
};

// What a warp has in shared memory. Its ring is first the place where queries are turned.
template <int DIM>
struct WarpArea {
  alignas(16) uint8_t ring[STAGES][4][SUB_ROWS * DIM / 8];
  alignas(16) float score[ROUND][32][8];  // by lane
  RowTerm terms[SUB_ROWS];
  float length[ROUND][SUB_ROWS];
  int64_t pos[SUB_ROWS];
  Source source[PIECE_TILES];
};

template <int DIM>
struct Int8Area {
  float plain[INT8_HEADS * DIM];  // queries, only turned
  uint32_t digits[FRAGMENTS * 32];
  uint32_t table[4][4];
  float energy[INT8_HEADS], unit[INT8_HEADS];
  float top[4][INT8_HEADS], sum[4][INT8_HEADS];
  WarpArea<DIM> warp[4];
};

// kernels.Int8Shared computes the same.
static_assert(sizeof(Int8Area<64>) == 45440, "Int8Area<64>.size");
static_assert(sizeof(Int8Area<128>) == 63872, "Int8Area<128>.size");

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
__device__ __forceinline__ void split_queries_int8(Int8Area<DIM>& a, const float* rotated, int heads) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  for (int h = warp; h < INT8_HEADS; h += 4) {
    float peak = 0;
    for (int d = lane; h < heads && d < DIM; d += 32) peak = fmaxf(peak, fabsf(rotated[h * DIM + d]));
    for (int o = 16; o; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(FULL_MASK, peak, o));
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
  if (threadIdx.x < INT8_HEADS) a.unit[threadIdx.x] /= QUERY_TOP;
}

// Sub-tile `at` of this warp, by one lane.
template <int DIM>
__device__ __forceinline__ void find_source(const AttendParams& p, const SubTile& sub, Source* s) {
  s->rows = 0;
  if (sub.block < 0) return;
  const BlockDesc& b = ptr<const BlockDesc>(p.blocks)[sub.block];
  const uint32_t plane = static_cast<uint32_t>(plane_bytes(b.rows, DIM));
  s->k = b.k + static_cast<uint32_t>(sub.row0) * (DIM / 8);
  s->v = b.v + static_cast<uint32_t>(sub.row0) * (DIM / 8);
  s->k_plane = s->v_plane = plane;
  s->block = sub.block;
  s->row0 = sub.row0;
  s->rows = min(SUB_ROWS, b.rows - sub.row0);
  s->k_format = b.k_format;
  s->v_format = b.v_format;
}

// The order in which a warp needs its sub-tiles: K of a round, then V of it.
struct Walk {
  int first, at, tiles;
  bool v;

  __device__ __forceinline__ bool done() const { return first >= tiles; }
  __device__ __forceinline__ void step() {
    if (++at < min(ROUND, tiles - first)) return;
    at = 0;
    if (v) first += ROUND;
    v = !v;
  }
};

// Starts the copy of the planes that the walk stands at, and steps.
template <int DIM>
__device__ __forceinline__ void fetch_planes(const WarpArea<DIM>& w, Shared ring, int slot, Walk& walk) {
  const int lane = threadIdx.x & 31;
  if (!walk.done()) {
    const Source& s = w.source[walk.first + walk.at];
    const int planes = (walk.v ? s.v_format : s.k_format) - LM1 + 1;
    if (lane < s.rows) {
      const uint32_t step = walk.v ? s.v_plane : s.k_plane;
      const uint8_t* from = ptr<const uint8_t>(walk.v ? s.v : s.k) + lane * (DIM / 8);
      const Shared to = ring + slot * sizeof(w.ring[0]) + lane * (DIM / 8);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (i < planes) copy_async<DIM / 8>(to + i * (SUB_ROWS * DIM / 8), from);
        from += step;
      }
    }
    walk.step();
  }
  copy_commit();
}

}  // namespace kvist
