// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package codec

import "golang.org/x/sys/cpu"

// Native lists the assembly kernels that this processor runs, the best last.
func Native() []*Kernels {
	var list []*Kernels
	x := &cpu.X86
	if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ && x.HasAVX512VBMI &&
		x.HasAVX512GFNI && x.HasFMA {
		list = append(list, AVX512())
	}
	return list
}
