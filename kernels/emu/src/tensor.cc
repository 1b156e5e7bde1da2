// SPDX-License-Identifier: Apache-2.0
//
// Twins of the instructions of src/int8.cuh, as the PTX ISA defines them. Integers have no
// rounding, so these give the bits of a GPU.
//
// A copy to shared memory may land at any time between its start and the wait for it. Schedules with
// an odd seed let it land at once, the others at the wait: the first shows a copy into bytes that
// somebody still reads, the second a read without a wait.
//
// A copy that ends outside of the launched shared memory, and addresses that are not aligned, end
// the kernel.
#include "fiber.h"
#include "tensor.h"

namespace emu {

namespace {

struct Copy {
  uint32_t to;
  const void* from;
  unsigned bytes;
};

// The copies that a thread has started and not waited for: groups, the open one last.
std::vector<std::vector<std::vector<Copy>>> copies;

std::vector<std::vector<Copy>>& mine() { return copies[current->warp * 32 + current->lane]; }

void land(const Copy& c) { memcpy(shared + c.to, c.from, c.bytes); }

void check_shared(uint32_t at, unsigned bytes, unsigned align) {
  if (at % align != 0) trap("a misaligned address in shared memory");
  if (at + bytes > shared_size()) trap("an address beyond the shared memory of the launch");
}

}  // namespace

uint32_t prmt(uint32_t a, uint32_t b, uint32_t s) {
  const uint64_t from = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t n = s >> 4 * i & 15;
    uint32_t v = from >> 8 * (n & 7) & 255;
    if (n & 8) v = v & 128 ? 255 : 0;
    r |= v << 8 * i;
  }
  return r;
}

void mma_int8(int c[4], const uint32_t a[4], const uint32_t b[2], bool signed_a) {
  uint32_t words[6];
  memcpy(words, a, 16);
  memcpy(words + 4, b, 8);
  const void* const* lanes = show(words);
  const unsigned g = current->lane / 4, t = current->lane % 4;
  int sum[4] = {0, 0, 0, 0};
  for (unsigned at = 0; at < 4; at++) {  // of the lanes that hold row g, and columns 2t and 2t + 1
    const auto* x = static_cast<const uint32_t*>(lanes[4 * g + at]);
    const auto* y = static_cast<const uint32_t*>(lanes[8 * t + at]) + 4;
    const auto* z = static_cast<const uint32_t*>(lanes[8 * t + 4 + at]) + 4;
    for (int half = 0; half < 2; half++) {
      for (int k = 0; k < 32; k += 8) {
        const uint8_t up = x[2 * half] >> k, down = x[2 * half + 1] >> k;
        const int left = static_cast<int8_t>(y[half] >> k), right = static_cast<int8_t>(z[half] >> k);
        const int top = signed_a ? static_cast<int8_t>(up) : up;
        const int bottom = signed_a ? static_cast<int8_t>(down) : down;
        sum[0] += top * left;
        sum[1] += top * right;
        sum[2] += bottom * left;
        sum[3] += bottom * right;
      }
    }
  }
  for (int i = 0; i < 4; i++) {  // wraps, as the instruction does without .satfinite
    c[i] = static_cast<int>(static_cast<uint32_t>(c[i]) + static_cast<uint32_t>(sum[i]));
  }
  warp_collective(SYNCWARP, 0xffffffffu, 0, 0);  // before anybody's operands go
}

uint32_t shared_offset(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - shared);
}

void ldmatrix(uint32_t* r, int n, uint32_t row, bool transposed) {
  if (static_cast<int>(current->lane) < 8 * n) check_shared(row, 16, 16);
  const void* const* lanes = show(&row);
  const unsigned g = current->lane / 4, t = current->lane % 4;
  for (int i = 0; i < n; i++) {
    const auto at = [&](unsigned j) { return shared + *static_cast<const uint32_t*>(lanes[8 * i + j]); };
    if (transposed) {
      uint16_t lo, hi;
      memcpy(&lo, at(2 * t) + 2 * g, 2);
      memcpy(&hi, at(2 * t + 1) + 2 * g, 2);
      r[i] = lo | static_cast<uint32_t>(hi) << 16;
    } else {
      memcpy(&r[i], at(g) + 4 * t, 4);
    }
  }
  warp_collective(SYNCWARP, 0xffffffffu, 0, 0);
}

void cp_async(uint32_t to, const void* from, unsigned bytes) {
  check_shared(to, bytes, bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) trap("a copy from a misaligned address");
  const Copy c = {to, from, bytes};
  if (schedule_seed() & 1) return land(c);
  auto& groups = mine();
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(c);
}

void cp_commit() {
  auto& groups = mine();
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void cp_wait(unsigned left) {
  auto& groups = mine();
  while (groups.size() > left + 1) {  // the open group is not waited for
    for (const Copy& c : groups.front()) land(c);
    groups.erase(groups.begin());
  }
}

void reset_copies(size_t threads) {
  copies.resize(std::max(copies.size(), threads));
  for (auto& groups : copies) groups.clear();
}

}  // namespace emu
