// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

#include "textflag.h"

// One term: eight columns of the row times Y8, rounded, then added. No VFMADD: the product must be
// rounded by itself.
#define TERM(off, tmp, acc) \
	VMULPS off(SI), Y8, tmp \
	VADDPS tmp, acc, acc

// func accumulate64AVX2(y, m *float32, stride int, c *float32, step, n int)
// Requires: AVX2
TEXT ·accumulate64AVX2(SB), NOSPLIT, $0-48
	MOVQ    y+0(FP), DI
	MOVQ    m+8(FP), SI
	MOVQ    stride+16(FP), R8
	MOVQ    c+24(FP), DX
	MOVQ    step+32(FP), R9
	MOVQ    n+40(FP), CX
	VMOVUPS (DI), Y0         // the 64 sums stay in registers
	VMOVUPS 32(DI), Y1
	VMOVUPS 64(DI), Y2
	VMOVUPS 96(DI), Y3
	VMOVUPS 128(DI), Y4
	VMOVUPS 160(DI), Y5
	VMOVUPS 192(DI), Y6
	VMOVUPS 224(DI), Y7

loop:
	MOVL (DX), AX
	ADDL AX, AX // drops the sign: zero for 0 and -0
	JZ   next
	VBROADCASTSS (DX), Y8
	TERM(0, Y9, Y0)
	TERM(32, Y10, Y1)
	TERM(64, Y11, Y2)
	TERM(96, Y12, Y3)
	TERM(128, Y9, Y4)
	TERM(160, Y10, Y5)
	TERM(192, Y11, Y6)
	TERM(224, Y12, Y7)

next:
	ADDQ R8, SI
	ADDQ R9, DX
	DECQ CX
	JNZ  loop
	VMOVUPS Y0, (DI)
	VMOVUPS Y1, 32(DI)
	VMOVUPS Y2, 64(DI)
	VMOVUPS Y3, 96(DI)
	VMOVUPS Y4, 128(DI)
	VMOVUPS Y5, 160(DI)
	VMOVUPS Y6, 192(DI)
	VMOVUPS Y7, 224(DI)
	VZEROUPPER
	RET

// func subtractAVX2(y, x *float64, a float64, n int)
// Requires: AVX2
TEXT ·subtractAVX2(SB), NOSPLIT, $0-32
	MOVQ         y+0(FP), DI
	MOVQ         x+8(FP), SI
	VBROADCASTSD a+16(FP), Y8
	MOVQ         n+24(FP), CX
	XORQ         AX, AX

subtract16:
	VMULPD  (SI)(AX*8), Y8, Y0
	VMULPD  32(SI)(AX*8), Y8, Y1
	VMULPD  64(SI)(AX*8), Y8, Y2
	VMULPD  96(SI)(AX*8), Y8, Y3
	VMOVUPD (DI)(AX*8), Y4
	VMOVUPD 32(DI)(AX*8), Y5
	VMOVUPD 64(DI)(AX*8), Y6
	VMOVUPD 96(DI)(AX*8), Y7
	VSUBPD  Y0, Y4, Y4
	VSUBPD  Y1, Y5, Y5
	VSUBPD  Y2, Y6, Y6
	VSUBPD  Y3, Y7, Y7
	VMOVUPD Y4, (DI)(AX*8)
	VMOVUPD Y5, 32(DI)(AX*8)
	VMOVUPD Y6, 64(DI)(AX*8)
	VMOVUPD Y7, 96(DI)(AX*8)
	ADDQ    $16, AX
	CMPQ    AX, CX
	JLT     subtract16
	VZEROUPPER
	RET
