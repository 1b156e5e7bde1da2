// SPDX-License-Identifier: Apache-2.0

// Package kvfile compresses captures to .kvist files and brings them back: what the verbs of the
// command line call, and what a program calls that has activations on disk.
//
// # Concepts
//
// Compress runs in two passes over the capture, a segment at a time: the first measures what an
// error in each block would cost, then the planner picks levels and codings under the target, the
// second encodes and writes. Memory holds the rows of one head while it is calibrated, one segment
// while it is encoded, and the plan: some 10 bytes a token and KV head, 50 with levels of detail
// (4 and 20 % of the K and V of 64 values each in binary16).
//
// What a head's errors cost is calibrated on the capture's own last queries: those of the last
// quarter attend to the rows before it, coded at 1, 2 and 3 bits on one side. Weights (package
// importance) tell tokens apart; without them all tokens of a head count the same.
//
// # Layers that differ
//
// A layer attends with the RoPE, the scale, the soft cap and the window of its own (quant.Geometry.PerLayer),
// in weights, prices, predictions and errors alike. In a layer whose window is w, the next query sees the last
// w-1 tokens; the others are DROPPED, because no query behind the cache can see them. They take no bytes,
// whatever the config; only a lossless file keeps them. A target counts all values, so what they would have
// taken serves the others; Result.BitsPerSeen is for each value that can be seen. Queries play the future
// within half a window there. A file made so serves to continue behind its last token, not before it. Windows
// are told by the numbers of tokens: positions that do not count up by one are refused.
//
// # Levels
//
// Within a segment and head, tokens sorted by weight are cut into blocks of 32 rows. A plan may
// also merge or drop a quarter to all of the tokens that weigh the least: CHUNKS merges runs of up
// to 4 adjacent ones to a row each, SUMMARY what is left over of a segment to rows of about 32
// tokens, DROPPED keeps nothing. Rows are merged first, as means by weight, and then sorted into
// blocks like all others. Sinks, window and rows that are not finite take no part.
//
// Dropping moves the output by sum a_t (v_t - out), one coherent error, not a sum of squares;
// merging by weight keeps that sum and loses what varies within the run. The estimates are put on
// scale by probes: the queries of the last quarter attend to the tokens before it, merged or
// dropped by weights as they were known then.
//
// Queries to come may ask for what no query has looked at. Config.Unseen is the share of queries
// that put all their attention on one token, whichever: it is what holds the planner back from
// dropping a needle.
//
// "levels=auto" allows levels below 2.875 bits, and "row-bias=auto" adds the row bias to plans of FULL alone:
// there they pay (DESIGN.md in this folder). A cache that grows should name FULL alone, because levels do harm
// while decoding.
//
// Past attention says less about later queries in layers that see all tokens than in layers with windows. So where
// a model has both, the plan is rehearsed as below, and the prices of each kind of layers are multiplied with a power
// of what was measured over what was planned.
//
// # Prediction
//
// Result.Predicted is what the future-attention error will be. The planner's own sum (Result.Damage)
// is weighed by attention that is past and comes out ten times too small; so the plan is
// rehearsed: tokens of the first three quarters are weighed by what was known then, planned at the
// same price of a byte, coded, and attended to by the queries of the last quarter. On the capture
// in testdata it lies within a factor of 1.4 of what is measured, from 0.5 to 6 bits a value; for
// one coding everywhere it is too cautious, up to 1.7 times (TestPredicted_AgainstMeasured holds 1.5 from 3 bits on). Explain
// tells of every block what its alternatives would have cost. Of an archive the last 16 tokens of some layers attend
// to those before as they are stored: on captures of two models 1.0 to 1.7 times what is measured, from 0.5 to 2.25
// bits.
//
// # Targets
//
// Bits a value, bytes, a share of the original, a bound on the future-attention error, or
// fixed codings. Bits and bytes are those of the whole file: header, tables, side tensors,
// padding and index included.
//
// A profile (engine/profile, made by kvist tune) brings settings found for the model, and
// sensitivities that weigh heads against each other on top of what is calibrated here. The header
// of a file names it; reading the file does not need it.
//
// # Archive form
//
// Config.Form "archive" codes rows that are decompressed before they are used (package archive): a
// fraction of the bytes for the same damage. A token's rows get a step by the token's weight, a
// head's by what errors in it cost; one step for the file is searched for that meets the target. A
// profile holds the model's bases and the coder's tables (tune.Calibrate) and, where they were measured in the model,
// the steps of heads (tune.WithArchiveSteps); the file
// names basis and tables by their digest (profile.Profile.Digest) and cannot be decompressed without them. The same goes
// for its predictors (tune.WithPredictors), which are used where an archive is not of stages.
// Without a profile, scales, steps and, where its rows are many enough to pay for them, bases are
// fitted to the file and stored in it. Truncate drops streams of such a file; ArchiveWeights lets
// hot blocks be made of it; Config.Lossless keeps every bit.
//
// Such a file is made in one pass, however large it is. Memory holds a sample of some million values
// and of 32 rows of every layer at least, 16 records, and for each core the rows of a segment, the
// keys of 8192 tokens of a layer and, where there is no profile, those of a head; beside that one
// byte for each token, layer and head, and some 30 for each token and head of the layers at work.
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
// Each call works on as many layers at a time as there are processors (on fewer where contexts are very long:
// a worker holds the rows of a head), and uses the backend's workers; calls are independent.
//
// # Determinism
//
// The same capture, config and kvist version give the same file: bytes of rows by the contract
// of package quant; plans depend on floats of the backend's Attend only through the calibration,
// so two backends may differ in ties.
package kvfile
