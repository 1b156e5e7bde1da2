// SPDX-License-Identifier: Apache-2.0
//
// Checks of the twins of tensor.cc, through the functions that kernels call, against the formulas of
// the PTX ISA written out by row and column. Not part of the driver: tests call cuEmuTwins.
#include "../../src/int8.cuh"

#include "fiber.h"

namespace {

struct TwinParams {
  int what;
  long* wrong;
};

// A byte that depends on its place.
uint8_t some(int matrix, int row, int column) {
  uint32_t x = static_cast<uint32_t>(matrix * 7919 + row * 131 + column) * 2654435761u;
  x ^= x >> 15;
  return static_cast<uint8_t>((x * 2246822519u) >> 20);
}

// Fragments of m16n8k32, by the formulas of the PTX ISA.
void check_products(bool signed_a, long* wrong) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  for (int i = 0; i < 16; i++) {
    const int row = (i < 4 || (i >= 8 && i < 12)) ? g : g + 8;
    const int column = t * 4 + (i & 3) + (i >= 8 ? 16 : 0);
    a[i / 4] |= static_cast<uint32_t>(some(0, row, column)) << 8 * (i & 3);
  }
  for (int i = 0; i < 8; i++) {
    const int row = t * 4 + (i & 3) + (i >= 4 ? 16 : 0);
    b[i / 4] |= static_cast<uint32_t>(some(1, row, g)) << 8 * (i & 3);
  }
  int c[4] = {1000, -1000, 7, 0x7fffffff};
  const int before[4] = {c[0], c[1], c[2], c[3]};
  if (signed_a) kvist::mma_s8(c, a, b); else kvist::mma_u8(c, a, b);
  for (int i = 0; i < 4; i++) {
    const int row = g + (i >= 2 ? 8 : 0), column = 2 * t + (i & 1);
    int64_t sum = before[i];
    for (int k = 0; k < 32; k++) {
      const int x = some(0, row, k), y = static_cast<int8_t>(some(1, k, column));
      sum += (signed_a ? static_cast<int8_t>(x) : x) * y;
    }
    *wrong += static_cast<uint32_t>(sum) != static_cast<uint32_t>(c[i]);
  }
}

template <int N>
void check_matrices(long* wrong) {
  KVIST_SHARED(unsigned char, s);
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < N * 256; i += 32) s[i] = some(2, i / 16, i % 16);
  __syncwarp();
  // Rows of 32 bytes, of which the matrices take the second half or the first.
  const auto place = [&](int matrix, int row) { return (matrix * 8 + row) * 32 + (row & 1) * 16; };
  uint32_t plain[N], turned[N];
  const kvist::Shared at = kvist::shared_address(s) + place(lane / 8 % N, lane % 8);
  kvist::load_matrices<N>(plain, at);
  kvist::load_matrices_t<N>(turned, at);
  const auto byte = [&](int i) { return static_cast<uint32_t>(s[i]); };
  for (int i = 0; i < N; i++) {
    uint32_t want = 0;
    for (int k = 0; k < 4; k++) want |= byte(place(i, g) + 4 * t + k) << 8 * k;
    *wrong += plain[i] != want;
    want = 0;
    for (int k = 0; k < 4; k++) want |= byte(place(i, 2 * t + k / 2) + 2 * g + k % 2) << 8 * k;
    *wrong += turned[i] != want;
  }
}

void check_bytes(long* wrong) {
  const uint32_t a = 0x83427fu + threadIdx.x * 0x01030507u, b = 0xf0e1807fu ^ threadIdx.x;
  for (uint32_t s = 0; s < 65536; s += 37) {
    const uint32_t got = kvist::prmt(a, b, s | threadIdx.x << 16);
    for (int i = 0; i < 4; i++) {
      const int n = s >> 4 * i & 15;
      uint8_t want = static_cast<uint8_t>(((n & 4) ? b : a) >> 8 * (n & 3));
      if (n & 8) want = want >= 128 ? 0xff : 0;
      *wrong += want != static_cast<uint8_t>(got >> 8 * i);
    }
  }
  *wrong += kvist::select(0xff00ff00u, a, b) != ((a & 0xff00ff00u) | (b & 0x00ff00ffu));
  *wrong += kvist::rotate_right(0x80000001u, 1) != 0xc0000000u;
  *wrong += kvist::rotate_right(a, 0) != a;
  *wrong += kvist::fast_exp2(-3) != 0.125f || kvist::fast_exp2(NEG_INF) != 0;
}

// Three groups of copies: after a wait for all but one, two are there. early: copies land at once.
void check_copies(bool early, long* wrong) {
  KVIST_SHARED(unsigned char, s);
  alignas(16) static unsigned char source[3 * 512];
  const int lane = threadIdx.x;
  for (int i = lane; i < 3 * 512; i += 32) source[i] = some(3, i / 16, i % 16);
  __syncwarp();
  for (int group = 0; group < 3; group++) {
    const kvist::Shared to = kvist::shared_address(s) + group * 512 + lane * 16;
    if (group == 1) {
      kvist::copy_async<8>(to, source + group * 512 + lane * 16);
      kvist::copy_async<8>(to + 8, source + group * 512 + lane * 16 + 8);
    } else {
      kvist::copy_async<16>(to, source + group * 512 + lane * 16);
    }
    kvist::copy_commit();
  }
  const auto there = [&](int group) { return !memcmp(s + group * 512, source + group * 512, 512); };
  __syncwarp();
  *wrong += there(0) != early;
  __syncwarp();
  kvist::copy_wait<1>();
  __syncwarp();
  *wrong += !there(0) || !there(1) || there(2) != early;
  __syncwarp();
  kvist::copy_wait<0>();
  __syncwarp();
  *wrong += !there(2);
}

void twins(const TwinParams p) {
  KVIST_SHARED(unsigned char, s);
  switch (p.what) {
    case 0: return check_products(true, p.wrong);
    case 1: return check_products(false, p.wrong);
    case 2: return check_matrices<4>(p.wrong);
    case 3: return check_matrices<2>(p.wrong);
    case 4: return check_bytes(p.wrong);
    case 5: return check_copies(false, p.wrong);
    case 6: return check_copies(true, p.wrong);
    case 7: return kvist::copy_async<16>(kvist::shared_address(s) + 8, p.wrong);
    case 8: return kvist::copy_async<16>(kvist::shared_address(s) + (8 << 10), p.wrong);
    default: uint32_t r[4]; return kvist::load_matrices<4>(r, kvist::shared_address(s) + 4);
  }
}

}  // namespace

// Runs check what; see twins. Returns the number of wrong results, or why the kernel was ended.
extern "C" __attribute__((visibility("default"))) const char* cuEmuTwins(int what) {
  static std::string text;
  long wrong = 0;
  const TwinParams p = {what, &wrong};
  const emu::KernelEntry k = {"twins", [](const void* q) { twins(*static_cast<const TwinParams*>(q)); },
                              sizeof p};
  text.clear();
  if (emu::run(k, {1, 1, 1}, {32, 1, 1}, &p, 8 << 10, what == 6 ? 1 : 0, &text) == emu::NO_FAULT) {
    text = std::to_string(wrong) + " wrong";
  }
  return text.c_str();
}
