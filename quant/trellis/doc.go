// SPDX-License-Identifier: Apache-2.0

// Package trellis is trellis-coded quantization: the reference of the codes that engine/vectors stores.
//
// # Concepts
//
// A component of width b, 1 to 6, is coded by b bits but may take one of 2^(b+1) levels. Bit 0 of its code
// is its step of a path through 8 states. The last four bits of the path select one of four subsets of the
// levels; level l is in subset l%4. The other bits of the code are the member of the subset. So a level is a
// look-up in a sliding window, and nothing is carried from one component to the next when codes are read.
//
//	subset = 2*(u[t] ^ u[t-1] ^ u[t-3]) + u[t-2]     taps 13 and 4 in octal
//
// [Encode] finds the path with the least squared error by Viterbi's algorithm. On a Gaussian it loses 0.302,
// 0.085, 0.023, 0.0062 of the variance at 1 to 4 bits: 0.80, 1.39, 1.71 and 1.85 dB less than a scalar
// quantizer of Lloyd and Max, whatever the number of components beyond some ten.
//
// # Layout
//
// Rows are packed in tiles of 16, components in cells of 16, which have one width. The cells of a tile follow
// each other. A cell of width b takes 32*b bytes: a plane of the path, then planes of 4, 2 and 1 bits that
// make up the rest of the width. Component t of a cell has j = t/4 and g = t%4. Numbers are little-endian.
//
//	path    32 bytes: for each row 16 bits, bit t the path bit of component t
//	1 bit   32 bytes: the same, with a member bit
//	2 bits  64 bytes: for each row 4 bytes; byte j, bits (2g+4)%8 and the next
//	4 bits  128 bytes: two vectors of 16 x 4 bytes; g < 2 in the first; byte j, 4 bits at 4*(g%2)
//
// Pairs stand at 4, 6, 0 and 2, so that a kernel joins them with windows of the path by two shifts instead of six.
// So 16 rows and components 4j+g for j = 0 to 3 fill a vector of 64 bytes as instructions for products of
// bytes want them: 4 components of each row side by side.
//
// # Errors
//
// quant.ErrShape: lengths that do not fit. quant.ErrUnsupported: a width above 6. quant.ErrRange: values that
// are not finite. quant.ErrCorrupt: a code that its width does not have.
//
// # Determinism
//
// Codes are the same on every machine; [Encode] states the order of its sums.
package trellis
