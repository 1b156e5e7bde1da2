// SPDX-License-Identifier: Apache-2.0
//
// Twins of the instructions of src/int8.cuh; see tensor.cc.
#pragma once
#include <cstdint>

namespace emu {

uint32_t prmt(uint32_t a, uint32_t b, uint32_t s);
void mma_int8(int c[4], const uint32_t a[4], const uint32_t b[2], bool signed_a);

// Offsets in dynamic shared memory stand for its addresses.
uint32_t shared_offset(const void* p);
void ldmatrix(uint32_t* r, int n, uint32_t row, bool transposed);
void cp_async(uint32_t to, const void* from, unsigned bytes);
void cp_commit();
void cp_wait(unsigned left);

// Forgets the copies of the thread block before.
void reset_copies(size_t threads);

}  // namespace emu
