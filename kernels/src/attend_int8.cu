// SPDX-License-Identifier: Apache-2.0
//
// The loops of attention with integer products, and their entries; how it works is in
// attend_int8.cuh.
#include "attend_int8.cuh"

namespace kvist {

// The head of a lane: g of (g, t).
struct Head {
  float unit;    // of a product, with the scale of scores
  float energy;
  float shift;   // what the mean of K adds to a score, with the scale
  int64_t pos;
  uint64_t mean; // of K that shift is for
};

// What a unit's queries see of positions, if there are any: those that all see need no test.
struct Sight {
  int64_t first, last;  // of its queries
};

// The terms of this lane's row of a sub-tile. Returns whether some head may not see some row.
template <int DIM>
__device__ __forceinline__ bool row_terms_int8(const AttendParams& p, WarpArea<DIM>& w, int at, int slot,
                                               const Sight& sight) {
  const int lane = threadIdx.x & 31;
  const Source& s = w.source[at];
  RowTerm term = {0, NEG_INF, 0, NEG_INF};
  bool seen = true;
  if (lane < s.rows) {
    const BlockDesc& b = ptr<const BlockDesc>(p.blocks)[s.block];
    const int r = s.row0 + lane;
    const RowTerms t = row_terms(p, b, r);
    term.unit = t.unit;
    term.add = t.hidden ? NEG_INF : t.add * LOG2E;
    term.noise = t.noise * LOG2E;
    term.length = log2f(row_unit(ptr<const uint8_t>(b.v), b.v_format, b.v_form, b.rows, DIM, r));
    if (p.pos) {
      w.pos[lane] = t.pos;
      seen = sight.first >= t.pos && (p.window <= 0 || sight.last - t.pos < p.window);
    }
  }
  w.terms[lane] = term;
  w.length[slot][lane] = term.length;
  return __any_sync(FULL_MASK, !seen);
}

// <q, mean> of the lane's head, which 4 lanes share.
template <int DIM>
__device__ __forceinline__ float shift_of(const float* q, uint64_t mean, int t) {
  const uint16_t* const m = ptr<const uint16_t>(mean);
  float s = 0;
  for (int d = t; d < DIM; d += 4) s += q[d] * half_to_float(__ldg(m + d));
  s += __shfl_xor_sync(FULL_MASK, s, 1);
  return s + __shfl_xor_sync(FULL_MASK, s, 2);
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
__device__ __forceinline__ void scores_int8(const AttendParams& p, WarpArea<DIM>& w, const int c[4][4],
                                            const Head& head, bool hidden, int slot, float* top,
                                            float* peak) {
  const int lane = threadIdx.x & 31, t = lane % 4;
  float s[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int m = DIM == 64 ? i / 4 * 2 + i % 2 : i / 2, j = DIM == 64 ? i / 2 % 2 : i % 2;
    const int row = row_of<DIM>(t, i);
    const RowTerm term = w.terms[row];
    float x = static_cast<float>(c[m][j] * 256 + c[m][2 + j]) * term.unit;
    x = x * head.unit + head.shift;
    if (p.softcap > 0) x = p.softcap * tanhf(x / p.softcap);
    x = x * LOG2E + (term.add - head.energy * term.noise);
    if (hidden) {
      const int64_t d = head.pos - w.pos[row];
      if (d < 0 || (p.window > 0 && d >= p.window)) x = NEG_INF;
    }
    s[i] = x;
    *top = fmaxf(*top, x);
    *peak = fmaxf(*peak, x + term.length);
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

__device__ __forceinline__ void load_table(const uint32_t (*tables)[4], int format, uint32_t table[4]) {
  const uint4 x = *reinterpret_cast<const uint4*>(tables[format - LM1]);
  table[0] = x.x, table[1] = x.y, table[2] = x.z, table[3] = x.w;
}

// Over the 4 lanes of a head.
__device__ __forceinline__ float head_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 1));
  return fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 2));
}

__device__ __forceinline__ float head_sum(float x) {
  x += __shfl_xor_sync(FULL_MASK, x, 1);
  return x + __shfl_xor_sync(FULL_MASK, x, 2);
}

// Brings the unit's queries into the variant of the piece, and makes digits of them.
template <int DIM>
__device__ __forceinline__ void ready_int8(const AttendParams& p, const Unit& u, Int8Area<DIM>& a,
                                           int variant) {
  if (threadIdx.x < 16) {
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
  split_queries_int8(a, l.rotated, u.heads);
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
  if (lane < tiles) find_source<DIM>(p, subs[lane * 4 + warp], &w.source[lane]);

  Head head = {0, 0, 0, 0, 0};
  Sight sight = {0, 0};
  if (g < u.heads) {
    head.unit = area->unit[g] * p.scale;
    head.energy = area->energy[g];
  }
  if (p.pos) {
    const int64_t* const pos = ptr<const int64_t>(p.pos);
    sight.first = sight.last = pos[u.head0 / p.group];
    for (int h = 1; h < u.heads; h++) {
      const int64_t x = pos[(u.head0 + h) / p.group];
      sight.first = min(sight.first, x);
      sight.last = max(sight.last, x);
    }
    head.pos = pos[(u.head0 + min(g, u.heads - 1)) / p.group];
  }
  __syncwarp();

  const Shared ring = shared_address(w.ring);
  Walk walk = {0, 0, tiles, false};
  for (int i = 0; i < STAGES - 1; i++) fetch_planes(w, ring, i, walk);
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
    float most = NEG_INF, peak = NEG_INF;
#pragma unroll 1
    for (int i = 0; i < n; i++, step++) {
      const Source& s = w.source[first + i];
      const bool hidden = row_terms_int8(p, w, first + i, i, sight);
      if (s.rows > 0) {
        const uint64_t mean = ptr<const BlockDesc>(p.blocks)[s.block].mean_k;
        if (mean != head.mean) {
          head.mean = mean;
          head.shift = mean ? shift_of<DIM>(area->plain + g * DIM, mean, t) * p.scale : 0;
        }
      }
      copy_wait<STAGES - 2>();
      __syncwarp();
      const Shared at = ring + step % STAGES * sizeof(w.ring[0]);
      int c[4][4];
      load_table(area->table, s.rows > 0 ? s.k_format : LM2, table);
      switch (s.rows > 0 ? s.k_format : LM2) {
        case LM1: dots_int8<DIM, 1>(digits, table, at, c); break;
        case LM2: dots_int8<DIM, 2>(digits, table, at, c); break;
        case LM3: dots_int8<DIM, 3>(digits, table, at, c); break;
        default: dots_int8<DIM, 4>(digits, table, at, c);
      }
      __syncwarp();  // the warp has read the planes
      fetch_planes(w, ring, (step + STAGES - 1) % STAGES, walk);
      scores_int8(p, w, c, head, hidden, i, &most, &peak);
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
      const Shared at = ring + step % STAGES * sizeof(w.ring[0]);
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
      load_table(area->table, s.rows > 0 ? s.v_format : LM2, table);
      switch (s.rows > 0 ? s.v_format : LM2) {
        case LM1: weigh_int8<DIM, 1>(a, table, at, total); break;
        case LM2: weigh_int8<DIM, 2>(a, table, at, total); break;
        case LM3: weigh_int8<DIM, 3>(a, table, at, total); break;
        default: weigh_int8<DIM, 4>(a, table, at, total);
      }
      __syncwarp();
      fetch_planes(w, ring, (step + STAGES - 1) % STAGES, walk);
    }
    // Sums of integers below 2^24 are exact in float32.
    const float higher = fmaxf(top, now);
    const float old = pow2_difference(top, higher), fresh = pow2_difference(now, higher);
    const float unit = fresh * exp2f(least - less) / WEIGHT_TOP;
#pragma unroll
    for (int i = 0; i < DIM / 8; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float x = static_cast<float>(total[i][j]) * 256 + static_cast<float>(total[i][2 + j]);
        acc[i][j] = acc[i][j] * old + x * unit;
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
