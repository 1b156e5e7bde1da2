// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package attend

import "golang.org/x/sys/cpu"

// Native returns the assembly kernels that this processor supports, the best last.
func Native() []*Kernels {
	var list []*Kernels
	x := &cpu.X86
	avx2 := x.HasAVX2 && x.HasFMA && cpuidECX()>>29&1 != 0
	if avx2 {
		list = append(list, AVX2())
	}
	if avx2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ && x.HasAVX512VBMI &&
		x.HasAVX512VNNI && x.HasAVX512GFNI && x.HasAVX512VPOPCNTDQ {
		list = append(list, AVX512())
	}
	return list
}
