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
// Verdict, in SmolLM2-135M on the calibration texts (1,024 tokens compressed; KL over the 256 that
// follow, mean of five texts; found: of 96 facts asked after compression on nature, recipes and faq, of
// which the exact cache finds 91, 89 and 93):
//
//	bits/value  FULL alone, row bias     all levels, unseen 0.003
//	3.25        KL 0.0021                KL 0.0030
//	3           KL 0.0032   -,  -, 92    KL 0.0038   -,  -, 93
//	2.75        KL 0.0049  83,  -, 92    KL 0.0044  88, 86, 93
//	2.5         KL 0.0069                KL 0.0055
//	2.25        KL 0.0090                KL 0.0068
//	2.15                   77,  -,  -               83, 82, 87
//
// where TurboQuant-mse finds 88, 84, 93 with 4.25 bits a value and 75, 70, 80 with 3.25.
//
// They do not pay where a cache is compressed again and again while it grows: what a chunk of 128 tokens loses
// on the word of the few queries that saw it stays lost. KL while decoding (bench/results/decoding.md) is 0.010
// with levels and 0.0039 without at 2.75 bits, 0.029 and 0.0078 at 2.25.
//
// So levels are allowed below 2.875 bits, where they pay, more the fewer bits there are. What plans use
// is DROPPED and SUMMARY; CHUNKS is hardly ever the cheapest where SUMMARY is allowed.
//
// The fewer queries are taken to be unlike those seen, the lower the divergence of the text that
// follows, and the more facts are lost: at 2.15 bits on nature 0.0003 gives KL 0.0030 and 70 facts, 0.003
// 0.0077 and 83, 0.01 0.0100 and 82; at 2.75 bits KL 0.0014 and 79, 0.0028 and 83, 0.0044 and 85 (with row
// bias, all six). The default is the least that keeps facts as TurboQuant-mse does with 1.1 to 1.5
// bits more. With FULL alone it would only cost and is not used.
//
// Row bias: with FULL alone it pays in the model at every width, KL 0.0090 for 0.0154 at 2.25 bits, 0.0049
// for 0.0067 at 2.75, 0.0014 for 0.0018 at 3.5. With levels it does not: KL 0.0082 for 0.0071 without
// at 2.15 bits, 0.0235 for 0.0201 at 1.5 (three texts), and 83 facts for 88 at 2.75 (nature), 85 for 86
// (recipes). Neither does it in archives: 0.00083 for 0.00076 at 1.8 bits, 0.0046 for 0.0043 at 1.05. Auto
// follows this. The future-attention error of the capture in testdata likes it at every width of K
// (V at 4 bits): at 1 bit 0.214 to 0.031, at 2 bits 0.0220 to 0.0099, at 3 bits 0.0033 to 0.0027, at 4 bits
// 0.00094 to 0.00090.
//
// # Prediction
//
// Result.Predicted is what the future-attention error will be. The planner's own sum (Result.Damage)
// is weighed by attention that is past and comes out ten times too small; so the plan is
// rehearsed: tokens of the first three quarters are weighed by what was known then, planned at the
// same price of a byte, coded, and attended to by the queries of the last quarter. On the capture
// in testdata it lies within a factor of 1.4 of what is measured, from 0.5 to 6 bits a value; for
// one coding everywhere it is too cautious, up to 1.7 times (TestPredicted_AgainstMeasured holds 1.5 from 3 bits on). Explain
// tells of every block what its alternatives would have cost.
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
// profile holds the model's bases and the coder's tables (Calibrate) and, where they were measured in the model,
// the steps of heads (WithArchiveSteps); the file
// names basis and tables by their digest (ArchiveID) and cannot be decompressed without them.
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
