// SPDX-License-Identifier: Apache-2.0
//
// Attention over packed blocks of mixed codings. Sums are float32 within a piece, whose rows are
// few, and float64 where pieces are combined, so that errors do not grow with the context.
//
// A thread block works on one piece: some heads that share a list, and tiles of TILE_ROWS rows.
// Per tile: (1) a thread takes a row of K and computes its scores for all heads, so that K is
// unpacked once; (2) a warp takes a head, raises the reference of its sums, and turns scores into
// weights; (3) a thread takes 8 columns of V on every groups-th row, for all heads.
//
// The reference is an integer r, and weights are 2^(score*log2(e) - r): raising it multiplies the
// sums by a power of two, which rounds nothing.
//
// Sources: FlashAttention (2022, arXiv 2205.14135); Flash-Decoding (2023) for splitting the rows;
// Milakov and Gimelshein (2018, arXiv 1805.02867) for the online softmax.
#pragma once
#include "dot.cuh"

namespace kvist {

#define LOG2E 1.4426950408889634f

// 2^(a - b) for integers a <= b; 0 where it would be below the normal numbers.
__device__ __forceinline__ float pow2_difference(float a, float b) {
  const float d = a - b;
  return d >= -126 ? exact_pow2(static_cast<int>(d)) : 0;  // NaN: 0
}

// Shared memory of attend<H>, in floats; cuda/attend.go computes the same.
struct Layout {
  float *exact, *rotated;  // [H, stride] queries in the variant of the tile
  float *plain;            // [H, stride] of them, only turned
  float *score;            // [H, TILE_ROWS], scores and then weights
  float *unit;             // [TILE_ROWS] of V
  float *energy;           // [H], |q|^2
  float *top, *factor;     // [H]
  float *book;             // [BOOK_FLOATS], rounded up to 64
  float *reduce;           // [TILE_ROWS, 8]
};

template <int H>
__device__ __forceinline__ Layout layout(float* s, int stride) {
  Layout l;
  l.exact = s;
  l.rotated = l.exact + H * stride;
  l.plain = l.rotated + H * stride;
  l.score = l.plain + H * stride;
  l.reduce = l.score + H * TILE_ROWS;
  l.unit = l.reduce + TILE_ROWS * 8;
  l.book = l.unit + TILE_ROWS;
  l.energy = l.book + 64;
  l.top = l.energy + H;
  l.factor = l.top + H;
  return l;
}

// Brings the unit's queries into a variant, in both bases.
template <int H>
__device__ __forceinline__ void ready_queries(const AttendParams& p, const Unit& u, const Layout& l,
                                              int stride, int variant) {
  const Variant v = ptr<const Variant>(p.variants)[variant];
  const float* q = ptr<const float>(p.q) + static_cast<int64_t>(u.head0) * p.head_dim;
  for (int i = threadIdx.x; i < H * stride; i += TILE_ROWS) {
    const int h = i / stride, d = i % stride;
    l.exact[i] = h < u.heads && d < p.head_dim ? q[h * p.head_dim + d] : 0;
  }
  __syncthreads();
  if (v.turn >= 0) {
    turn_queries(p, l.exact, u.heads, stride,
                 ptr<const float>(p.turns) + static_cast<int64_t>(v.turn) * 2 * p.pairs,
                 threadIdx.x, TILE_ROWS);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < H * stride; i += TILE_ROWS) l.plain[i] = l.exact[i];
  __syncthreads();
  if (v.metric >= 0) {
    through_metric(p, v, l.exact, l.plain, u.heads, stride, threadIdx.x, TILE_ROWS);
    __syncthreads();
  }
  const int lane = threadIdx.x & 31;
  for (int h = threadIdx.x / 32; h < u.heads; h += TILE_ROWS / 32) {
    const float e = energy_of(l.exact + h * stride, p.head_dim, lane);
    if (lane == 0) l.energy[h] = e;
  }
  __syncthreads();
  if (u.k_rotated) {
    for (int h = threadIdx.x / 32; h < u.heads; h += TILE_ROWS / 32) {
      for (int d = lane; d < stride; d += 32) l.rotated[h * stride + d] = l.exact[h * stride + d];
      __syncwarp();
      rotate(l.rotated + h * stride, p.head_dim, u.k_seed, false, lane);
    }
    __syncthreads();
  }
}

// (1) The scores of this thread's row.
template <int H>
__device__ __forceinline__ void score_row(const AttendParams& p, const Unit& u, const Layout& l,
                                          int stride, const SubTile& sub) {
  const int t = threadIdx.x, lane = t & 31;
  float s[H], shift[H];
#pragma unroll
  for (int h = 0; h < H; h++) s[h] = NEG_INF;
  float unit = 0;
  if (sub.block >= 0) {
    const BlockDesc b = ptr<const BlockDesc>(p.blocks)[sub.block];
#pragma unroll
    for (int h = 0; h < H; h++) {
      shift[h] = b.mean_k && h < u.heads
                     ? dot_mean(l.plain + h * stride, b.mean_k, p.head_dim, lane)
                     : 0;
    }
    const int r = sub.row0 + lane;
    if (r < b.rows) {
      const View k = view_of(b.k, b.k_format, b.rows, p.head_dim, l.book);
      const RowTerms terms = row_terms(p, b, r);
      dot_row<H>(k, b.k_format, p.head_dim, r, is_rotated(b.k_format) ? l.rotated : l.exact, stride,
                 s);
#pragma unroll
      for (int h = 0; h < H; h++) {
        s[h] = h < u.heads ? row_score(p, terms, s[h], shift[h], l.energy[h], (u.head0 + h) / p.group)
                           : NEG_INF;
      }
      unit = row_unit(ptr<const uint8_t>(b.v), b.v_format, b.v_form, b.rows, p.head_dim_v, r);
    }
  }
#pragma unroll
  for (int h = 0; h < H; h++) l.score[h * TILE_ROWS + t] = s[h];
  l.unit[t] = unit;
}

// (2) Turns the scores of head h into weights, by one warp. Returns the lane's sum of weights. gains
// is null, or where the sums of the tile's four sub-tiles go: [4, unit_heads, 2].
__device__ __forceinline__ float weigh(const Layout& l, int h, int lane, float sum, float* gains,
                                       int unit_heads) {
  float* s = l.score + h * TILE_ROWS;
  float m = NEG_INF;
#pragma unroll
  for (int k = 0; k < TILE_ROWS; k += 32) m = fmaxf(m, s[k + lane]);
  for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, o));
  const float old = l.top[h];
  const float top = fmaxf(old, ceilf(m * LOG2E));
  const float factor = old == top ? 1 : pow2_difference(old, top);
  __syncwarp();
  if (lane == 0) {
    l.top[h] = top;
    l.factor[h] = factor;
  }
  sum *= factor;
#pragma unroll
  for (int k = 0; k < TILE_ROWS; k += 32) {
    const float x = s[k + lane];
    const float w = x == NEG_INF ? 0 : exp2f(x * LOG2E - top);
    sum += w;
    s[k + lane] = w == 0 ? 0 : w * l.unit[k + lane];
    if (gains) {
      const float all = warp_sum(w);
      if (lane == 0) {
        float* const g = gains + ((k / 32) * unit_heads + h) * 2;
        g[0] = all;
        g[1] = top;
      }
    }
  }
  return sum;
}

// Where the sums of the sub-tiles of a piece's tile go, or null.
__device__ __forceinline__ float* gains_of(const AttendParams& p, const Piece& piece, int tile) {
  if (!p.gains) return nullptr;
  const int64_t sub = piece.gain0 + (tile - piece.tile0) * 4;
  return ptr<float>(p.gains) + sub * p.unit_heads * 2;
}

template <int H>
__device__ __forceinline__ void attend(const AttendParams& p) {
  KVIST_SHARED(float, shared);
  const Piece piece = ptr<const Piece>(p.pieces)[blockIdx.x];
  if (p.skip >> piece.rotated_v & 1) return;
  const Unit u = ptr<const Unit>(p.units)[piece.unit];
  const int stride = (p.head_dim + 7) / 8 * 8, t = threadIdx.x, warp = t / 32, lane = t & 31;
  const Layout l = layout<H>(shared, stride);
  const int chunks = (p.head_dim_v + 7) / 8, groups = TILE_ROWS / chunks;
  const int chunk = t % chunks, group = t / chunks;
  if (t < H) l.top[t] = NEG_INF;
  for (int i = t; i < BOOK_FLOATS; i += TILE_ROWS) l.book[i] = kvist_book[i];

  float acc[H][8], sum[(H + 3) / 4];
#pragma unroll
  for (int h = 0; h < H; h++) {
#pragma unroll
    for (int i = 0; i < 8; i++) acc[h][i] = 0;
  }
#pragma unroll
  for (int i = 0; i < (H + 3) / 4; i++) sum[i] = 0;

  int variant = -1;  // none yet
#pragma unroll 1
  for (int tile = piece.tile0; tile < piece.tile1; tile++) {
    const SubTile* subs = ptr<const SubTile>(p.tiles) + static_cast<int64_t>(tile) * 4;
    if (subs[0].variant != variant) {
      variant = subs[0].variant;
      ready_queries<H>(p, u, l, stride, variant);
    }
    score_row<H>(p, u, l, stride, subs[warp]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < (H + 3) / 4; i++) {
      if (i * 4 + warp < H) {
        sum[i] = weigh(l, i * 4 + warp, lane, sum[i], gains_of(p, piece, tile), p.unit_heads);
      }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < H; h++) {
      const float f = l.factor[h];
#pragma unroll
      for (int i = 0; i < 8; i++) acc[h][i] *= f;
    }
    if (group < groups) {
#pragma unroll 1
      for (int s = 0; s < 4; s++) {
        if (subs[s].block < 0) break;
        const BlockDesc b = ptr<const BlockDesc>(p.blocks)[subs[s].block];
        const View v = view_of(b.v, b.v_format, b.rows, p.head_dim_v, l.book);
        add_rows<H>(v, b.v_format, p.head_dim_v, chunk * 8, subs[s].row0,
                    min(SUB_ROWS, b.rows - subs[s].row0), group, groups, l.score + s * SUB_ROWS,
                    acc);
      }
    }
    __syncthreads();
  }

  // Parts: the reference, the sum of weights, and the weighted sum of V, for every head.
  float* part = ptr<float>(p.parts) + static_cast<int64_t>(blockIdx.x) * H * (2 + p.head_dim_v);
#pragma unroll
  for (int i = 0; i < (H + 3) / 4; i++) {
    const int h = i * 4 + warp;
    if (h < H) {
      for (int o = 16; o; o >>= 1) sum[i] += __shfl_xor_sync(FULL_MASK, sum[i], o);
      if (lane == 0) {
        part[h * (2 + p.head_dim_v)] = l.top[h];
        part[h * (2 + p.head_dim_v) + 1] = sum[i];
      }
    }
  }
#pragma unroll
  for (int h = 0; h < H; h++) {
#pragma unroll
    for (int i = 0; i < 8; i++) l.reduce[t * 8 + i] = acc[h][i];
    __syncthreads();
    for (int d = t; d < p.head_dim_v; d += TILE_ROWS) {
      float x = 0;
      for (int g = 0; g < groups; g++) x += l.reduce[(g * chunks + d / 8) * 8 + d % 8];
      part[h * (2 + p.head_dim_v) + 2 + d] = x;
    }
    __syncthreads();
  }
}

}  // namespace kvist
