// SPDX-License-Identifier: Apache-2.0

// Package archive codes rows that nobody attends to in place: K and V of a cache on disk, hidden
// states, embeddings. It turns a segment of one layer into a payload and back; what a payload
// stands in, and which steps tokens and heads get, is for package kvfile.
//
// # Concepts
//
// A row of K has its position embedding undone (Rope). A row is then projected on the components of
// its head (Transform): a basis calibrated on other texts, in the metric in which errors cost the same in all
// directions, that of the queries for K and that of the output projection for V. Each component is
// divided by the step of its row and rounded to a level, the one that costs least, squared error
// plus Lambda times bits (Effort). A row's step is 2^(s/8) with s the sum of what the file, the head
// and the token's class say; so bytes go where an error costs most.
//
// Levels are coded by tables (Tables) that the class of a coefficient picks: its expected deviation in
// steps, in quarter octaves, from the deviation of its component and from what the row has shown
// so far against what was expected of it. All of that is done in integers, so that every machine
// decodes the same. The coder is rANS with two states, one for each of two rows.
//
// With a profile's predictors (Predictor) the components of a lane are told from those of the lanes before it in the
// record, as they are decoded, and what is coded is the difference: V of a head follows from K, heads of a layer from
// each other. It is done where it takes fewer bits, lane by lane, and changes nothing else: steps, classes
// and context models are those of the lane, its deviations those of what is left.
//
// A payload is decoded with its Params: Set, either of the file or of a profile, step and classes.
// Lossless payloads need nothing.
//
// # Layout
//
// Transform mode, little-endian:
//
//	+----+--------+-------+----------+-------------+-------------------------+-------------+---------+
//	| 0  | stages | parts | side u32 | energy, err | u32 bytes and u16 worth | side stream | streams |
//	|    |        |       |          | u16 each    | of each stream          |             |         |
//	+----+--------+-------+----------+-------------+-------------------------+-------------+---------+
//
// Lanes are K and V of head 0, of head 1 and so on; each has a stream, its base. A record of several
// stages has bases at coarser steps and refinements behind them, each of which halves the step and has a stream for each
// group of tokens. A length of 0 is a stream that was dropped (Truncate); what it was worth stays.
// Where lanes are predicted, 3, 0 and a bit for each lane stand before all that (predict.go); constants of K stand
// between (constant.go).
//
// The side stream holds what is told of rows and components: gaps between positions, the steps of
// lanes, the deviations of components where they are not those of the transform, the classes of
// tokens. engine/container/FORMAT.md has it symbol by symbol; lossless.go the lossless mode.
//
// # Errors
//
// *CorruptError (quant.ErrCorrupt) for damage, quant.ErrShape for transforms that do not fit the
// rows, quant.ErrVersion. A stream knows where it has to end and with which states, so damage
// hardly ever passes; a checksum around the payload is still wanted.
//
// # Concurrency
//
// A Codec may be used by many goroutines; a Segment or Prepared by one.
//
// # Determinism
//
// Decoding gives the same bits on every machine: integers in the models, float32 with each product
// rounded in the rows, sums in the order of the components, sine and cosine of this package.
// Encoding chooses levels in floating point; machines may differ in ties.
//
// # Sources
//
// Duda, Asymmetric numeral systems (2013, arXiv 1311.2540): the coder. Gish and Pierce,
// Asymptotically efficient quantizing (1968): why uniform steps. Staniszewski and Lancucki, KV cache
// transform coding (2025, arXiv 2511.01815): PCA of rows without position embedding; the metric,
// the steps by attention and the context models are ours. Shutova et al., Cache me if you must (AQUA-KV, 2025, arXiv
// 2501.19392): linear predictors between K, V and layers, there ahead of quantizing; ours work within a record, in the
// metrics of the components and in the closed loop of the coder.
package archive
