// SPDX-License-Identifier: Apache-2.0

package args

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// SideAlign is the alignment of packed sides within their buffer.
const SideAlign = 16

// Checker checks arguments for a backend whose memory is of type M.
type Checker[M any] struct {
	Supports func(op backend.Op, c quant.Coding, dim int) bool
	// Bytes returns the memory of a span that is given. Errors: quant.ErrShape for a buffer of
	// another backend or a range beyond it, quant.ErrClosed for a buffer that was freed.
	Bytes func(s backend.Span) (M, error)
}

// Span returns the memory of a span. The span must hold want bytes and start on a multiple of
// align. A span that is not given returns the zero M.
func (c Checker[M]) Span(what string, s backend.Span, want, align int64) (M, error) {
	var none M
	if s.Len != want {
		return none, fmt.Errorf("%s: span of %d bytes, want %d: %w", what, s.Len, want,
			quant.ErrShape)
	}
	if !s.Given() && want == 0 {
		return none, nil
	}
	m, err := c.Bytes(s)
	if err != nil {
		return none, fmt.Errorf("%s: %w", what, err)
	}
	if s.Off%align != 0 {
		return none, fmt.Errorf("%s: offset %d, want a multiple of %d: %w", what, s.Off, align,
			quant.ErrShape)
	}
	return m, nil
}

// Side returns the memory of a packed side of rows*dim values.
func (c Checker[M]) Side(what string, op backend.Op, s backend.Side, rows, dim int) (M, error) {
	var none M
	if !c.Supports(op, s.Coding, dim) {
		return none, fmt.Errorf("%s: %s of rows of %d values in %s: %w", what, op, dim, s.Coding,
			quant.ErrUnsupported)
	}
	if err := checkRows(rows, dim); err != nil {
		return none, fmt.Errorf("%s: %w", what, err)
	}
	return c.Span(what, s.Data, int64(s.Coding.PackedBytes(rows, dim)), SideAlign)
}

// checkRows reports an error unless rows*dim values of up to 8 bytes fit an int.
func checkRows(rows, dim int) error {
	if rows < 0 || rows > math.MaxInt32 {
		return fmt.Errorf("%d rows: %w", rows, quant.ErrShape)
	}
	if dim < 1 || dim > quant.MaxDim {
		return fmt.Errorf("rows of %d values, want 1 to %d: %w", dim, quant.MaxDim, quant.ErrShape)
	}
	if int64(rows)*int64(dim) > math.MaxInt/8 {
		return fmt.Errorf("%d rows of %d values: %w", rows, dim, quant.ErrTooLarge)
	}
	return nil
}

// Absent reports whether s is the zero Span. It does not compare buffers, whose types may not be
// comparable.
func Absent(s backend.Span) bool { return s.Buf == nil && s.Off == 0 && s.Len == 0 }

// Overlap reports whether two spans share bytes. The caller has resolved a before.
func Overlap(a, b backend.Span) bool {
	return a.Given() && a.Buf == b.Buf && a.Len > 0 && b.Len > 0 &&
		a.Off < b.Off+b.Len && b.Off < a.Off+a.Len
}

// optional returns the memory of a span of n elements, or the zero M if it is not given.
func (c Checker[M]) optional(what string, s backend.Span, n, size int, align int64) (M, error) {
	if Absent(s) {
		var none M
		return none, nil
	}
	return c.Span(what, s, int64(n)*int64(size), align)
}

// BlockView is a block with its memory. A span that is not given has the zero M.
type BlockView[M any] struct {
	*backend.Block
	KMem, VMem, PosMem, CountMem, BiasMem, MeanKMem, MeanVMem M
}

// Known caches what was computed for the last block: most blocks have the codings and the row count
// of the block before. The zero Known is empty.
type Known struct{ k, v knownSide }

type knownSide struct {
	coding quant.Coding
	rows   int32
	bytes  int64 // of the side
}

// side is Side with the cache of the last block.
func (c Checker[M]) side(m *M, what string, op backend.Op, s *backend.Side, rows int32, dim int,
	last *knownSide) (err error) {
	if last.bytes > 0 && s.Coding == last.coding && rows == last.rows && s.Data.Len == last.bytes &&
		s.Data.Buf != nil && s.Data.Off%SideAlign == 0 {
		if *m, err = c.Bytes(s.Data); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	if *m, err = c.Side(what, op, *s, int(rows), dim); err == nil {
		*last = knownSide{s.Coding, rows, s.Data.Len}
	}
	return err
}

// KeysOnly reports whether a block has no V.
func KeysOnly(blk *backend.Block) bool {
	return blk.V.Coding == quant.Coding{} && Absent(blk.V.Data)
}

// Block resolves and checks one block of a table and writes it to w. last is the cache shared by
// the blocks of one call.
func (c Checker[M]) Block(w *BlockView[M], blk *backend.Block, s *backend.Shape, last *Known) error {
	*w = BlockView[M]{Block: blk}
	op := backend.OpAttend
	keys := KeysOnly(blk)
	if keys {
		op = backend.OpRelevance
	}
	if err := c.side(&w.KMem, "K", op, &blk.K, blk.Rows, s.HeadDim, &last.k); err != nil {
		return err
	}
	if !keys {
		if err := c.side(&w.VMem, "V", op, &blk.V, blk.Rows, s.HeadDimV, &last.v); err != nil {
			return err
		}
	}
	if !Absent(blk.Pos) || !Absent(blk.Count) || !Absent(blk.Bias) {
		if err := c.perRow(w); err != nil {
			return err
		}
	}
	return c.terms(w, s)
}

// terms resolves and checks what a block has beside its rows.
func (c Checker[M]) terms(w *BlockView[M], s *backend.Shape) (err error) {
	blk := w.Block
	switch {
	case !finite(blk.Noise):
		return fmt.Errorf("noise %g, want a finite number: %w", blk.Noise, quant.ErrShape)
	case blk.Stride < 0 || blk.Limit < 0 || blk.Tokens < 0:
		return fmt.Errorf("stride %d, limit %d, tokens %d, want none below 0: %w", blk.Stride,
			blk.Limit, blk.Tokens, quant.ErrShape)
	case blk.Offset != 0 && s.Rope == nil:
		return fmt.Errorf("offset %d in a table without Rope: %w", blk.Offset, quant.ErrShape)
	case blk.Metric != nil && blk.Metric.Dim() != s.HeadDim:
		return fmt.Errorf("metric of %d components, want head_dim %d: %w", blk.Metric.Dim(), s.HeadDim,
			quant.ErrShape)
	}
	if w.MeanKMem, err = c.optional("MeanK", blk.MeanK, 1, frame.MeanBytes(s.HeadDim), 2); err != nil {
		return err
	}
	w.MeanVMem, err = c.optional("MeanV", blk.MeanV, 1, frame.MeanBytes(s.HeadDimV), 2)
	return err
}

// perRow resolves and checks the spans with one element per row.
func (c Checker[M]) perRow(w *BlockView[M]) (err error) {
	rows := int(w.Rows)
	if w.PosMem, err = c.optional("Pos", w.Pos, rows, 2, 2); err != nil {
		return err
	}
	if w.CountMem, err = c.optional("Count", w.Count, rows, 2, 2); err != nil {
		return err
	}
	w.BiasMem, err = c.optional("Bias", w.Bias, rows, 4, 4)
	return err
}
