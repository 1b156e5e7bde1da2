// SPDX-License-Identifier: Apache-2.0

package main

import "golang.org/x/sys/cpu"

// cpuFeatures names what the processor has of the extensions that kernels are written for.
func cpuFeatures() []string {
	a := &cpu.ARM64
	return present([]feature{
		{"neon", a.HasASIMD}, {"fp16", a.HasASIMDHP}, {"dotprod", a.HasASIMDDP}, {"sve", a.HasSVE},
		{"sve2", a.HasSVE2},
	})
}
