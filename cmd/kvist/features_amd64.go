// SPDX-License-Identifier: Apache-2.0

package main

import "golang.org/x/sys/cpu"

// cpuFeatures names what the processor has of the extensions that kernels are written for.
func cpuFeatures() []string {
	x := &cpu.X86
	return present([]feature{
		{"sse4.1", x.HasSSE41}, {"avx", x.HasAVX}, {"avx2", x.HasAVX2}, {"fma", x.HasFMA}, {"bmi2",
			x.HasBMI2},
		{"avx512f", x.HasAVX512F}, {"avx512bw", x.HasAVX512BW}, {"avx512vl", x.HasAVX512VL},
		{"avx512vbmi", x.HasAVX512VBMI}, {"avx512vnni", x.HasAVX512VNNI}, {"gfni", x.HasAVX512GFNI}, {"avx512bitalg",
			x.HasAVX512BITALG},
		{"avx512vpopcntdq", x.HasAVX512VPOPCNTDQ}, {"avx512bf16", x.HasAVX512BF16},
	})
}
