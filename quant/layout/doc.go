// SPDX-License-Identifier: Apache-2.0

// Package layout holds the constants that the bytes of package quant are made of: codebooks, bit
// planes, 8-bit logarithmic scales and the windows of the rotation. Backends build their tables
// from it. Callers that encode and decode rows need package quant only.
//
// All functions are pure. Slices that they return belong to the caller.
package layout
