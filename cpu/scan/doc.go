// SPDX-License-Identifier: Apache-2.0

// Package scan compares queries with rows of trellis codes, and makes these codes: the fast twins of package
// quant/trellis, for engine/vectors.
//
// # Concepts
//
// A [Section] is the part of a row that is coded along one path of the trellis. Its cells of 16 components
// form runs of one width. A [Query] holds int8 numbers with one scale for each run. [Engine.Scores] looks up
// the levels of the codes in 7 bits (trellis.ScanLevels) and adds products of bytes in int32. So the score of
// a row is a sum of integers for each run, times the scale of the run, added in the order of the runs in
// float32. [Engine.Finish] multiplies by the factors of rows and finds those above a threshold.
//
// Scores choose candidates; they are off by the rounding of the query, some 0.5 % of its length for each
// component, and of the levels. [Engine.Row] gives the exact levels to compare candidates by.
//
// # Errors
//
// quant.ErrShape, quant.ErrRange, quant.ErrUnsupported and quant.ErrUnavailable, as the functions say.
//
// # Concurrency
//
// An Engine and a Section are safe for concurrent use. A Query is written by Prepare alone.
//
// # Determinism
//
// Codes, scores and keys are the same on every instruction set, bit for bit: sums of integers have no order,
// and floats are added in one written order, each product rounded before it is added.
package scan
