// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

#include "textflag.h"

// One term of one row: sixteen columns times the factor, rounded, then added. No VFMADD: the product must be rounded
// by itself.
#define TERM(factor, col, tmp, acc) \
	VMULPS factor, col, tmp \
	VADDPS tmp, acc, acc

// func accumulatePairAVX512(y0, y1, m *float32, stride int, c0, c1 *float32, n int)
// Requires: AVX512F
//
// Two rows share the columns that are read: those come from the second-level cache, which is the slower part.
TEXT ·accumulatePairAVX512(SB), NOSPLIT, $0-56
	MOVQ    y0+0(FP), DI
	MOVQ    y1+8(FP), R10
	MOVQ    m+16(FP), SI
	MOVQ    stride+24(FP), R8
	MOVQ    c0+32(FP), DX
	MOVQ    c1+40(FP), R11
	MOVQ    n+48(FP), CX
	VMOVUPS (DI), Z0         // the 64 sums of each row stay in registers
	VMOVUPS 64(DI), Z1
	VMOVUPS 128(DI), Z2
	VMOVUPS 192(DI), Z3
	VMOVUPS (R10), Z4
	VMOVUPS 64(R10), Z5
	VMOVUPS 128(R10), Z6
	VMOVUPS 192(R10), Z7

loop:
	VBROADCASTSS (DX), Z8
	VBROADCASTSS (R11), Z9
	VMOVUPS      (SI), Z10
	VMOVUPS      64(SI), Z11
	VMOVUPS      128(SI), Z12
	VMOVUPS      192(SI), Z13
	TERM(Z8, Z10, Z14, Z0)
	TERM(Z9, Z10, Z15, Z4)
	TERM(Z8, Z11, Z16, Z1)
	TERM(Z9, Z11, Z17, Z5)
	TERM(Z8, Z12, Z18, Z2)
	TERM(Z9, Z12, Z19, Z6)
	TERM(Z8, Z13, Z20, Z3)
	TERM(Z9, Z13, Z21, Z7)
	ADDQ R8, SI
	ADDQ $4, DX
	ADDQ $4, R11
	DECQ CX
	JNZ  loop
	VMOVUPS Z0, (DI)
	VMOVUPS Z1, 64(DI)
	VMOVUPS Z2, 128(DI)
	VMOVUPS Z3, 192(DI)
	VMOVUPS Z4, (R10)
	VMOVUPS Z5, 64(R10)
	VMOVUPS Z6, 128(R10)
	VMOVUPS Z7, 192(R10)
	VZEROUPPER
	RET
