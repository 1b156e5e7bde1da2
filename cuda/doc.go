// SPDX-License-Identifier: Apache-2.0

// Package cuda will hold the CUDA backend: libcuda opened at run time, no cgo, no toolkit.
//
// Status: not built. Package engine/auto detects libcuda and says so; asking for the cuda backend
// fails with quant.ErrUnavailable, and "auto" uses package cpu and gives the reason in Caps. The
// contract it will satisfy is engine/backend, its suite engine/backend/backendtest.
package cuda
