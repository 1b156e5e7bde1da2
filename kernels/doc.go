// SPDX-License-Identifier: Apache-2.0

// Package kernels will hold the CUDA sources, the PTX made from them, and the parameter structs
// that tie both to the launchers of package cuda. No driver code.
//
// Status: not built; see package cuda.
package kernels
