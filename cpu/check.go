// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// check returns the checker of arguments for the memory of this backend.
func (b *Backend) check() args.Checker[[]byte] {
	return args.Checker[[]byte]{Supports: b.Supports, Bytes: b.memory}
}

// memory returns the memory of a span.
func (b *Backend) memory(s backend.Span) ([]byte, error) {
	buf, ok := s.Buf.(*buffer)
	if !ok || buf == nil || buf.owner != b {
		return nil, fmt.Errorf("the buffer is not one of this backend: %w", quant.ErrShape)
	}
	return buf.bytes(s.Off, s.Len)
}

// blockView is the memory of a block, resolved.
type blockView struct {
	*backend.Block
	k, v, pos, count, bias []byte // optional ones nil where not given
}

// view resolves and checks one block. Relevance does not look at V.
func (b *Backend) view(blk *backend.Block, op backend.Op, q *backend.Queries) (blockView, error) {
	w, err := b.check().Block(blk, op, q)
	return blockView{blk, w.KMem, w.VMem, w.PosMem, w.CountMem, w.BiasMem}, err
}

// seeds are the seeds of the rotated sides of one query's list.
type seeds = args.Seeds
