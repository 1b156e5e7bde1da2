// SPDX-License-Identifier: Apache-2.0

// Package frame is what rows are coded relative to: the mean of a segment and, for K, a metric. It is the reference
// for backends, in plain Go. Programs that compress or attend do not need it.
//
// Center computes A (x - mean), which quant.Encode packs, and Uncenter undoes it after quant.Decode. The mean is
// stored in binary16, and what is stored is what was taken off. Attention needs neither: <q, x> is
// <q, mean> + <A^-T q, y> of the coded row y. So a mean adds one constant to the scores of a segment, and a metric
// changes the query. Blocks say which of them they have; the packed bytes do not.
package frame
