// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// Config says how to compress. The zero value is not valid: start from DefaultConfig. Exactly one
// target is set, or none with menus of one coding each.
type Config struct {
	// Bits is the target in bits a value: 8 * file bytes / values of K and V, all of them. In layers with a
	// window, tokens that no later query can see take none of it, so the others get more. Range (0, 64].
	Bits float64
	// Bytes is the target as file bytes.
	Bytes int64
	// Share is the target as a share of the original's f16 bytes of K and V. Range (0, 2].
	Share float64
	// MaxError is a target: the smallest file whose mean future-attention error is at most this.
	MaxError float64

	// K and V are the codings the planner may choose from. One of each fixes them.
	K, V []quant.Coding
	// Rows are the codings for general activations.
	Rows []quant.Coding
	// Sinks is the number of first tokens kept at u8 or exactly; an archive gives them its finest
	// steps. Default 4.
	Sinks int
	// Window is the number of last tokens kept exactly, in hot form. Default 0.
	Window int
	// Segment is the tokens of a segment, 32 to 32768. Default 512. Rows: chosen from the dim.
	Segment int
	// Seed is that of the rotation.
	Seed uint64
	// RowBias adds the row bias when the file is attended or measured: "true", "false", or "auto", the
	// default: for plans of FULL alone and fixed codings, where it pays; not for plans with levels and
	// archives, where it does not (package comment).
	RowBias string
	// Mean lets hot form code rows of K without the mean that they share in their segment and KV head, where it
	// saves more bytes than it takes. Rows of a shared part cost nothing to attend to, and the errors of a coding go
	// with the length of what is coded. It needs the capture's queries: what K and V then cost each other is
	// measured on them, and what stands in for them misjudges it. Default true.
	Mean bool
	// Metric lets rows of K without their mean be coded in a metric: a scale for each rotary pair that moves the
	// errors of the coding to where the capture's queries feel them least. A head takes one where it halves what
	// later queries of the capture feel, which it is not fitted to. Without Mean it has no effect. Default true.
	Metric bool
	// AllowNonfinite keeps rows with NaN or Inf exactly instead of refusing them.
	AllowNonfinite bool
	// Importance is the weighting of tokens if no weights are given (importance.ParseWeighting);
	// "none" weighs all the same. It needs the queries of the capture. Without them all tokens weigh
	// the same, and Result.Importance reports it.
	Importance string
	// Profile is what was learnt about the model, or nil. Apply copies its settings into the config.
	// Its sensitivities weigh the heads against each other, and FormArchive codes with its basis;
	// without a profile a basis is fitted to the file. Not part of String: a file names its profile
	// in the header.
	Profile *profile.Profile
	// Memo, if set, keeps measurements of the capture from call to call. Not part of String.
	Memo *Memo
	// Levels are the levels of detail that the planner may choose from; FULL is always one of them.
	// nil, written "auto", is all of them for MaxError and for targets below 2.875 bits a value, and
	// FULL alone above, where others do not pay. Levels beyond FULL need weights and the queries of
	// the capture; without them FULL is used alone. Name FULL alone for parts of a cache that grows:
	// other levels do harm there (package comment).
	Levels []quant.Level
	// Unseen is the share of later queries that are expected to be unlike those seen. Each of them is
	// assumed to put all its attention on one token, any token being equally likely. This keeps
	// tokens that past attention did not look at from being coded too coarsely, merged or dropped.
	// FULL alone does not use it. Range [0, 1].
	Unseen float64
	// Form is FormHot, the default, or FormArchive.
	Form string
	// Chunks is the number of stages of an archive, 1 to 16. Each stage after the first halves the
	// steps, in streams that Truncate can drop. 4 stages take some 2 % more of the error at 2 bits a
	// value. Default 1.
	Chunks int
	// Lossless keeps every row of an archive bit by bit. It takes no target. Without it, an archive
	// is lossless if its target is enough for that.
	Lossless bool
	// Soft allows a larger file if the target cannot be met, as with few tokens: then hot form takes
	// the smallest plan, and an archive keeps every bit. Not part of String.
	Soft bool
	// Weighted notes that a weight per token was given: rows are sorted into blocks by it.
	Weighted bool
}

// rowBiasAuto leaves the row bias to what was measured to pay; "true" and "false" set it.
const rowBiasAuto = "auto"

// The forms of a file.
const (
	FormHot     = "hot"     // attended in place
	FormArchive = "archive" // entropy-coded: a fraction of the bytes, decompressed before use
)

// DefaultConfig returns the defaults, without a target.
//
// Menus: lm1..lm4 with row lengths kept, and scales of 8 bits. On the capture in testdata keeping
// the lengths of K lowers the future-attention error by 3 to 8 % at 3 and 4 bits against least
// squares, because scores scale with them; keeping those of V lowers it by a quarter at 2 bits
// and not at all at 4, because least squares shrinks every row by the same share, and attention
// that averages over many rows averages the noise away but not the shrinkage. 8-bit scales
// cost 2 % of error at 4 bits and save 0.125 bit/value, which buys 15 %.
func DefaultConfig() Config {
	s8 := quant.ScaleLog8
	var c Config
	for f := quant.LM1; f <= quant.LM4; f++ {
		c.K = append(c.K, quant.Coding{Format: f, Rule: quant.LengthKeeping, Scale: s8})
		c.V = append(c.V, quant.Coding{Format: f, Rule: quant.LengthKeeping, Scale: s8})
		c.Rows = append(c.Rows, quant.Coding{Format: f, Rule: quant.LengthKeeping, Scale: s8})
	}
	u8 := quant.Coding{Format: quant.U8, Scale: s8}
	c.K, c.V, c.Rows = append(c.K, u8), append(c.V, u8), append(c.Rows, u8)
	c.Sinks, c.Segment, c.Seed, c.Mean, c.Metric = 4, 512, 1, true, true
	c.RowBias, c.Importance, c.Unseen, c.Form, c.Chunks = rowBiasAuto, "default", defaultUnseen, FormHot, 1
	return c
}

// defaultUnseen is the default of Config.Unseen. From autoLevelBits on, automatic Levels are FULL
// alone. Both were chosen in a model on calibration texts (DESIGN.md in this folder).
const (
	defaultUnseen = 0.003
	autoLevelBits = 2.875
)

// allLevels are the levels in the order that plans try them.
var allLevels = []quant.Level{quant.Full, quant.Chunks, quant.Summary, quant.Dropped}

// levels returns the levels that a plan for this many values may use. Later queries can see some of
// them; the others take no bytes.
func (c *Config) levels(values, seen int64) []quant.Level {
	if c.fixed() {
		return nil // with fixed codings every row is kept
	}
	if c.Levels != nil {
		return c.Levels
	}
	bits := max(c.Bits, quant.BitsPerValue(c.Bytes, values), 16*c.Share)
	if seen > 0 && seen < values {
		bits *= float64(values) / float64(seen)
	}
	if bits >= autoLevelBits {
		return nil
	}
	return allLevels
}

// fixed reports whether the menus leave no choice.
func (c *Config) fixed() bool { return len(c.K) == 1 && len(c.V) == 1 }

// Validate reports all problems at once.
//
// Errors: quant.ErrShape, quant.ErrUnsupported.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs,
			fmt.Errorf("kvist/kvfile: config: "+format+": %w", append(args, quant.ErrShape)...))
	}
	targets := 0
	for _, v := range []float64{c.Bits, float64(c.Bytes), c.Share, c.MaxError} {
		if !(v >= 0) || math.IsInf(v, 0) {
			bad("target %v is not a positive number", v)
		}
		if v != 0 {
			targets++
		}
	}
	switch {
	case targets > 1:
		bad("%d targets among bits, bytes, share and max-error, want one", targets)
	case c.Lossless && (targets > 0 || c.Form != FormArchive):
		bad("lossless is for the archive form and takes no target")
	case c.Lossless:
	case targets == 0 && c.Form == FormArchive, c.MaxError > 0 && c.Form == FormArchive:
		bad("an archive wants bits, bytes or a share as its target")
	case targets == 0 && !c.fixed():
		bad("no target: set bits, bytes, share or max-error, or one coding for K and V")
	}
	if c.Form == FormArchive && c.Window > 0 {
		bad("a window of %d exact tokens in an archive, which has none", c.Window)
	}
	if c.Form != FormHot && c.Form != FormArchive {
		bad("form %q, want %s or %s", c.Form, FormHot, FormArchive)
	}
	if c.RowBias != rowBiasAuto && c.RowBias != "true" && c.RowBias != "false" {
		bad("row bias %q, want true, false or auto", c.RowBias)
	}
	if c.Chunks < 1 || c.Chunks > archive.MaxChunks {
		bad("chunks %d, want 1 to %d", c.Chunks, archive.MaxChunks)
	}
	if c.Bits > 64 {
		bad("bits %g, want at most 64", c.Bits)
	}
	if c.Share > 2 {
		bad("share %g of the original, want at most 2", c.Share)
	}
	if c.Sinks < 0 || c.Window < 0 {
		bad("sinks %d, window %d, want at least 0", c.Sinks, c.Window)
	}
	if c.Segment < 32 || c.Segment > 32768 {
		bad("segment of %d tokens, want 32 to 32768", c.Segment)
	}
	if len(c.K) == 0 || len(c.V) == 0 || len(c.Rows) == 0 {
		bad("an empty menu (k %d, v %d, rows %d codings)", len(c.K), len(c.V), len(c.Rows))
	}
	if _, err := importance.ParseWeighting(c.Importance); err != nil {
		errs = append(errs, err)
	}
	if !(c.Unseen >= 0 && c.Unseen <= 1) {
		bad("unseen %g, want 0 to 1", c.Unseen)
	}
	for i, l := range c.Levels {
		if !l.Valid() || slices.Contains(c.Levels[:i], l) {
			bad("level %s is not known or given twice", l)
		}
	}
	for _, m := range [][]quant.Coding{c.K, c.V, c.Rows} {
		for _, coding := range m {
			if err := coding.Validate(); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
