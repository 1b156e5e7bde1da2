// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

#include "textflag.h"

// SHIFT sets AX to 8*log2 of seen less what is expected: list points to it, by groups.
#define SHIFT(seen, list) \
	LZCNTQ  seen, BX         \
	SHLXQ   BX, seen, AX     \
	SHRQ    $57, AX          \
	ANDL    $63, AX          \
	MOVBLZX (R11)(AX*1), AX  \
	XORL    $63, BX          \
	LEAL    (AX)(BX*8), AX   \
	MOVQ    list(R9), CX     \
	SUBL    (CX)(DX*4), AX

// CONSTANT sets all of z to value.
#define CONSTANT(value, z) \
	MOVL         value, AX \
	VPBROADCASTD AX, z

// func quantizePairAVX512(t *groupTables, p *pairRows)
// Requires: AVX512F, AVX512BW, AVX512DQ, AVX512VL, BMI2, LZCNT
TEXT ·quantizePairAVX512(SB), NOSPLIT, $0-16
	MOVQ t+0(FP), R8
	MOVQ p+8(FP), R9

	// The thresholds of magnitudes 1, 2 and 3 by class.
	MOVQ    56(R8), AX
	VMOVUPS (AX), Z16
	VMOVUPS 64(AX), Z17
	VMOVUPS 128(AX), Z18
	VMOVUPS 192(AX), Z19
	VMOVUPS 256(AX), Z20
	VMOVUPS 320(AX), Z21

	VPBROADCASTD 20(R8), Z22 // the scale of the last class less that of the first
	VPBROADCASTD 24(R8), Z23 // the least scale that is coded
	VPBROADCASTD 32(R8), Z24 // no level up to it is above the tables
	VPBROADCASTD 36(R8), Z25 // the largest level
	VBROADCASTSS 40(R8), Z26 // the same as a number
	CONSTANT($1, Z27)
	CONSTANT($2, Z12)
	CONSTANT($3, Z13)
	CONSTANT($4, Z28)
	CONSTANT($0x3f000000, Z29) // 0.5
	CONSTANT($0x7fffffff, Z30)
	CONSTANT($-1, Z31)
	VPXORD Z15, Z15, Z15
	MOVL   $0xff00, AX
	KMOVW  AX, K7 // the odd row

	VBROADCASTSS 96(R9), Z14
	VBROADCASTSS 100(R9), K7, Z14 // 1 over the steps

	MOVQ 48(R8), R11 // log8Table
	MOVQ (R8), R8    // down
	MOVQ 0(R9), SI   // y
	MOVQ 72(R9), R10
	SHLQ $2, R10     // bytes of a row
	MOVQ 24(R9), R14 // scales
	MOVQ 32(R9), R15
	MOVQ 56(R9), R12 // seen
	MOVQ 64(R9), R13
	MOVQ 88(R9), DX  // the group

group:
	// Z0: the scale above that of class 0, moved by what the rows have shown so far, within bounds.
	SHIFT(R12, 40)
	MOVL         AX, 108(R9)
	VPBROADCASTD AX, Z1
	SHIFT(R13, 48)
	MOVL         AX, 112(R9)
	VPBROADCASTD AX, K7, Z1
	CONSTANT($-24, Z2)
	VPMAXSD      Z2, Z1, Z1
	CONSTANT($40, Z2)
	VPMINSD      Z2, Z1, Z1
	MOVQ         DX, CX
	SHLQ         $4, CX
	VPMOVSXWD    (R14)(CX*1), Y0
	VPMOVSXWD    (R15)(CX*1), Y2
	VINSERTI64X4 $1, Y2, Z0, Z0
	VPCMPD       $1, Z23, Z0, K1 // dead: the prior scale is below
	VPADDD       Z1, Z0, Z0
	CONSTANT($20, Z2)
	VPADDD       Z2, Z0, Z0
	VPCMPD       $6, Z22, Z0, K2 // slow, because it is above all classes

	// Z1: the class.
	VPMINSD Z22, Z0, Z0
	VPMAXSD Z15, Z0, Z0
	VPSRLD  $1, Z0, Z1

	// Z3: the value in steps, without its sign; K3: that. A value as large as the largest level, or not a
	// number, is slow.
	LEAQ         (SI)(CX*2), BX
	VMOVUPS      (BX), Y2
	VINSERTF64X4 $1, (BX)(R10*1), Z2, Z2
	VMULPS       Z14, Z2, Z2
	VPANDD       Z30, Z2, Z3
	VPMOVD2M     Z2, K3
	VCMPPS       $1, Z26, Z3, K4 // ordered and less
	KNOTW        K4, K4
	KORW         K4, K2, K2

	// Those that are slow or dead go on as zeros.
	KORW      K1, K2, K5
	KNOTW     K5, K5
	VMOVAPS.Z Z3, K5, Z3

	// Z7: the nearest level. Z11: the value below which the next below costs less.
	VADDPS     Z29, Z3, Z7
	VCVTTPS2DQ Z7, Z7
	VMOVDQA64  Z1, Z8
	VPERMI2PS  Z17, Z16, Z8
	VMOVDQA64  Z1, Z9
	VPERMI2PS  Z19, Z18, Z9
	VMOVDQA64  Z1, Z10
	VPERMI2PS  Z21, Z20, Z10
	VPCMPEQD   Z27, Z7, K5
	VMOVAPS.Z  Z8, K5, Z11
	VPCMPEQD   Z12, Z7, K5
	VMOVAPS    Z9, K5, Z11
	VPCMPEQD   Z13, Z7, K5
	VMOVAPS    Z10, K5, Z11
	VPCMPD     $5, Z28, Z7, K6
	KORTESTW   K6, K6
	JZ         below
	VPSLLD     $5, Z1, Z10
	VPADDD     Z7, Z10, Z10
	VGATHERDPS (R8)(Z10*4), K6, Z11

below:
	VCMPPS $1, Z11, Z3, K5
	VPSUBD Z27, Z7, K5, Z7

	// Levels above the tables of their class are slow. Few are large enough to be.
	VPCMPD     $6, Z24, Z7, K5
	KORTESTW   K5, K5
	JZ         symbols
	KXNORW     K6, K6, K6
	MOVQ       t+0(FP), AX
	MOVQ       8(AX), AX
	VPXORD     Z10, Z10, Z10
	VPGATHERDD (AX)(Z1*4), K6, Z10
	VPCMPD     $6, Z10, Z7, K5
	KORW       K5, K2, K2
	VMOVDQA32  Z15, K5, Z7

symbols:
	VMOVDQA32    Z7, Z5
	VPSUBD       Z7, Z15, K3, Z5 // the level with its sign
	VPSLLD       $6, Z1, Z1
	VPADDD       Z1, Z5, Z5
	VPADDD       Z25, Z5, Z5
	VMOVDQA32    Z31, K1, Z5     // 0xffff where dead
	VPMOVDW      Z5, Y5
	MOVQ         8(R9), BX
	VMOVDQU      X5, (BX)(CX*1)
	MOVQ         16(R9), BX
	VEXTRACTI128 $1, Y5, (BX)(CX*1)

	// The sums of the levels.
	VPMOVDB Z7, X7
	VPSADBW X15, X7, X7
	VMOVQ   X7, AX
	SHLQ    $12, AX
	ADDQ    AX, R12
	VPEXTRQ $1, X7, AX
	SHLQ    $12, AX
	ADDQ    AX, R13

	INCQ     DX
	KANDNW   K2, K1, K5
	KORTESTW K5, K5
	JNZ      done
	CMPQ     DX, 80(R9)
	JLT      group

done:
	KMOVW K5, AX
	MOVL  AX, 104(R9)
	MOVQ  DX, 88(R9)
	MOVQ  R12, 56(R9)
	MOVQ  R13, 64(R9)
	VZEROUPPER
	RET
