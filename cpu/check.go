// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// newChecker returns the argument checker for the memory of this backend.
func (b *Backend) newChecker() args.Checker[[]byte] {
	return args.Checker[[]byte]{Supports: b.Supports, Bytes: b.memory}
}

// memory returns the memory of a span.
func (b *Backend) memory(s backend.Span) ([]byte, error) {
	buf, ok := s.Buf.(*buffer)
	if !ok || buf == nil || buf.owner != b {
		return nil, fmt.Errorf("the buffer belongs to another backend: %w", quant.ErrShape)
	}
	return buf.bytes(s.Off, s.Len)
}

// blockView is the memory of a block.
type blockView struct {
	*backend.Block
	k, v, pos, count, bias []byte // optional ones are nil if not given
}

// again resolves a block that was checked when it was set. Its memory may have been freed since.
func (w *blockView) again(e *entry, withV bool) error {
	blk := &e.Block
	*w = blockView{Block: blk}
	ok := spanAgain(&w.k, &blk.K.Data) && (!withV || spanAgain(&w.v, &blk.V.Data))
	if e.Own.spans {
		ok = ok && spanAgain(&w.pos, &blk.Pos) && spanAgain(&w.count, &blk.Count) &&
			spanAgain(&w.bias, &blk.Bias) && still(&blk.MeanK) && still(&blk.MeanV)
	}
	if !ok {
		return errFreed()
	}
	return nil
}

// still reports whether the memory of a mean was not freed. Its values were taken when it was set.
func still(s *backend.Span) bool { return s.Buf == nil || s.Buf.(*buffer).mem.Load() != nil }

func errFreed() error { return fmt.Errorf("a buffer was freed: %w", quant.ErrClosed) }

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

// seeds are the seeds of the rotated sides in one query's list.
type seeds = args.Seeds
