// SPDX-License-Identifier: Apache-2.0

// Package offline compresses captures to .kvist files and brings them back: what the verbs of the
// command line call, and what a program calls that has activations on disk.
//
// # Concepts
//
// Compress runs in two passes over the capture, a segment at a time: the first measures what an
// error in each block would cost, then the planner picks codings under the target, the second
// encodes and writes. Memory holds the rows of one head while it is calibrated, one segment while
// it is encoded, and some 400 bytes of plan for every block of 32 tokens (2 to 5 % of the
// capture's K and V).
//
// What a head's errors cost is calibrated on the capture's own last queries: how concentrated the
// attention is, how long queries, keys, values and outputs are. Weights tell tokens apart; without
// weights all tokens of a head count the same.
//
// Targets: bits a value, bytes, a share of the original, a bound on the future-attention error, or
// fixed codings. Bits and bytes are those of the whole file: header, tables, side tensors,
// padding and index included.
//
// # Archive form
//
// Config.Form "archive" codes rows that are decompressed before they are used (package archive): a
// fraction of the bytes for the same damage. A token's rows get a step by the token's weight, a
// head's by what errors in it cost; one step for the file is searched for that meets the target. A
// profile (Calibrate) holds the model's bases, the coder's tables and the steps of heads; the file
// names basis and tables by their digest (ArchiveID) and cannot be decompressed without them.
// Without a profile, scales, steps and, where its rows are many enough to pay for them, bases are
// fitted to the file and stored in it. Truncate drops streams of such a file; ArchiveWeights lets
// hot blocks be made of it; Config.Lossless keeps every bit.
//
// Memory holds a sample of the rows while the step is searched, one byte for each token, layer and
// head, and the records of some segments.
//
// The config that made a file is stored in it as text (Config.String, ParseConfig).
//
// # Errors
//
// quant.ErrBudget states the least possible budget. quant.ErrRange names tensor, head and token
// of a value that is not finite. Damage of a file is a *container.CorruptError.
//
// # Concurrency
//
// Each call uses the backend's workers; calls are independent.
//
// # Determinism
//
// The same capture, config and kvist version give the same file: bytes of rows by the contract
// of package quant; plans depend on floats of the backend's Attend only through the calibration,
// so two backends may differ in ties.
package offline
