// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

#include "textflag.h"

DATA half<>+0(SB)/4, $0x3f000000 // 0.5
GLOBL half<>(SB), RODATA|NOPTR, $4

// func quantizeGroupAVX2(t *groupTables, y *float32, scale *int16, codes *uint16, shift int32, inv float32) (sum, slow uint32)
// Requires: AVX2
TEXT ·quantizeGroupAVX2(SB), NOSPLIT, $0-48
	MOVQ t+0(FP), R8
	MOVQ y+8(FP), SI
	MOVQ scale+16(FP), DX
	MOVQ codes+24(FP), DI
	MOVQ (R8), R9   // down
	MOVQ 8(R8), R10 // most

	VPCMPEQD Y15, Y15, Y15 // all ones

	// Components that are not coded.
	VPMOVSXWD    (DX), Y0
	VPBROADCASTD 24(R8), Y1
	VPCMPGTD     Y0, Y1, Y14 // dead: the prior scale is below

	// Y0: the scale above that of class 0. Y13: slow, because it is above all classes.
	MOVL         shift+32(FP), AX
	VMOVD        AX, X1
	VPBROADCASTD X1, Y1
	VPADDD       Y1, Y0, Y0
	VPBROADCASTD 16(R8), Y1
	VPSUBD       Y1, Y0, Y0
	VPBROADCASTD 20(R8), Y1
	VPCMPGTD     Y1, Y0, Y13

	// Y1: the class.
	VPMINSD Y1, Y0, Y0
	VPXOR   Y2, Y2, Y2
	VPMAXSD Y2, Y0, Y0
	VPSRLD  $1, Y0, Y1

	// Y2: the value, in steps; Y3: without its sign; Y4: its sign, 0 or -1. A value as large as the largest
	// level, or not a number, is slow.
	VBROADCASTSS inv+36(FP), Y2
	VMULPS       (SI), Y2, Y2
	VPSRLD       $1, Y15, Y3
	VPAND        Y3, Y2, Y3
	VPSRAD       $31, Y2, Y4
	VBROADCASTSS 40(R8), Y5
	VCMPPS       $1, Y5, Y3, Y5 // ordered and less
	VPANDN       Y15, Y5, Y5
	VPOR         Y5, Y13, Y13

	// Those that are slow or dead go on as zeros.
	VPOR   Y13, Y14, Y6
	VPANDN Y3, Y6, Y3

	// Y7: the nearest level, then the next below as long as that costs less.
	VBROADCASTSS half<>(SB), Y7
	VADDPS       Y7, Y3, Y7
	VCVTTPS2DQ   Y7, Y7
	VPSLLD       $5, Y1, Y8 // where the class begins

down:
	VPADDD     Y7, Y8, Y9
	VMOVDQA    Y15, Y10
	VGATHERDPS Y10, (R9)(Y9*4), Y11
	VCMPPS     $1, Y11, Y3, Y11
	VPADDD     Y11, Y7, Y7
	VPTEST     Y11, Y11
	JNZ        down

	// Levels above the tables of their class are slow. Few are large enough to be.
	VPBROADCASTD 32(R8), Y9
	VPCMPGTD     Y9, Y7, Y9
	VPTEST       Y9, Y9
	JZ           symbols
	VMOVDQA      Y15, Y10
	VPGATHERDD   Y10, (R10)(Y1*4), Y11
	VPCMPGTD     Y11, Y7, Y11
	VPOR         Y11, Y13, Y13
	VPANDN       Y7, Y11, Y7

symbols:
	VPXOR        Y4, Y7, Y5
	VPSUBD       Y4, Y5, Y5 // the level with its sign
	VPBROADCASTD 28(R8), Y9
	VPMULLD      Y9, Y1, Y9
	VPADDD       Y9, Y5, Y5
	VPBROADCASTD 36(R8), Y9
	VPADDD       Y9, Y5, Y5
	VPSRLD       $16, Y14, Y9
	VPBLENDVB    Y14, Y9, Y5, Y5 // 0xffff where dead
	VEXTRACTI128 $1, Y5, X9
	VPACKUSDW    X9, X5, X5
	VMOVDQU      X5, (DI)

	// The sum of the levels, each in the low byte of four.
	VPXOR        Y2, Y2, Y2
	VPSADBW      Y2, Y7, Y7
	VEXTRACTI128 $1, Y7, X9
	VPADDQ       X9, X7, X7
	VPSHUFD      $0xee, X7, X9
	VPADDQ       X9, X7, X7
	VMOVD        X7, AX
	VPANDN       Y13, Y14, Y13
	VMOVMSKPS    Y13, BX
	VZEROUPPER
	MOVL         AX, sum+40(FP)
	MOVL         BX, slow+44(FP)
	RET
