// SPDX-License-Identifier: Apache-2.0
//
// The loops of attention with integer products, and their entries; how it works is in
// attend_int8.cuh.
#include "attend_int8.cuh"

namespace kvist {

// Over the 4 lanes of a head.
__device__ __forceinline__ float head_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 1));
  return fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 2));
}

__device__ __forceinline__ float head_sum(float x) {
  x += __shfl_xor_sync(FULL_MASK, x, 1);
  return x + __shfl_xor_sync(FULL_MASK, x, 2);
}

// The terms of this lane's row of a sub-tile.
template <int DIM>
__device__ __forceinline__ void row_terms_int8(const AttendParams& p, WarpArea<DIM>& w, const Source& s,
                                               const float* log8, int slot) {
  const int lane = threadIdx.x & 31;
  RowTerm term = {0, NEG_INF, 0, NEG_INF};
  if (lane < s.rows) {
    const float k = scale_of(s.k_scale, log8), v = scale_of(s.v_scale, log8);
    term = {k * (1.0f / 64), s.add, s.noise != 0 ? s.noise * (k * k) : 0,
            // Of v / 64, also where that is subnormal.
            v < 1 ? fast_log2(v * 0x1p24f) - 30 : fast_log2(v) - 6};
    if (s.odd) {
      const RowTerms t = row_terms(p, ptr<const BlockDesc>(p.blocks)[s.block], s.row0 + lane);
      term.add = t.hidden ? NEG_INF : t.add * LOG2E;
      w.pos[lane] = t.pos;
    }
  }
  w.terms[lane] = term;
  w.length[slot][lane] = term.length;
}

// Brings w.shift to another mean of K. 4 lanes share a head.
template <int DIM>
__device__ __forceinline__ void shift_by(const AttendParams& p, WarpArea<DIM>& w, const float* plain,
                                         uint64_t mean) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const uint16_t* const m = ptr<const uint16_t>(mean);
  float s = 0;
  for (int d = t; mean && d < DIM; d += 4) s += plain[g * DIM + d] * half_to_float(__ldg(m + d));
  s = head_sum(s) * p.scale * LOG2E;
  if (t == 0) w.shift[g] = s;
  if (lane == 0) w.mean = mean;
}

// Products of the queries' digits with the 32 rows of K whose planes are at ring. c[i] holds two rows:
// high digits of the lane's head, then low ones. At 128 values they are row_of 2i and 2i + 1; at 64,
// 4 (i / 2) + i % 2 and 2 more.
template <int DIM, int BITS>
__device__ __forceinline__ void dots_int8(const uint32_t digits[FRAGMENTS], const uint32_t table[4],
                                          Shared ring, int c[4][4]) {
  const int lane = threadIdx.x & 31, t = lane % 4;
  const int N = DIM / 32;  // matrices
  uint32_t r[BITS][N];
#pragma unroll
  for (int i = 0; i < BITS; i++) {
    load_matrices<N>(r[i], ring + i * (SUB_ROWS * DIM / 8) + lane % (8 * N) * 16);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
#pragma unroll
  for (int i = 0; i < N; i++) {
    uint32_t words[BITS], b[4][2], n[4][2];
#pragma unroll
    for (int q = 0; q < BITS; q++) words[q] = r[q][i];
    unpack<BITS>(table, words, b, n);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t* const a = digits + 4 * k;
      if (DIM == 64) {  // 16 bytes are two rows: each has its product, where the other's digits are 0
        uint32_t even[4], odd[4];
#pragma unroll
        for (int x = 0; x < 4; x++) {
          even[x] = t < 2 ? a[x] : 0;
          odd[x] = t < 2 ? 0 : a[x];
        }
        mma_s8(c[2 * i], even, b[k]);
        mma_s8(c[2 * i + 1], odd, b[k]);
        if (BITS == 4) {
          mma_s8(c[2 * i], even, n[k]);
          mma_s8(c[2 * i + 1], odd, n[k]);
        }
      } else {
        mma_s8(c[i], a, b[k]);
        if (BITS == 4) mma_s8(c[i], a, n[k]);
      }
    }
  }
}

// The scores of a sub-tile for the lane's head, in units of log 2, to w.score. top and peak are raised
// to the largest score, and to the largest of score plus length.
template <int DIM>
__device__ __forceinline__ void scores_int8(const AttendParams& p, const Unit& u, WarpArea<DIM>& w,
                                            const int c[4][4], float unit, float energy, bool odd,
                                            int slot, float* top, float* peak) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const float shift = w.shift[g];
  float s[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int m = DIM == 64 ? i / 4 * 2 + i % 2 : i / 2, j = DIM == 64 ? i / 2 % 2 : i % 2;
    s[i] = static_cast<float>(c[m][j] * 256 + c[m][2 + j]) * w.terms[row_of<DIM>(t, i)].unit;
    s[i] = s[i] * unit + shift;
  }
  if (p.softcap > 0) {
    const float cap = p.softcap * LOG2E;
#pragma unroll
    for (int i = 0; i < 8; i++) s[i] = cap * tanhf(s[i] / cap);
  }
  if (p.pos && odd) {
    const int64_t pos = ptr<const int64_t>(p.pos)[(u.head0 + min(g, u.heads - 1)) / p.group];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int64_t d = pos - w.pos[row_of<DIM>(t, i)];
      if (d < 0 || (p.window > 0 && d >= p.window)) s[i] = NEG_INF;
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const RowTerm term = w.terms[row_of<DIM>(t, i)];
    s[i] += term.add - energy * term.noise;
    *top = fmaxf(*top, s[i]);
    *peak = fmaxf(*peak, s[i] + term.length);
  }
  float4* const to = reinterpret_cast<float4*>(w.score[slot][lane]);
  to[0] = {s[0], s[1], s[2], s[3]};
  to[1] = {s[4], s[5], s[6], s[7]};
}

// The weights of a sub-tile as two digits each, in the order in which V's nibbles have its rows.
// Returns the sum of the weights without units.
template <int DIM>
__device__ __forceinline__ float weights_int8(const WarpArea<DIM>& w, int slot, float top, float peak,
                                              uint32_t a[4]) {
  const int lane = threadIdx.x & 31, t = lane % 4;
  const float4* const from = reinterpret_cast<const float4*>(w.score[slot][lane]);
  const float4 x = from[0], y = from[1];
  const float s[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
  uint32_t d[8];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    sum += fast_exp2(s[i] - top);
    // Added to 2^23, a number is rounded to an integer, here of 16 bits.
    const float e = fast_exp2(s[i] + w.length[slot][row_of<DIM>(t, i)] - peak);
    d[i] = __float_as_uint(e * WEIGHT_TOP + 8388608.0f);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    uint32_t* const q = d + 4 * h;
    const uint32_t u = DIM == 64 ? prmt(q[0], q[1], 0x5140u) : prmt(q[0], q[2], 0x5140u);
    const uint32_t v = DIM == 64 ? prmt(q[2], q[3], 0x5140u) : prmt(q[1], q[3], 0x5140u);
    a[2 * h] = prmt(u, v, 0x7632u);
    a[2 * h + 1] = prmt(u, v, 0x5410u);
  }
  return sum;
}

// Adds the products of the weights' digits with the 32 rows of V whose planes are at ring.
template <int DIM, int BITS>
__device__ __forceinline__ void weigh_int8(const uint32_t a[4], const uint32_t table[4], Shared ring,
                                           int sum[DIM / 8][4]) {
  const int lane = threadIdx.x & 31;
  const int N = DIM / 32;
  uint32_t u[BITS][N];
#pragma unroll
  for (int i = 0; i < BITS; i++) {
    uint32_t r[N];
    load_matrices_t<N>(r, ring + i * (SUB_ROWS * DIM / 8) + lane % (8 * N) * 16);
    if (DIM == 64) nibbles_of_half_rows(r, lane >= 16, u[i]); else nibbles_of_rows(r, u[i]);
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    uint32_t words[BITS], b[4][2], n[4][2];
#pragma unroll
    for (int q = 0; q < BITS; q++) words[q] = u[q][i];
    unpack<BITS>(table, words, b, n);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      mma_u8(sum[4 * i + k], a, b[k]);
      if (BITS == 4) mma_u8(sum[4 * i + k], a, n[k]);
    }
  }
}

__device__ __forceinline__ void load_table(const uint32_t (*tables)[4], int bits, uint32_t table[4]) {
  const uint4 x = *reinterpret_cast<const uint4*>(tables[bits - 1]);
  table[0] = x.x, table[1] = x.y, table[2] = x.z, table[3] = x.w;
}

// Brings the unit's queries into the variant of the piece, and makes digits of them.
template <int DIM>
__device__ __forceinline__ void ready_int8(const AttendParams& p, const Unit& u, Int8Area<DIM>& a,
                                           int variant) {
  if (threadIdx.x < 16) {
    a.log8[threadIdx.x] = kvist_log8_frac[threadIdx.x];
    a.table[threadIdx.x / 4][threadIdx.x % 4] =
        table_word(LM1 + threadIdx.x / 4, threadIdx.x % 4, kvist_book);
  }
  Layout l = {};
  l.exact = reinterpret_cast<float*>(a.warp[0].ring);
  l.rotated = l.exact + INT8_HEADS * DIM;
  static_assert(sizeof(a.warp[0].ring) >= 2 * INT8_HEADS * DIM * sizeof(float), "queries in the ring");
  l.plain = a.plain;
  l.energy = a.energy;
  ready_queries<INT8_HEADS>(p, u, l, DIM, variant);
  split_queries_int8(a, l.rotated, u.heads, p.scale);
  __syncthreads();
}

template <int DIM>
__device__ __forceinline__ void attend_int8(const AttendParams& p) {
  KVIST_SHARED(Int8Area<DIM>, area);
  const Piece piece = ptr<const Piece>(p.pieces)[blockIdx.x];
  const Unit u = ptr<const Unit>(p.units)[piece.unit];
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const int tiles = piece.tile1 - piece.tile0;
  const SubTile* const subs = ptr<const SubTile>(p.tiles) + static_cast<int64_t>(piece.tile0) * 4;
  ready_int8<DIM>(p, u, *area, subs[0].variant);
  WarpArea<DIM>& w = area->warp[warp];

  Sight sight = {0, 0};
  if (p.pos) {
    const int64_t* const pos = ptr<const int64_t>(p.pos);
    sight.first = sight.last = pos[u.head0 / p.group];
    for (int h = 1; h < u.heads; h++) {
      const int64_t x = pos[(u.head0 + h) / p.group];
      sight.first = min(sight.first, x);
      sight.last = max(sight.last, x);
    }
  }
  if (lane < tiles) find_source<DIM>(p, subs[lane * 4 + warp], sight, &w.source[lane]);
  if (lane < INT8_HEADS) w.shift[lane] = 0;
  if (lane == 0) w.mean = 0;
  __syncwarp();

  const Shared ring = shared_address(w.ring);
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) fetch_planes(w, ring, i, tiles);
  float acc[DIM / 8][2], sum = 0, top = NEG_INF;
#pragma unroll
  for (int i = 0; i < DIM / 8; i++) acc[i][0] = acc[i][1] = 0;
  int step = 0;
#pragma unroll 1
  for (int first = 0; first < tiles; first += ROUND) {
    const int n = min(ROUND, tiles - first);
    uint32_t digits[FRAGMENTS], table[4];
#pragma unroll
    for (int i = 0; i < FRAGMENTS; i++) digits[i] = area->digits[i * 32 + lane];
    const float unit = area->unit[g], energy = g < u.heads ? area->energy[g] : 0;
    float most = NEG_INF, peak = NEG_INF;
#pragma unroll 1
    for (int i = 0; i < n; i++, step++) {
      const Source& s = w.source[first + i];
      row_terms_int8(p, w, s, area->log8, i);
      if (s.rows > 0 && s.mean_k != w.mean) {
        __syncwarp();  // all have read it
        shift_by(p, w, area->plain, s.mean_k);
      }
      copy_wait<STAGES - 2>();
      __syncwarp();
      const Shared at = ring + step % STAGES * static_cast<Shared>(sizeof(w.ring[0]));
      int c[4][4];
      load_table(area->table, s.bits[0], table);
      switch (s.bits[0]) {
        case 1: dots_int8<DIM, 1>(digits, table, at, c); break;
        case 2: dots_int8<DIM, 2>(digits, table, at, c); break;
        case 3: dots_int8<DIM, 3>(digits, table, at, c); break;
        default: dots_int8<DIM, 4>(digits, table, at, c);
      }
      __syncwarp();  // the warp has read the planes
      fetch_planes(w, ring, step + STAGES - 1, tiles);
      scores_int8(p, u, w, c, unit, energy, s.odd != 0, i, &most, &peak);
      __syncwarp();  // and the terms
    }
    // References of the round.
    most = head_max(most);
    peak = head_max(peak);
    const float now = ceilf(most);
    const float less = now == NEG_INF ? 0 : now, least = peak == NEG_INF ? 0 : peak;
    int total[DIM / 8][4];
#pragma unroll
    for (int i = 0; i < DIM / 8; i++) total[i][0] = total[i][1] = total[i][2] = total[i][3] = 0;
    float weights = 0;
#pragma unroll 1
    for (int i = 0; i < n; i++, step++) {
      const Source& s = w.source[first + i];
      copy_wait<STAGES - 2>();
      __syncwarp();
      const Shared at = ring + step % STAGES * static_cast<Shared>(sizeof(w.ring[0]));
      uint32_t a[4];
      const float part = weights_int8<DIM>(w, i, less, least, a);
      weights += part;
      if (p.gains) {
        const float all = head_sum(part);
        if (t == 0) {
          float* const to = gains_of(p, piece, piece.tile0 + first + i) + (warp * p.unit_heads + g) * 2;
          to[0] = all;
          to[1] = now;
        }
      }
      load_table(area->table, s.bits[1], table);
      switch (s.bits[1]) {
        case 1: weigh_int8<DIM, 1>(a, table, at, total); break;
        case 2: weigh_int8<DIM, 2>(a, table, at, total); break;
        case 3: weigh_int8<DIM, 3>(a, table, at, total); break;
        default: weigh_int8<DIM, 4>(a, table, at, total);
      }
      __syncwarp();
      fetch_planes(w, ring, step + STAGES - 1, tiles);
    }
    // Sums of integers below 2^24 are exact in float32.
    const float higher = fmaxf(top, now);
    const float old = pow2_difference(top, higher), fresh = pow2_difference(now, higher);
    const float back = fresh * exp2f(least - less) / WEIGHT_TOP;
#pragma unroll
    for (int i = 0; i < DIM / 8; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float x = static_cast<float>(total[i][j]) * 256 + static_cast<float>(total[i][2 + j]);
        acc[i][j] = acc[i][j] * old + x * back;
      }
    }
    sum = sum * old + weights * fresh;
    top = higher;
  }
  copy_wait<0>();

  // The warps' sums, each over the ring that it needs no more.
  sum = head_sum(sum);
  if (t == 0) {
    area->top[warp][g] = top;
    area->sum[warp][g] = sum;
  }
  __syncwarp();
  float* const mine = reinterpret_cast<float*>(w.ring);
  static_assert(sizeof(w.ring) >= INT8_HEADS * DIM * sizeof(float), "sums in the ring");
#pragma unroll
  for (int i = 0; i < DIM / 8; i++) {
    mine[g * DIM + column_of<DIM>(2 * t, i / 4, i % 4)] = acc[i][0];
    mine[g * DIM + column_of<DIM>(2 * t + 1, i / 4, i % 4)] = acc[i][1];
  }
  __syncthreads();
  float* const part = ptr<float>(p.parts) + static_cast<int64_t>(blockIdx.x) * INT8_HEADS * (2 + DIM);
  for (int i = threadIdx.x; i < INT8_HEADS * DIM; i += TILE_ROWS) {
    const int h = i / DIM, d = i % DIM;
    float highest = NEG_INF, x = 0, s = 0;
    for (int k = 0; k < 4; k++) highest = fmaxf(highest, area->top[k][h]);
    for (int k = 0; k < 4; k++) {
      const float f = pow2_difference(area->top[k][h], highest);
      x += reinterpret_cast<const float*>(area->warp[k].ring)[i] * f;
      s += area->sum[k][h] * f;
    }
    part[h * (2 + DIM) + 2 + d] = x;
    if (d == 0) {
      part[h * (2 + DIM)] = highest;
      part[h * (2 + DIM) + 1] = s;
    }
  }
}

}  // namespace kvist

// Attention of 8 heads over one piece of PLANES; other pieces are left to the kernels that know them.
// head_dim and head_dim_v are in the name. grid: pieces; block: 128; shared: Int8Area. Reads the packed
// rows once, and 1/32 as many descriptors; writes 8 * (2 + head_dim_v) floats a piece.
#define KVIST_ATTEND_INT8(DIM)                                                          \
  extern "C" __global__ void __launch_bounds__(128, 3) kvist_attend_int8_d##DIM(        \
      const AttendParams p) {                                                           \
    if (ptr<const Piece>(p.pieces)[blockIdx.x].rotated_v == PLANES) {                   \
      kvist::attend_int8<DIM>(p);                                                       \
    }                                                                                   \
  }
KVIST_ATTEND_INT8(64)
KVIST_ATTEND_INT8(128)
