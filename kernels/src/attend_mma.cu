// SPDX-License-Identifier: Apache-2.0
//
// Attention of 8 heads with tensor cores, for compute capability 8.0 on: the twin of attend<8>,
// for pieces whose V is coded in integers (lm1..lm4, u8).
//
// Centroids are small integers: exact in binary16. Queries and weights are not, so each is split
// into two binary16 numbers, hi + lo, which together keep 22 bits. A tensor core multiplies 16 rows:
// rows 0..7 are the heads' hi, rows 8..15 their lo, so that full accuracy costs no further product.
// Queries are scaled by a power of two a head, weights by one a head and tile, so that their
// largest is in [1, 2). Sums are float32 within a tile of 128 rows.
//
// The sum over components, or rows, may run in any order, and columns may be given to lanes in any:
// of 32 values whose bits are one word of each plane, a lane takes those with number 4j + k for one
// k, so that a shift and a mask bring 8 bits of a plane to their places in 8 codes. Two codes are
// looked up at once, in a table of pairs.
#include "mma.cuh"

namespace kvist {

#define HEADS 8
#define PAIRS 256  // of 4-bit codes

// Shared memory, in floats; cuda/attend.go computes the same.
struct MmaLayout {
  Layout plain;
  uint16_t *query_hi, *query_lo;    // [HEADS, head_dim], rotated basis, in the order of place()
  float* query_scale;               // [HEADS]
  uint16_t *weight_hi, *weight_lo;  // [HEADS, TILE_ROWS]
  float* weight_scale;              // [HEADS]
  uint32_t* pairs;                  // [4 formats, PAIRS] of binary16
  float* sums;                      // [4 / column groups, HEADS, head_dim_v]: 2048
};

__device__ __forceinline__ MmaLayout mma_layout(float* s, int stride) {
  MmaLayout m;
  m.plain = layout<HEADS>(s, stride);
  float* at = m.plain.factor + HEADS;
  m.query_hi = reinterpret_cast<uint16_t*>(at);
  m.query_lo = m.query_hi + HEADS * stride;
  at += HEADS * stride;
  m.weight_hi = reinterpret_cast<uint16_t*>(at);
  m.weight_lo = m.weight_hi + HEADS * TILE_ROWS;
  at += HEADS * TILE_ROWS;
  m.pairs = reinterpret_cast<uint32_t*>(at);
  at += 4 * PAIRS;
  m.query_scale = at;
  m.weight_scale = at + HEADS;
  m.sums = at + 2 * HEADS;
  return m;
}

// The power of two at or below x > 0, within the normal numbers; 1 for 0.
__device__ __forceinline__ float power_below(float x) {
  const int e = static_cast<int>(__float_as_uint(x) >> 23) - 127;
  return x == 0 ? 1 : exact_pow2(min(max(e, -126), 126));
}

// x / scale as hi + lo.
__device__ __forceinline__ void split(float x, float inverse, uint16_t* hi, uint16_t* lo) {
  x *= inverse;
  const uint32_t h = float_to_half(x);
  *hi = static_cast<uint16_t>(h);
  *lo = static_cast<uint16_t>(float_to_half(x - half_to_float(static_cast<uint16_t>(h))));
}

__device__ __forceinline__ float warp_peak(float x) {
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, o));
  return x;
}

// Where component d of a query is kept: those that one lane takes lie together.
__device__ __forceinline__ int place(int d) { return (d & ~31) | (d & 3) << 3 | (d >> 2 & 7); }

__device__ __forceinline__ void split_queries(const MmaLayout& m, int heads, int dim, int stride) {
  const int lane = threadIdx.x & 31;
  for (int h = threadIdx.x / 32; h < HEADS; h += TILE_ROWS / 32) {
    float peak = 0;
    for (int d = lane; d < dim; d += 32) peak = fmaxf(peak, fabsf(m.plain.rotated[h * stride + d]));
    const float scale = power_below(warp_peak(peak));
    if (lane == 0) m.query_scale[h] = scale;
    for (int d = lane; d < dim; d += 32) {
      const int at = h * stride + (dim % 32 == 0 ? place(d) : d);
      split(h < heads ? m.plain.rotated[h * stride + d] : 0, 1 / scale, m.query_hi + at,
            m.query_lo + at);
    }
  }
  __syncthreads();
}

__device__ __forceinline__ bool coded(int f) { return f == U8 || is_nested(f); }

// The codes of values 4j + k, j = 0..7, of the 32 whose bits are the words at byte of each of BITS
// planes: a nibble each.
template <int BITS>
__device__ __forceinline__ uint32_t codes_of(const View& w, int64_t byte, int k) {
  uint32_t codes = 0;
#pragma unroll
  for (int p = 0; p < BITS; p++) {
    const uint32_t word = __ldg(reinterpret_cast<const uint32_t*>(w.side + p * w.plane + byte));
    codes |= (word >> k & 0x11111111u) << (BITS - 1 - p);
  }
  return codes;
}

// Pair k of a word of 8 codes: the offset in bytes is cut out in two operations.
__device__ __forceinline__ uint32_t pair_of(const uint32_t* pairs, uint32_t codes, int k) {
  const uint32_t offset = (k == 0 ? codes << 2 : codes >> (8 * k - 2)) & 0x3fc;
  return *reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(pairs) + offset);
}

// The same of u8: word j holds values 4j..4j+3.
struct Bytes {
  uint32_t word[8];
};

__device__ __forceinline__ Bytes bytes_of(const View& w, int64_t at) {
  const uint4 a = __ldg(reinterpret_cast<const uint4*>(w.side + at));
  const uint4 b = __ldg(reinterpret_cast<const uint4*>(w.side + at) + 1);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ __forceinline__ uint32_t integer_pair(uint32_t a, uint32_t b) {  // of u8
  return float_to_half(static_cast<float>(static_cast<int>(a) - 128)) |
         float_to_half(static_cast<float>(static_cast<int>(b) - 128)) << 16;
}

// Dots of the warp's 32 rows with all heads, in units of query_scale. Lane (g, t) unpacks
// components 4j + t of rows g, g + 8, g + 16 and g + 24. BITS 8: u8.
template <int BITS>
__device__ __forceinline__ void dots(const MmaLayout& m, const View& w, int dim, int stride,
                                     int row0, int rows, float c[4][4]) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const uint32_t* pairs = m.pairs + (BITS < 8 ? BITS - 1 : 0) * PAIRS;
#pragma unroll 1
  for (int i = 0; i < dim; i += 32) {
    const uint4 hi = *reinterpret_cast<const uint4*>(m.query_hi + g * stride + i + 8 * t);
    const uint4 lo = *reinterpret_cast<const uint4*>(m.query_lo + g * stride + i + 8 * t);
    const uint32_t a[2][4] = {{hi.x, lo.x, hi.y, lo.y}, {hi.z, lo.z, hi.w, lo.w}};
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const int64_t at = static_cast<int64_t>(min(row0 + 8 * n + g, rows - 1)) * dim + i;
      uint32_t b[2][2];
      if (BITS < 8) {
        const uint32_t codes = codes_of<BITS < 8 ? BITS : 1>(w, at / 8, t);
#pragma unroll
        for (int k = 0; k < 4; k++) b[k / 2][k % 2] = pair_of(pairs, codes, k);
      } else {
        const Bytes v = bytes_of(w, at);
#pragma unroll
        for (int k = 0; k < 4; k++) {
          b[k / 2][k % 2] = integer_pair(v.word[2 * k] >> 8 * t & 255,
                                         v.word[2 * k + 1] >> 8 * t & 255);
        }
      }
      mma(c[n], a[0], b[0]);
      mma(c[n], a[1], b[1]);
    }
  }
}

// (1) The scores of the warp's sub-tile.
__device__ __forceinline__ void score_mma(const AttendParams& p, const Unit& u, const MmaLayout& m,
                                          int stride, const SubTile& sub) {
  const int t = threadIdx.x, lane = t & 31, warp = t / 32;
  if (sub.block < 0) return score_row<HEADS>(p, u, m.plain, stride, sub);
  const BlockDesc b = ptr<const BlockDesc>(p.blocks)[sub.block];
  if (!coded(b.k_format) || p.head_dim % 32 != 0) {
    return score_row<HEADS>(p, u, m.plain, stride, sub);
  }
  const View k = view_of(b.k, b.k_format, b.rows, p.head_dim, m.plain.book);
  float c[4][4];
#pragma unroll
  for (int n = 0; n < 4; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) c[n][i] = 0;
  }
  switch (b.k_format) {
    case U8: dots<8>(m, k, p.head_dim, stride, sub.row0, b.rows, c); break;
    case LM1: dots<1>(m, k, p.head_dim, stride, sub.row0, b.rows, c); break;
    case LM2: dots<2>(m, k, p.head_dim, stride, sub.row0, b.rows, c); break;
    case LM3: dots<3>(m, k, p.head_dim, stride, sub.row0, b.rows, c); break;
    default: dots<4>(m, k, p.head_dim, stride, sub.row0, b.rows, c);
  }
  float shift[HEADS];
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    shift[h] = b.mean_k && h < u.heads
                   ? dot_mean(m.plain.plain + h * stride, b.mean_k, p.head_dim, lane)
                   : 0;
  }
  float* score = m.plain.score + warp * SUB_ROWS;
  const int g = lane / 4;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int row = 8 * n + 2 * (lane % 4);
    score[g * TILE_ROWS + row] = c[n][0] + c[n][2];
    score[g * TILE_ROWS + row + 1] = c[n][1] + c[n][3];
  }
  __syncwarp();
  const int r = sub.row0 + lane;
  const bool have = r < b.rows;
  RowTerms terms = {0, 0, 0, 0, false};
  float unit = 0;
  if (have) {
    terms = row_terms(p, b, r);
    unit = row_unit(ptr<const uint8_t>(b.v), b.v_format, b.v_form, b.rows, p.head_dim_v, r);
  }
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    float* const s = score + h * TILE_ROWS + lane;
    *s = have && h < u.heads
             ? row_score(p, terms, *s * m.query_scale[h], shift[h], m.plain.energy[h],
                         (u.head0 + h) / p.group)
             : NEG_INF;
  }
  m.plain.unit[t] = unit;
}

// (2) Splits the weights of head h, by one warp.
__device__ __forceinline__ void split_weights(const MmaLayout& m, int h, int lane) {
  const float* w = m.plain.score + h * TILE_ROWS;
  float peak = 0;
#pragma unroll
  for (int k = 0; k < TILE_ROWS; k += 32) peak = fmaxf(peak, w[k + lane]);
  const float scale = power_below(warp_peak(peak));
  if (lane == 0) m.weight_scale[h] = scale;
#pragma unroll
  for (int k = 0; k < TILE_ROWS; k += 32) {
    split(w[k + lane], 1 / scale, m.weight_hi + h * TILE_ROWS + k + lane,
          m.weight_lo + h * TILE_ROWS + k + lane);
  }
}

__device__ __forceinline__ int column(int g, int j) { return g / 4 * 32 + 4 * j + g % 4; }

// (3) Weighted sums of 64 columns from col0 on, over the rows of a sub-tile. Lane (g, t) unpacks
// columns column(g, j), j = 0..7, of rows 4t..4t+3 of each 16; product j takes the j-th of them.
template <int BITS>
__device__ __forceinline__ void weighted(const MmaLayout& m, const View& w, int dim, int col0,
                                         int tile_row, int row0, int rows, float c[8][4]) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const uint32_t* pairs = m.pairs + (BITS < 8 ? BITS - 1 : 0) * PAIRS;
#pragma unroll 1
  for (int s = 0; s < SUB_ROWS; s += 16) {
    const int at = g * TILE_ROWS + tile_row + s + 4 * t;
    const uint2 hi = *reinterpret_cast<const uint2*>(m.weight_hi + at);
    const uint2 lo = *reinterpret_cast<const uint2*>(m.weight_lo + at);
    const uint32_t a[4] = {hi.x, lo.x, hi.y, lo.y};
    if (BITS < 8) {
      uint32_t code[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int64_t r = min(row0 + s + 4 * t + i, rows - 1);
        code[i] = codes_of<BITS < 8 ? BITS : 1>(w, (r * dim + col0 + g / 4 * 32) / 8, g % 4);
      }
      const uint32_t low = 0x0f0f0f0fu;
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        const uint32_t x = (code[0] >> 4 * odd & low) | (code[1] >> 4 * odd & low) << 4;
        const uint32_t y = (code[2] >> 4 * odd & low) | (code[3] >> 4 * odd & low) << 4;
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const uint32_t b[2] = {pair_of(pairs, x, k), pair_of(pairs, y, k)};
          mma(c[2 * k + odd], a, b);
        }
      }
    } else {
      Bytes v[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int64_t r = min(row0 + s + 4 * t + i, rows - 1);
        v[i] = bytes_of(w, r * dim + col0 + g / 4 * 32);
      }
#pragma unroll
      for (int j = 0; j < 8; j++) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = v[i].word[j] >> 8 * (g % 4) & 255;
        const uint32_t b[2] = {integer_pair(x[0], x[1]), integer_pair(x[2], x[3])};
        mma(c[j], a, b);
      }
    }
  }
}

__device__ __forceinline__ void weigh_columns(const AttendParams& p, const MmaLayout& m,
                                              const SubTile* subs, int s, int col0, float c[8][4]) {
  if (subs[s].block < 0) return;
  const BlockDesc b = ptr<const BlockDesc>(p.blocks)[subs[s].block];
  const View v = view_of(b.v, b.v_format, b.rows, p.head_dim_v, m.plain.book);
  const int dim = p.head_dim_v, row0 = subs[s].row0, tile_row = s * SUB_ROWS;
  switch (b.v_format) {
    case U8: return weighted<8>(m, v, dim, col0, tile_row, row0, b.rows, c);
    case LM1: return weighted<1>(m, v, dim, col0, tile_row, row0, b.rows, c);
    case LM2: return weighted<2>(m, v, dim, col0, tile_row, row0, b.rows, c);
    case LM3: return weighted<3>(m, v, dim, col0, tile_row, row0, b.rows, c);
    default: return weighted<4>(m, v, dim, col0, tile_row, row0, b.rows, c);
  }
}

__device__ __forceinline__ void attend_mma(const AttendParams& p) {
  KVIST_SHARED(float, shared);
  const Piece piece = ptr<const Piece>(p.pieces)[blockIdx.x];
  const Unit u = ptr<const Unit>(p.units)[piece.unit];
  const int stride = (p.head_dim + 7) / 8 * 8, t = threadIdx.x, warp = t / 32, lane = t & 31;
  const MmaLayout m = mma_layout(shared, stride);
  const Layout& l = m.plain;
  const int column_groups = p.head_dim_v / 64, row_groups = 4 / column_groups;
  const int col0 = warp % column_groups * 64, row_group = warp / column_groups;
  if (t < HEADS) l.top[t] = NEG_INF;
  for (int i = t; i < BOOK_FLOATS; i += TILE_ROWS) l.book[i] = kvist_book[i];
  for (int i = t; i < 4 * PAIRS; i += TILE_ROWS) {
    const float* book = kvist_book + book_start(LM1 + i / PAIRS);
    const int mask = (2 << i / PAIRS) - 1;
    m.pairs[i] = float_to_half(book[i & mask]) | float_to_half(book[i >> 4 & mask]) << 16;
  }
  float acc[8][2], sum[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < 8; j++) acc[j][0] = acc[j][1] = 0;

  int variant = -1;
#pragma unroll 1
  for (int tile = piece.tile0; tile < piece.tile1; tile++) {
    const SubTile* subs = ptr<const SubTile>(p.tiles) + static_cast<int64_t>(tile) * 4;
    if (subs[0].variant != variant) {
      variant = subs[0].variant;
      ready_queries<HEADS>(p, u, l, stride, variant);
      if (u.k_rotated) split_queries(m, u.heads, p.head_dim, stride);
    }
    score_mma(p, u, m, stride, subs[warp]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      sum[i] = weigh(l, i * 4 + warp, lane, sum[i], gains_of(p, piece, tile), p.unit_heads);
      split_weights(m, i * 4 + warp, lane);
    }
    __syncthreads();
    float c[8][4];
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
      for (int i = 0; i < 4; i++) c[j][i] = 0;
    }
#pragma unroll 1
    for (int s = row_group; s < 4; s += row_groups) weigh_columns(p, m, subs, s, col0, c);
    const float factor = l.factor[lane / 4], scale = m.weight_scale[lane / 4];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      acc[j][0] = acc[j][0] * factor + (c[j][0] + c[j][2]) * scale;
      acc[j][1] = acc[j][1] * factor + (c[j][1] + c[j][3]) * scale;
    }
    __syncthreads();
  }

  float* part = ptr<float>(p.parts) + static_cast<int64_t>(blockIdx.x) * HEADS * (2 + p.head_dim_v);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int h = i * 4 + warp;
    for (int o = 16; o; o >>= 1) sum[i] += __shfl_xor_sync(FULL_MASK, sum[i], o);
    if (lane == 0) {
      part[h * (2 + p.head_dim_v)] = l.top[h];
      part[h * (2 + p.head_dim_v) + 1] = sum[i];
    }
  }
  float* sums = m.sums + (row_group * HEADS + lane / 4) * p.head_dim_v + col0;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    sums[column(2 * (lane % 4), j)] = acc[j][0];
    sums[column(2 * (lane % 4) + 1, j)] = acc[j][1];
  }
  __syncthreads();
  for (int i = t; i < HEADS * p.head_dim_v; i += TILE_ROWS) {
    float x = 0;
    for (int g = 0; g < row_groups; g++) x += m.sums[g * HEADS * p.head_dim_v + i];
    part[i / p.head_dim_v * (2 + p.head_dim_v) + 2 + i % p.head_dim_v] = x;
  }
}

}  // namespace kvist

// Attention of 8 heads over one piece whose V is coded in integers; pieces of other kinds are left
// to kvist_attend_h8. head_dim_v is 64, 128 or 256. grid: pieces; block: 128; shared: MmaLayout.
extern "C" __global__ void __launch_bounds__(128, 1) kvist_attend_mma(const AttendParams p) {
  if (ptr<const Piece>(p.pieces)[blockIdx.x].rotated_v == CODED_V) kvist::attend_mma(p);
}
