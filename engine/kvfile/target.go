// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// BudgetError says that a file cannot be as small as asked for. It matches quant.ErrBudget.
type BudgetError struct {
	Name   string // of the capture
	How    string // "as an archive", "with these codings"
	Want   int64  // bytes asked for
	Least  int64  // bytes of the smallest file
	Values int64
}

// Error states the least possible.
func (e *BudgetError) Error() string {
	return fmt.Sprintf("kvist/kvfile: %d bytes for %s %s cannot be met: the least possible is %d (%.3f bits/value): %v",
		e.Want, e.Name, e.How, e.Least, quant.BitsPerValue(e.Least, e.Values), quant.ErrBudget)
}

// Unwrap returns quant.ErrBudget.
func (e *BudgetError) Unwrap() error { return quant.ErrBudget }

// targetBytes returns the bytes that the config asks for, 0 where it asks for another thing.
func (c *compressor) targetBytes() int64 {
	switch {
	case c.cfg.Bits > 0:
		return int64(c.cfg.Bits * float64(c.in.Values()) / 8)
	case c.cfg.Bytes > 0:
		return c.cfg.Bytes
	case c.cfg.Share > 0:
		return int64(c.cfg.Share * float64(2*c.in.Values()))
	}
	return 0
}

// overBudget returns the error that names the least bytes of a file. Asked for as bytes, the target may take
// more room in the header than as it was asked for.
func (c *compressor) overBudget(how string, want, least int64) error {
	now, err := container.HeaderSize(c.header)
	if err != nil {
		return err
	}
	cfg, h := c.cfg, *c.header
	cfg.Bits, cfg.Share, cfg.Bytes = 0, 0, least
	h.Config = cfg.String()
	then, err := container.HeaderSize(&h)
	if err != nil {
		return err
	}
	return &BudgetError{Name: c.in.Name, How: how, Want: want, Least: least + max(0, then-now),
		Values: c.in.Values()}
}

// archiveTo is Compress for the archive form. Where the target is enough to keep every bit, it keeps every bit.
func (c *compressor) archiveTo(ctx context.Context, w io.Writer, weights Weights) (*Result, error) {
	a := &archiver{compressor: c}
	if c.cfg.Lossless {
		return a.losslessTo(ctx, w)
	}
	total := c.targetBytes()
	likely, err := a.losslessLikely(total)
	if err != nil {
		return nil, err
	}
	if likely {
		n, err := a.losslessBytes(ctx, total)
		switch {
		case errors.Is(err, quant.ErrRange): // an F64 that is read rounded: there is no keeping every bit
		case err != nil:
			return nil, err
		case n <= total:
			return a.losslessInstead(ctx, w)
		}
	}
	res, err := a.lossyTo(ctx, w, weights, total)
	var over *BudgetError
	if !errors.As(err, &over) || a.started || !a.losslessPossible() {
		return res, err
	}
	n, lossless := a.losslessBytes(ctx, max(over.Least, total))
	switch {
	case errors.Is(lossless, quant.ErrRange): // as above
		return nil, err
	case lossless != nil:
		return nil, lossless
	case n <= total || c.cfg.Soft:
		return a.losslessInstead(ctx, w)
	}
	over.Least = min(over.Least, n)
	return nil, err
}

// losslessPossible reports whether rows can be kept bit by bit: K and V share a size of element, and the file
// need not have streams to drop.
func (a *archiver) losslessPossible() bool {
	for i := range a.in.Layers {
		if l := &a.in.Layers[i]; l.HasV && l.K.DType().Size() != l.V.DType().Size() {
			return false
		}
	}
	return a.cfg.Chunks <= 1
}

// Of a file, losslessLanes lanes of losslessRows rows tell about how many bytes all would take losslessly.
// Longer lanes take less for a value, so some slack is added to what is worth trying.
const (
	losslessLanes = 32
	losslessRows  = 64
	losslessSlack = 1.3
)

// losslessLikely guesses whether total bytes may be enough to keep every bit.
func (a *archiver) losslessLikely(total int64) (bool, error) {
	if !a.losslessPossible() {
		return false, nil
	}
	type lane struct {
		t    input.Tensor
		head int
	}
	var lanes []lane
	var all int64
	for i := range a.in.Layers {
		l := &a.in.Layers[i]
		for h := range l.Heads {
			for _, t := range []input.Tensor{l.K, l.V}[:1+min(1, l.DimV())] {
				lanes = append(lanes, lane{t, h})
				all += int64(l.Tokens) * int64(t.RowBytes())
			}
		}
	}
	var stored, raw int64
	every := max(1, len(lanes)/losslessLanes)
	for i := 0; i < len(lanes); i += every {
		t := lanes[i].t
		n := min(t.Rows(), losslessRows)
		b := make([]byte, n*t.RowBytes())
		if err := t.Read(lanes[i].head, (t.Rows()-n)/2, n, b); err != nil {
			return false, err
		}
		coded := archive.EncodeLossless(nil, []archive.LosslessLane{{Dim: t.Dim(), Data: b}}, t.DType().Size())
		stored, raw = stored+int64(len(coded)), raw+int64(len(b))
	}
	return raw == 0 || float64(stored)/float64(raw)*float64(all) <= losslessSlack*float64(total), nil
}

// asLossless returns the archiver of the same capture that keeps every bit.
func (a *archiver) asLossless() (*archiver, error) {
	cfg := a.cfg
	cfg.Lossless, cfg.Bits, cfg.Bytes, cfg.Share = true, 0, 0, 0
	c, err := newCompressor(a.src, a.be, cfg, a.say)
	if err != nil {
		return nil, err
	}
	return &archiver{compressor: c}, nil
}

func (a *archiver) losslessInstead(ctx context.Context, w io.Writer) (*Result, error) {
	exact, err := a.asLossless()
	if err != nil {
		return nil, err
	}
	return exact.losslessTo(ctx, w)
}

// errEnough stops counting.
var errEnough = errors.New("more than asked for")

// losslessBytes returns the bytes of the file that keeps every bit, or some number above limit where it has
// more than that.
func (a *archiver) losslessBytes(ctx context.Context, limit int64) (int64, error) {
	exact, err := a.asLossless()
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

// counter counts bytes up to a limit.
type counter struct{ n, limit int64 }

func (c *counter) Write(p []byte) (int, error) {
	if c.n += int64(len(p)); c.n > c.limit {
		return 0, errEnough
	}
	return len(p), nil
}
