// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

#include "textflag.h"

// func moveSideAVX(cum *uint16, target *[sideSyms]uint16, rate int)
// Requires: AVX
TEXT ·moveSideAVX(SB), NOSPLIT, $0-24
	MOVQ    cum+0(FP), DI
	MOVQ    target+8(FP), SI
	MOVQ    rate+16(FP), AX
	VMOVQ   AX, X6
	VMOVDQU (DI), X0
	VMOVDQU 16(DI), X1
	VMOVDQU (SI), X2
	VMOVDQU 16(SI), X3
	VPSUBW  X0, X2, X2
	VPSUBW  X1, X3, X3
	VPSRAW  X6, X2, X2
	VPSRAW  X6, X3, X3
	VPADDW  X2, X0, X0
	VPADDW  X3, X1, X1
	VMOVDQU X0, (DI)
	VMOVDQU X1, 16(DI)
	RET

// func findSideAVX(cum *uint16, slot uint16) (s int)
// Requires: AVX, POPCNT
TEXT ·findSideAVX(SB), NOSPLIT, $0-24
	MOVQ         cum+0(FP), SI
	MOVWLZX      slot+8(FP), AX
	VMOVD        AX, X2
	VPSHUFLW     $0, X2, X2
	VPSHUFD      $0, X2, X2
	VMOVDQU      (SI), X0
	VMOVDQU      16(SI), X1
	VPCMPGTW     X2, X0, X0 // those that start behind the slot
	VPCMPGTW     X2, X1, X1
	VPACKSSWB    X1, X0, X0
	VPMOVMSKB    X0, AX
	POPCNTL      AX, AX
	MOVL         $15, BX
	SUBL         AX, BX
	MOVLQSX      BX, BX
	MOVQ         BX, s+16(FP)
	RET
