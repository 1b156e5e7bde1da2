// SPDX-License-Identifier: Apache-2.0
//
// The entries of attention that every device runs; how it works is in attend.cuh.
#include "attend.cuh"

// Attention of the heads of a unit over one piece. grid: pieces; block: 128.
// shared: kvist::Layout. Reads the packed rows once, and 1/32 as many descriptors; writes
// heads * (2 + head_dim_v) floats a piece.
#define KVIST_ATTEND(H)                                                                          \
  extern "C" __global__ void __launch_bounds__(128, 1) kvist_attend_h##H(const AttendParams p) { \
    kvist::attend<H>(p);                                                                         \
  }
KVIST_ATTEND(1)
KVIST_ATTEND(2)
KVIST_ATTEND(4)
KVIST_ATTEND(8)

namespace kvist {

// The sum of weights of a sub-tile for head h of its unit, relative to top. The pieces of a unit, and
// their tiles, follow one another; first is the first piece.
__device__ __forceinline__ double gain_of(const AttendParams& p, const Piece& first, int sub, int h,
                                          float top) {
  const int64_t at = first.gain0 + (sub - first.tile0 * 4);
  const float* const g = ptr<const float>(p.gains) + (at * p.unit_heads + h) * 2;
  return g[0] == 0 ? 0 : static_cast<double>(pow2_difference(g[1], top)) * g[0];
}

// Component d of the sum of V's means, weighted by the sub-tiles of some pieces.
__device__ __forceinline__ double sum_of_means(const AttendParams& p, const Piece* pieces, int n,
                                               int h, float top, int d) {
  double sum = 0;
  for (int s = pieces[0].tile0 * 4; s < pieces[n - 1].tile1 * 4; s++) {
    const int block = ptr<const SubTile>(p.tiles)[s].block;
    if (block < 0) continue;
    const uint64_t mean = ptr<const BlockDesc>(p.blocks)[block].mean_v;
    if (!mean) continue;
    const double g = gain_of(p, pieces[0], s, h, top);
    if (g != 0) sum += g * half_to_float(ptr<const uint16_t>(mean)[d]);
  }
  return sum;
}

}  // namespace kvist

// Combines the parts of one head, brings the sum in the rotated basis back, and adds the means of V.
// With masses, it writes those of the head.
// grid: units, heads of a unit; block: 128. shared: head_dim_v + 16 floats.
extern "C" __global__ void __launch_bounds__(128, 1) kvist_combine(const AttendParams p) {
  KVIST_SHARED(float, shared);
  const Unit u = ptr<const Unit>(p.units)[blockIdx.x];
  const int h = blockIdx.y, t = threadIdx.x, lane = t & 31;
  if (h >= u.heads) return;
  const int size = 2 + p.head_dim_v;
  const int64_t step = static_cast<int64_t>(p.unit_heads) * size;
  const float* part = ptr<const float>(p.parts) + u.part0 * step + static_cast<int64_t>(h) * size;
  const Piece* pieces = ptr<const Piece>(p.pieces) + u.part0;

  float top = NEG_INF;
  for (int i = t; i < u.parts; i += 128) {
    if (part[i * step + 1] != 0) top = fmaxf(top, part[i * step]);
  }
  for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, o));
  if (lane == 0) shared[t / 32] = top;
  __syncthreads();
  for (int i = 0; i < 4; i++) top = fmaxf(top, shared[i]);
  __syncthreads();

  double sum = 0;
  for (int i = 0; i < u.parts; i++) {
    const float s = part[i * step + 1];
    if (s != 0) sum += static_cast<double>(kvist::pow2_difference(part[i * step], top)) * s;
  }
  bool any_rotated = false;
  const int head = u.head0 + h;
  float* out = ptr<float>(p.out) + static_cast<int64_t>(head) * p.head_dim_v;
  float* const rotated = shared;  // [head_dim_v]
  for (int d = t; d < p.head_dim_v; d += 128) {
    double e = 0, r = 0;
    for (int i = 0; i < u.parts; i++) {
      if (part[i * step + 1] == 0) continue;
      const double x = static_cast<double>(kvist::pow2_difference(part[i * step], top)) *
                       part[i * step + 2 + d];
      if (pieces[i].rotated_v) r += x; else e += x;
    }
    if (u.v_means && sum != 0) e += kvist::sum_of_means(p, pieces, u.parts, h, top, d);
    out[d] = sum == 0 ? 0 : static_cast<float>(e / sum);
    rotated[d] = sum == 0 ? 0 : static_cast<float>(r / sum);
  }
  if (p.masses) {
    const EntryRange* const entries = ptr<const EntryRange>(p.entries) + u.entry0;
    float* const masses = ptr<float>(p.masses) + u.mass0 + static_cast<int64_t>(h) * u.entries;
    for (int i = t; i < u.entries; i += 128) {
      double m = 0;
      for (int s = entries[i].sub0; s < entries[i].sub1; s++) m += kvist::gain_of(p, pieces[0], s, h, top);
      masses[i] = sum == 0 ? 0 : static_cast<float>(m / sum);
    }
  }
  for (int i = 0; i < u.parts; i++) any_rotated |= pieces[i].rotated_v != 0;
  __syncthreads();
  if (any_rotated && t < 32) {
    rotate(rotated, p.head_dim_v, u.v_seed, true, lane);
    for (int d = lane; d < p.head_dim_v; d += 32) out[d] += rotated[d];
  }
  if (t == 0) {
    ptr<float>(p.lse)[head] =
        sum == 0 ? NEG_INF : static_cast<float>(top * 0.6931471805599453 + log(sum));
  }
}

// Attention that rows of blocks get. A warp takes 32 rows of one block and a range of the queries
// that list it. grid: items; block: 32; shared: 16 heads * (head_dim rounded up to 8) + 64 floats.
// Reads the packed rows of K once for 8 heads; writes 32 float64 an item.
extern "C" __global__ void __launch_bounds__(32, 1) kvist_relevance(const RelevanceParams p) {
  KVIST_SHARED(float, shared);
  const int H = 8, lane = threadIdx.x, stride = (p.head_dim + 7) / 8 * 8;
  float* const book = shared;
  float* const q = shared + 64;
  float* const plain = q + H * stride;  // turned, not in the metric
  for (int i = lane; i < BOOK_FLOATS; i += 32) book[i] = kvist_book[i];
  const RelevanceItem item = ptr<const RelevanceItem>(p.items)[blockIdx.x];
  const BlockDesc b = ptr<const BlockDesc>(p.blocks)[item.block];
  const int* users = ptr<const int>(p.users) + item.user0;
  const int r = item.row0 + lane;
  const bool have = r < b.rows;
  const Variant variant = ptr<const Variant>(p.variants)[item.variant];
  kvist::RowTerms terms = {0, 0, 0, 0, false};
  if (have) terms = kvist::row_terms(p, b, r);
  const kvist::View k = kvist::view_of(b.k, b.k_format, b.rows, p.head_dim, book);
  const int heads = item.users * p.group;
  double sum = 0;
#pragma unroll 1
  for (int first = 0; first < heads; first += H) {
    const int n = min(H, heads - first);
    __syncwarp();
    for (int i = lane; i < H * stride; i += 32) {
      const int h = i / stride, d = i % stride, at = first + h;
      q[i] = h < n && d < p.head_dim
                 ? ptr<const float>(p.q)[(static_cast<int64_t>(users[at / p.group]) * p.group +
                                          at % p.group) * p.head_dim + d]
                 : 0;
    }
    __syncwarp();
    if (variant.turn >= 0) {
      kvist::turn_queries(p, q, n, stride,
                          ptr<const float>(p.turns) +
                              static_cast<int64_t>(variant.turn) * 2 * p.pairs,
                          lane, 32);
      __syncwarp();
    }
    float shift[8], energy[8];
    if (b.mean_k || variant.metric >= 0) {
      for (int i = lane; i < H * stride; i += 32) plain[i] = q[i];
      __syncwarp();
    }
    if (variant.metric >= 0) {
      kvist::through_metric(p, variant, q, plain, n, stride, lane, 32);
      __syncwarp();
    }
#pragma unroll
    for (int h = 0; h < H; h++) {
      shift[h] = b.mean_k && h < n
                     ? kvist::dot_mean(plain + h * stride, b.mean_k, p.head_dim, lane)
                     : 0;
      energy[h] = h < n ? kvist::energy_of(q + h * stride, p.head_dim, lane) : 0;
    }
    __syncwarp();
    if (is_rotated(b.k_format)) {
      for (int h = 0; h < n; h++) rotate(q + h * stride, p.head_dim, item.seed, false, lane);
    }
    if (!have) continue;
    float dot[8];
    kvist::dot_row<8>(k, b.k_format, p.head_dim, r, q, stride, dot);
#pragma unroll
    for (int h = 0; h < H; h++) {
      if (h >= n) continue;
      const int query = users[(first + h) / p.group];
      const int64_t head = static_cast<int64_t>(query) * p.group + (first + h) % p.group;
      const float lse = ptr<const float>(p.lse)[head];
      if (lse == NEG_INF) continue;  // the query saw nothing
      const float s = kvist::row_score(p, terms, dot[h], shift[h], energy[h], query);
      if (s == NEG_INF) continue;
      const double w = static_cast<double>(exp2f((s - lse) * LOG2E));
      sum += p.power == 2 ? w * w : w;
    }
  }
  ptr<double>(p.out)[static_cast<int64_t>(blockIdx.x) * SUB_ROWS + lane] = sum;
}
