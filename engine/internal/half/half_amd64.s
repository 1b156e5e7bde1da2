// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

#include "textflag.h"

DATA mask<>+0(SB)/4, $0x7f800000 // exponent of Inf and NaN
DATA mask<>+4(SB)/4, $0x7fffffff // all but the sign
DATA mask<>+8(SB)/4, $0x477fe000 // 65504
GLOBL mask<>(SB), RODATA|NOPTR, $12

// func widenAVX2(dst *float32, src *byte, n int) int
// Requires: AVX2, F16C
TEXT ·widenAVX2(SB), NOSPLIT, $0-32
	MOVQ         dst+0(FP), DI
	MOVQ         src+8(FP), SI
	MOVQ         n+16(FP), CX
	XORQ         AX, AX
	VPBROADCASTD mask<>+0(SB), Y7

widen8:
	VCVTPH2PS (SI)(AX*2), Y0
	VPAND     Y7, Y0, Y1
	VPCMPEQD  Y7, Y1, Y1
	VPTEST    Y1, Y1
	JNZ       widened
	VMOVUPS   Y0, (DI)(AX*4)
	ADDQ      $8, AX
	CMPQ      AX, CX
	JLT       widen8

widened:
	VZEROUPPER
	MOVQ AX, ret+24(FP)
	RET

// func narrowAVX2(dst *byte, src *float32, n int) int
// Requires: AVX2, F16C
TEXT ·narrowAVX2(SB), NOSPLIT, $0-32
	MOVQ         dst+0(FP), DI
	MOVQ         src+8(FP), SI
	MOVQ         n+16(FP), CX
	XORQ         AX, AX
	VPBROADCASTD mask<>+4(SB), Y6
	VPBROADCASTD mask<>+8(SB), Y7

narrow8:
	VMOVUPS   (SI)(AX*4), Y0
	VPAND     Y6, Y0, Y1
	VPCMPGTD  Y7, Y1, Y1 // as integers: what is larger than 65504, Inf and NaN too
	VPTEST    Y1, Y1
	JNZ       narrowed
	VCVTPS2PH $0, Y0, (DI)(AX*2) // to the nearest, ties to even
	ADDQ      $8, AX
	CMPQ      AX, CX
	JLT       narrow8

narrowed:
	VZEROUPPER
	MOVQ AX, ret+24(FP)
	RET

// func finiteAVX2(x *float32, n int) bool
// Requires: AVX2
TEXT ·finiteAVX2(SB), NOSPLIT, $0-17
	MOVQ         x+0(FP), SI
	MOVQ         n+8(FP), CX
	XORQ         AX, AX
	VPBROADCASTD mask<>+4(SB), Y7
	VPXOR        Y8, Y8, Y8
	VPXOR        Y9, Y9, Y9
	VPXOR        Y10, Y10, Y10
	VPXOR        Y11, Y11, Y11

finite32:
	// Without their signs, as integers, those that are not finite are the largest.
	VPAND   (SI)(AX*4), Y7, Y0
	VPAND   32(SI)(AX*4), Y7, Y1
	VPAND   64(SI)(AX*4), Y7, Y2
	VPAND   96(SI)(AX*4), Y7, Y3
	VPMAXUD Y0, Y8, Y8
	VPMAXUD Y1, Y9, Y9
	VPMAXUD Y2, Y10, Y10
	VPMAXUD Y3, Y11, Y11
	ADDQ    $32, AX
	CMPQ    AX, CX
	JLT     finite32

	VPMAXUD      Y8, Y9, Y8
	VPMAXUD      Y10, Y11, Y10
	VPMAXUD      Y8, Y10, Y8
	VPBROADCASTD mask<>+0(SB), Y7
	VPMAXUD      Y7, Y8, Y9
	VPCMPEQD     Y8, Y9, Y9 // as large as Inf, or larger
	VPTEST       Y9, Y9
	SETEQ        ret+16(FP)
	VZEROUPPER
	RET
