// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// sideAlign is the alignment of packed sides within their buffer.
const sideAlign = 16

// bytes returns the memory of a span that must hold want bytes and start on a multiple of align.
// A span that is not given holds nothing.
func (b *Backend) bytes(what string, s backend.Span, want, align int64) ([]byte, error) {
	if s.Len != want {
		return nil, fmt.Errorf("%s: span of %d bytes, want %d: %w", what, s.Len, want, quant.ErrShape)
	}
	if !s.Given() && want == 0 {
		return nil, nil
	}
	buf, ok := s.Buf.(*buffer)
	if !ok || buf == nil || buf.owner != b {
		return nil, fmt.Errorf("%s: the buffer is not one of this backend: %w", what, quant.ErrShape)
	}
	p, err := buf.bytes(s.Off, s.Len)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if s.Off%align != 0 {
		return nil, fmt.Errorf("%s: offset %d, want a multiple of %d: %w", what, s.Off, align,
			quant.ErrShape)
	}
	return p, nil
}

// side returns the memory of a packed side.
func (b *Backend) side(what string, op backend.Op, s backend.Side, rows, dim int) ([]byte, error) {
	if !b.Supports(op, s.Coding, dim) {
		return nil, fmt.Errorf("%s: %s of rows of %d values in %s: %w", what, op, dim, s.Coding,
			quant.ErrUnsupported)
	}
	if err := checkRows(rows, dim); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b.bytes(what, s.Data, int64(s.Coding.PackedBytes(rows, dim)), sideAlign)
}

// checkRows holds rows*dim values, at up to 8 bytes each, within int.
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

// absent reports whether a span is the zero Span. Buffers of unknown types are not compared.
func absent(s backend.Span) bool { return s.Buf == nil && s.Off == 0 && s.Len == 0 }

// overlap reports whether two spans share bytes; a has been resolved before.
func overlap(a, b backend.Span) bool {
	return a.Given() && a.Buf == b.Buf && a.Len > 0 && b.Len > 0 &&
		a.Off < b.Off+b.Len && b.Off < a.Off+a.Len
}

// blockView is the memory of a block, resolved.
type blockView struct {
	*backend.Block
	k, v, pos, count, bias []byte // optional ones nil where not given
}

// known are the codings of the last block that was checked: most have those of the one before.
type known struct{ k, v quant.Coding }

// sideAgain is side for a coding that may be known.
func (b *Backend) sideAgain(what string, op backend.Op, s *backend.Side, rows, dim int,
	last *quant.Coding) ([]byte, error) {
	if s.Coding != *last || rows < 0 || last.Format == quant.FormatInvalid {
		p, err := b.side(what, op, *s, rows, dim)
		if err == nil {
			*last = s.Coding
		}
		return p, err
	}
	return b.bytes(what, s.Data, int64(s.Coding.PackedBytes(rows, dim)), sideAlign)
}

// view resolves and checks one block. Relevance does not look at V.
func (b *Backend) view(blk *backend.Block, op backend.Op, q *backend.Queries,
	last *known) (blockView, error) {
	w := blockView{Block: blk}
	rows := int(blk.Rows)
	var err error
	if w.k, err = b.sideAgain("K", op, &blk.K, rows, q.HeadDim, &last.k); err != nil {
		return w, err
	}
	if op == backend.OpAttend {
		if w.v, err = b.sideAgain("V", op, &blk.V, rows, q.HeadDimV, &last.v); err != nil {
			return w, err
		}
	}
	if w.pos, err = b.optional("Pos", blk.Pos, rows, 2); err != nil {
		return w, err
	}
	if w.count, err = b.optional("Count", blk.Count, rows, 2); err != nil {
		return w, err
	}
	if w.bias, err = b.optional("Bias", blk.Bias, rows, 4); err != nil {
		return w, err
	}
	if n := float64(blk.Noise); math.IsNaN(n) || math.IsInf(n, 0) {
		return w, fmt.Errorf("noise %g: %w", n, quant.ErrShape)
	}
	if blk.Offset != 0 {
		if q.Rope == nil {
			return w, fmt.Errorf("offset %d without Rope: %w", blk.Offset, quant.ErrShape)
		}
		if err := q.Rope.Validate(q.HeadDim); err != nil {
			return w, err
		}
	}
	return w, nil
}

// again resolves a block that has been checked in this call. Its memory may have been freed since.
func (w *blockView) again(blk *backend.Block, withV bool) error {
	*w = blockView{Block: blk}
	if !spanAgain(&w.k, &blk.K.Data) || withV && !spanAgain(&w.v, &blk.V.Data) ||
		!spanAgain(&w.pos, &blk.Pos) || !spanAgain(&w.count, &blk.Count) ||
		!spanAgain(&w.bias, &blk.Bias) {
		return fmt.Errorf("a buffer was freed: %w", quant.ErrClosed)
	}
	return nil
}

func spanAgain(p *[]byte, s *backend.Span) bool {
	if s.Buf == nil {
		return true
	}
	mem := s.Buf.(*buffer).mem.Load()
	if mem == nil {
		return false
	}
	*p = (*mem)[s.Off : s.Off+s.Len : s.Off+s.Len]
	return true
}

// optional returns the memory of a span of one element a row, nil where it is not given.
func (b *Backend) optional(what string, s backend.Span, rows, size int) ([]byte, error) {
	if absent(s) {
		return nil, nil
	}
	return b.bytes(what, s, int64(rows)*int64(size), int64(size))
}

// checkQueries checks everything about a batch of queries but the memory of the blocks.
func checkQueries(q *backend.Queries, blocks int) error {
	if q == nil {
		return fmt.Errorf("no queries given: %w", quant.ErrShape)
	}
	n := q.Len()
	switch {
	case q.HeadDim < 1 || q.HeadDim > quant.MaxDim || q.HeadDimV < 1 || q.HeadDimV > quant.MaxDim:
		return fmt.Errorf("head_dim %d, head_dim_v %d, want 1 to %d: %w", q.HeadDim, q.HeadDimV,
			quant.MaxDim, quant.ErrShape)
	case q.Group < 1 || q.Group > quant.MaxHeads:
		return fmt.Errorf("group of %d heads, want 1 to %d: %w", q.Group, quant.MaxHeads,
			quant.ErrShape)
	case int64(len(q.Q)) != int64(n)*int64(q.Group)*int64(q.HeadDim):
		return fmt.Errorf("q holds %d values, want %d queries * %d heads * %d: %w", len(q.Q), n,
			q.Group, q.HeadDim, quant.ErrShape)
	case q.Pos != nil && len(q.Pos) != n:
		return fmt.Errorf("%d positions, want %d: %w", len(q.Pos), n, quant.ErrShape)
	case q.Window < 0 || (q.Window > 0 && q.Pos == nil):
		return fmt.Errorf("window %d (positions given: %t): %w", q.Window, q.Pos != nil,
			quant.ErrShape)
	case !finite(q.Scale) || !finite(q.Softcap) || q.Softcap < 0:
		return fmt.Errorf("scale %g, softcap %g: %w", q.Scale, q.Softcap, quant.ErrShape)
	}
	if len(q.BlockPtr) == 0 {
		if len(q.BlockIdx) != 0 {
			return fmt.Errorf("BlockIdx has %d entries without BlockPtr: %w", len(q.BlockIdx),
				quant.ErrShape)
		}
		return nil
	}
	if q.BlockPtr[0] != 0 || int(q.BlockPtr[n]) != len(q.BlockIdx) {
		return fmt.Errorf("BlockPtr runs from %d to %d, want 0 to %d: %w", q.BlockPtr[0],
			q.BlockPtr[n], len(q.BlockIdx), quant.ErrShape)
	}
	for i := range n {
		if q.BlockPtr[i] > q.BlockPtr[i+1] {
			return fmt.Errorf("BlockPtr[%d] is %d, after %d: %w", i+1, q.BlockPtr[i+1],
				q.BlockPtr[i], quant.ErrShape)
		}
	}
	for i, idx := range q.BlockIdx {
		if idx < 0 || int(idx) >= blocks {
			return fmt.Errorf("BlockIdx[%d] is %d, of %d blocks: %w", i, idx, blocks, quant.ErrShape)
		}
	}
	return nil
}

func finite(f float32) bool { return math.Float32bits(f)&0x7f800000 != 0x7f800000 }

// seeds are the seeds of the rotated sides of one query's list.
type seeds struct {
	k, v       uint64
	hasK, hasV bool
}

// add takes in what op reads of a block; it reports whether the block agrees with those before.
func (s *seeds) add(blk *backend.Block, op backend.Op) bool {
	ok := true
	if blk.K.Coding.Format.Rotated() {
		ok = !s.hasK || s.k == blk.K.Seed
		s.k, s.hasK = blk.K.Seed, true
	}
	if op == backend.OpAttend && blk.V.Coding.Format.Rotated() {
		ok = ok && (!s.hasV || s.v == blk.V.Seed)
		s.v, s.hasV = blk.V.Seed, true
	}
	return ok
}

// checkBlocks checks every block, and that the rotated sides of each query's list share seeds.
// It appends the seeds per query: one entry for all queries where all blocks agree.
func (b *Backend) checkBlocks(dst []seeds, op backend.Op, q *backend.Queries,
	blocks []backend.Block) ([]seeds, error) {
	var all seeds
	var last known
	agree := true
	for i := range blocks {
		if _, err := b.view(&blocks[i], op, q, &last); err != nil {
			return nil, fmt.Errorf("block %d: %w", i, err)
		}
		agree = all.add(&blocks[i], op) && agree
	}
	if agree {
		return append(dst, all), nil
	}
	for i := range q.Len() {
		var s seeds
		for _, idx := range q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]] {
			if !s.add(&blocks[idx], op) {
				return nil, fmt.Errorf("query %d: block %d is rotated by another seed than blocks"+
					" before: %w", i, idx, quant.ErrShape)
			}
		}
		dst = append(dst, s)
	}
	return dst, nil
}
