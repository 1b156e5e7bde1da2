// SPDX-License-Identifier: Apache-2.0
//
// Exhaustive search: inner products of queries with packed rows, and the largest of them.
//
// A product and its row become one 64-bit key, larger for larger products and then for smaller
// rows, so that the largest keys are the hits in order, whatever order they are found in. Key 0 is
// nothing: products that are not numbers.
#include "dot.cuh"

namespace kvist {

// Floats to integers of the same order; -0 counts as 0.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t b = __float_as_uint(x + 0.0f);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}

__device__ __forceinline__ uint64_t hit_key(float product, uint32_t row) {
  if (product != product) return 0;
  return static_cast<uint64_t>(ordered(product)) << 32 | (0xffffffffu - row);
}

}  // namespace kvist

// Products of 32 rows of a side with some queries. grid: items; block: 32; shared: 4 *
// stride + 64 floats. Reads the packed rows once for 4 queries; writes 8 bytes a product.
extern "C" __global__ void __launch_bounds__(32) kvist_scan(const ScanParams p) {
  KVIST_SHARED(float, shared);
  const int H = 4, lane = threadIdx.x;
  float* const book = shared;
  float* const q = shared + 64;
  for (int i = lane; i < BOOK_FLOATS; i += 32) book[i] = kvist_book[i];
  const ScanItem item = ptr<const ScanItem>(p.items)[blockIdx.x];
  const ScanSide s = ptr<const ScanSide>(p.sides)[item.side];
  const int r = item.row0 + lane;
  const bool have = r < s.rows;
  const kvist::View rows = kvist::view_of(s.data, s.format, s.rows, p.dim, book);
  float unit = 1;
  if (have) unit = row_unit(ptr<const uint8_t>(s.data), s.format, s.form, s.rows, p.dim, r);
  const float* from = ptr<const float>(p.q) + static_cast<int64_t>(s.basis) * p.queries * p.stride;
#pragma unroll 1
  for (int first = 0; first < item.queries; first += H) {
    const int n = min(H, item.queries - first);
    const float* src = from + static_cast<int64_t>(item.query0 + first) * p.stride;
    __syncwarp();
    for (int i = lane; i < H * p.stride; i += 32) q[i] = i < n * p.stride ? src[i] : 0;
    __syncwarp();
    float dot[H];
    if (have) kvist::dot_row<H>(rows, s.format, p.dim, r, q, p.stride, dot);
#pragma unroll
    for (int h = 0; h < H; h++) {
      if (h >= n) continue;
      const int64_t at = static_cast<int64_t>(item.query0 + first + h) * p.wave + item.at + lane;
      ptr<uint64_t>(p.out)[at] = have ? kvist::hit_key(dot[h] * unit, item.at + lane) : 0;
    }
  }
}

// The k largest of every TOP_KEYS keys of a query, in order, by a bitonic sort. grid: lists,
// queries; block: 256; shared: TOP_KEYS keys. k is at most half of them, so that lists shrink.
extern "C" __global__ void __launch_bounds__(256) kvist_top(const TopParams p) {
  KVIST_SHARED(uint64_t, key);
  const int t = threadIdx.x;
  const uint64_t* in = ptr<const uint64_t>(p.in) + static_cast<int64_t>(blockIdx.y) * p.n;
  const int start = blockIdx.x * TOP_KEYS;
  for (int i = t; i < TOP_KEYS; i += 256) key[i] = start + i < p.n ? in[start + i] : 0;
  __syncthreads();
  for (int size = 2; size <= TOP_KEYS; size *= 2) {
    for (int step = size / 2; step; step /= 2) {
      for (int i = t; i < TOP_KEYS / 2; i += 256) {
        const int a = (i & ~(step - 1)) << 1 | (i & (step - 1)), b = a + step;
        const bool falling = (a & size) == 0;
        const uint64_t x = key[a], y = key[b];
        if ((x < y) == falling) {
          key[a] = y;
          key[b] = x;
        }
      }
      __syncthreads();
    }
  }
  uint64_t* out = ptr<uint64_t>(p.out) + (static_cast<int64_t>(blockIdx.y) * p.lists + blockIdx.x) * p.k;
  for (int i = t; i < p.k; i += 256) out[i] = key[i];
}
