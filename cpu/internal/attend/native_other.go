// SPDX-License-Identifier: Apache-2.0

//go:build noasm || !amd64

package attend

// Native returns no kernels: this build has no assembly.
func Native() []*Kernels { return nil }
