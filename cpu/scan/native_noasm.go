// SPDX-License-Identifier: Apache-2.0

//go:build noasm || !amd64

package scan

// native returns no kernels: this build has no assembly.
func native() []*kernels { return nil }
