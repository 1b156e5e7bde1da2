// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"io"
	"math"
	"runtime"

	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/weigh"
	"github.com/kvist-project/kvist/quant"
)

// archiveTo is Compress for the archive form. Where the target is enough to keep every bit, it keeps every bit.
func (c *compressor) archiveTo(ctx context.Context, w io.Writer, weights Weights) (*Result, error) {
	if c.cfg.Lossless {
		return c.losslessTo(ctx, w)
	}
	total := c.targetBytes()
	likely, err := false, error(nil)
	if c.losslessPossible() {
		likely, err = cold.LosslessLikely(c.in, total)
	}
	if err != nil {
		return nil, err
	}
	if likely {
		n, err := c.losslessBytes(ctx, total)
		switch {
		case errors.Is(err, quant.ErrRange): // an F64 that is read rounded: there is no keeping every bit
		case err != nil:
			return nil, err
		case n <= total:
			return c.losslessInstead(ctx, w)
		}
	}
	res, err := c.lossyTo(ctx, w, weights, total)
	var over *BudgetError
	if !errors.As(err, &over) || !c.losslessPossible() {
		return res, err
	}
	n, lossless := c.losslessBytes(ctx, max(over.Least, total))
	switch {
	case errors.Is(lossless, quant.ErrRange): // as above
		return nil, err
	case lossless != nil:
		return nil, lossless
	case n <= total || c.cfg.Soft:
		return c.losslessInstead(ctx, w)
	}
	over.Least = min(over.Least, n)
	return nil, err
}

// lossyTo writes an archive of at most total bytes.
//
// Errors: *BudgetError, before anything is written.
func (c *compressor) lossyTo(ctx context.Context, w io.Writer, weights Weights, total int64) (*Result, error) {
	a := c.archive()
	a.Price, a.Profile = c.pricer(), c.cfg.Profile
	if err := a.Begin(); err != nil {
		return nil, err
	}
	if err := c.measureArchive(ctx, a, weights); err != nil {
		return nil, err
	}
	c.seg.Stats, a.Weighed = a.Stats, c.use.Heads > 0 || c.cfg.Weighted
	if err := c.archiveHeader(a); err != nil {
		return nil, err
	}
	made, err := a.Write(ctx, w, total)
	var over *cold.OverError
	if errors.As(err, &over) {
		err = c.overBudget("as an archive", over.Want, over.Least)
	}
	if err != nil {
		return nil, err
	}
	return c.archived(made), nil
}

// archive returns what writes the input in archive form.
func (c *compressor) archive() *cold.Writer {
	return &cold.Writer{Input: c.in, Progress: cold.Progress(c.say), Settings: cold.Settings{Sinks: c.cfg.Sinks,
		Chunks: c.cfg.Chunks, AllowNonfinite: c.cfg.AllowNonfinite, Lossless: c.cfg.Lossless}}
}

// archiveHeader makes header and side tensors of an archive.
func (c *compressor) archiveHeader(a *cold.Writer) error {
	if err := c.prepareHeader(); err != nil {
		return err
	}
	c.header.QueryEnergy = nil // the row bias of an archive follows from its steps
	if a.Profile != nil {
		c.header.Profile = cold.ProfileID(a.Profile)
	}
	a.Header, a.Aux = c.header, c.aux
	return nil
}

// measureArchive finds what tokens and heads are worth.
func (c *compressor) measureArchive(ctx context.Context, a *cold.Writer, weights Weights) error {
	uses := make([]weigh.Use, len(c.in.Layers))
	err := c.eachLayer(ctx, "measuring", runtime.GOMAXPROCS(0), func(l *input.Layer) error {
		w, err := c.given(weights, l)
		if err == nil && weights == nil {
			w, _, uses[l.Index], err = c.weigher().Weigh(ctx, l, false)
		}
		if err != nil {
			return err
		}
		return a.Measure(ctx, l, w)
	})
	for _, u := range uses {
		c.use.Add(u)
	}
	c.use.Conclude()
	return err
}

// archived returns the result of an archive that was written.
func (c *compressor) archived(made *cold.Made) *Result {
	res := &Result{Values: c.in.Values(), Codings: map[string]int64{"archive": c.in.Values()},
		Sections: Sections(made.Sections), Bytes: made.Bytes}
	res.BitsPerValue = quant.BitsPerValue(res.Bytes, res.Values)
	res.OriginalBytes = 2 * res.Values
	res.Ratio = float64(res.OriginalBytes) / float64(max(1, res.Bytes))
	res.made(c.header)
	res.Predicted, res.Importance = math.NaN(), c.use
	res.Prices = c.prices()
	return res
}

// losslessTo writes an archive that keeps every row bit by bit.
func (c *compressor) losslessTo(ctx context.Context, w io.Writer) (*Result, error) {
	c.seg.Stats = make([][]damage.Head, len(c.in.Layers))
	a := c.archive()
	if err := c.archiveHeader(a); err != nil {
		return nil, err
	}
	made, err := a.WriteLossless(ctx, w)
	if err != nil {
		return nil, err
	}
	res := c.archived(made)
	res.Lossless = true
	return res, nil
}

// losslessPossible reports whether rows can be kept bit by bit, and the file need not have streams to drop.
func (c *compressor) losslessPossible() bool {
	return c.cfg.Chunks <= 1 && cold.LosslessPossible(c.in)
}

// asLossless returns the compressor of the same capture that keeps every bit.
func (c *compressor) asLossless() (*compressor, error) {
	cfg := c.cfg
	cfg.Lossless, cfg.Bits, cfg.Bytes, cfg.Share = true, 0, 0, 0
	return newCompressor(c.from, c.be, cfg, c.say)
}

func (c *compressor) losslessInstead(ctx context.Context, w io.Writer) (*Result, error) {
	exact, err := c.asLossless()
	if err != nil {
		return nil, err
	}
	return exact.losslessTo(ctx, w)
}

// losslessBytes returns the bytes of the file that keeps every bit, or some number above limit where it has
// more than that.
func (c *compressor) losslessBytes(ctx context.Context, limit int64) (int64, error) {
	exact, err := c.asLossless()
	if err != nil {
		return 0, err
	}
	n := &counter{limit: limit}
	_, err = exact.losslessTo(ctx, n)
	if errors.Is(err, errEnough) {
		return limit + 1, nil
	}
	return n.n, err
}

// errEnough stops counting.
var errEnough = errors.New("more than asked for")

// counter counts bytes up to a limit.
type counter struct{ n, limit int64 }

func (c *counter) Write(p []byte) (int, error) {
	if c.n += int64(len(p)); c.n > c.limit {
		return 0, errEnough
	}
	return len(p), nil
}
