// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"io"
	"runtime"

	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/weigh"
	"github.com/kvist-project/kvist/quant"
)

// archiver writes a file in archive form.
type archiver struct{ c *compressor }

// write is Compress for the archive form. Where the target is enough to keep every bit, it keeps every bit.
func (ar *archiver) write(ctx context.Context, w io.Writer, weights Weights) (*Result, error) {
	if ar.c.cfg.Lossless {
		return ar.writeLossless(ctx, w)
	}
	total := ar.c.targetBytes()
	likely, err := false, error(nil)
	if ar.losslessPossible() {
		likely, err = cold.LosslessLikely(ar.c.in, total)
	}
	if err != nil {
		return nil, err
	}
	if likely {
		n, err := ar.losslessBytes(ctx, total)
		switch {
		case errors.Is(err, quant.ErrRange): // an F64 was rounded, so not every bit can be kept
		case err != nil:
			return nil, err
		case n <= total:
			return ar.losslessInstead(ctx, w)
		}
	}
	res, err := ar.lossy(ctx, w, weights, total)
	var over *BudgetError
	if !errors.As(err, &over) || !ar.losslessPossible() {
		return res, err
	}
	n, lossless := ar.losslessBytes(ctx, max(over.Least, total))
	switch {
	case errors.Is(lossless, quant.ErrRange): // as above
		return nil, err
	case lossless != nil:
		return nil, lossless
	case n <= total || ar.c.cfg.Soft:
		return ar.losslessInstead(ctx, w)
	}
	over.Least = min(over.Least, n)
	return nil, err
}

// lossy writes an archive of at most total bytes.
//
// Errors: *BudgetError, before anything is written.
func (ar *archiver) lossy(ctx context.Context, w io.Writer, weights Weights, total int64) (*Result, error) {
	a := ar.writer()
	a.Price, a.Profile = ar.c.pricer(), ar.c.cfg.Profile
	if err := a.Begin(); err != nil {
		return nil, err
	}
	if err := ar.measure(ctx, a, weights); err != nil {
		return nil, err
	}
	ar.c.seg.Stats, a.Weighed = a.Stats, ar.c.use.Heads > 0 || ar.c.cfg.Weighted
	if err := ar.header(a); err != nil {
		return nil, err
	}
	made, err := a.Write(ctx, w, total)
	var over *cold.OverError
	if errors.As(err, &over) {
		err = ar.c.overBudget("as an archive", over.Want, over.Least)
	}
	if err != nil {
		return nil, err
	}
	return ar.result(made), nil
}

// writer returns what writes the input in archive form.
func (ar *archiver) writer() *cold.Writer {
	return &cold.Writer{Input: ar.c.in, Progress: ar.c.say, Settings: cold.Settings{Sinks: ar.c.cfg.Sinks,
		Chunks: ar.c.cfg.Chunks, AllowNonfinite: ar.c.cfg.AllowNonfinite, Lossless: ar.c.cfg.Lossless}}
}

// header makes header and side tensors of an archive.
func (ar *archiver) header(a *cold.Writer) error {
	if err := ar.c.prepareHeader(); err != nil {
		return err
	}
	ar.c.header.QueryEnergy = nil // the row bias of an archive follows from its steps
	if a.Profile != nil {
		ar.c.header.Profile = cold.ProfileID(a.Profile, &a.Settings)
	}
	a.Header, a.Aux = ar.c.header, ar.c.aux
	return nil
}

// measure finds what tokens and heads are worth.
func (ar *archiver) measure(ctx context.Context, a *cold.Writer, weights Weights) error {
	uses := make([]weigh.Use, len(ar.c.in.Layers))
	err := ar.c.eachLayer(ctx, "measuring", runtime.GOMAXPROCS(0), func(l *input.Layer) error {
		w, err := ar.c.given(weights, l)
		if err == nil && weights == nil {
			w, _, uses[l.Index], err = ar.c.weigher().Weigh(ctx, l, false)
		}
		if err != nil {
			return err
		}
		return a.Measure(ctx, l, w)
	})
	for _, u := range uses {
		ar.c.use.Add(u)
	}
	ar.c.use.Conclude()
	return err
}

// result returns the result of an archive that was written.
func (ar *archiver) result(made *cold.Made) *Result {
	res := &Result{Values: ar.c.in.Values(), Codings: map[string]int64{"archive": ar.c.in.Values()},
		Sections: Sections(made.Sections), Bytes: made.Bytes}
	res.BitsPerValue = quant.BitsPerValue(res.Bytes, res.Values)
	res.OriginalBytes = 2 * res.Values
	res.Ratio = float64(res.OriginalBytes) / float64(max(1, res.Bytes))
	res.made(ar.c.header)
	res.Predicted, res.Importance = made.Predicted, ar.c.use
	res.Prices = ar.c.prices()
	return res
}

// writeLossless writes an archive that keeps every row bit by bit.
func (ar *archiver) writeLossless(ctx context.Context, w io.Writer) (*Result, error) {
	ar.c.seg.Stats = make([][]damage.Head, len(ar.c.in.Layers))
	a := ar.writer()
	if err := ar.header(a); err != nil {
		return nil, err
	}
	made, err := a.WriteLossless(ctx, w)
	if err != nil {
		return nil, err
	}
	res := ar.result(made)
	res.Lossless = true
	return res, nil
}

// losslessPossible reports whether rows can be kept bit by bit. A lossless file has no streams to
// drop.
func (ar *archiver) losslessPossible() bool {
	return ar.c.cfg.Chunks <= 1 && cold.LosslessPossible(ar.c.in)
}

// exactly returns what archives the same capture and keeps every bit.
func (ar *archiver) exactly() (*archiver, error) {
	cfg := ar.c.cfg
	cfg.Lossless, cfg.Bits, cfg.Bytes, cfg.Share = true, 0, 0, 0
	c, err := newCompressor(ar.c.from, ar.c.be, cfg, ar.c.say)
	return &archiver{c}, err
}

func (ar *archiver) losslessInstead(ctx context.Context, w io.Writer) (*Result, error) {
	exact, err := ar.exactly()
	if err != nil {
		return nil, err
	}
	return exact.writeLossless(ctx, w)
}

// losslessBytes returns the bytes of the file that keeps every bit, or some number above limit where it has
// more than that.
func (ar *archiver) losslessBytes(ctx context.Context, limit int64) (int64, error) {
	exact, err := ar.exactly()
	if err != nil {
		return 0, err
	}
	n := &counter{limit: limit}
	_, err = exact.writeLossless(ctx, n)
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
