// SPDX-License-Identifier: Apache-2.0

package args

import (
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// queries checks a batch of queries, without what its lists name.
func queries(q *backend.Queries, s *backend.Shape) error {
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
	case q.HeadDim != s.HeadDim || q.HeadDimV != s.HeadDimV:
		return fmt.Errorf("head_dim %d, head_dim_v %d, but the table has %d, %d: %w", q.HeadDim,
			q.HeadDimV, s.HeadDim, s.HeadDimV, quant.ErrShape)
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
	return nil
}

func finite(f float32) bool { return math.Float32bits(f)&0x7f800000 != 0x7f800000 }

// Seeds are the seeds of the rotated sides in one query's list.
type Seeds struct {
	K, V       uint64
	HasK, HasV bool
}

// add records the sides of a block that op reads. It reports whether their seeds match those
// before.
func (s *Seeds) add(f *FormKey, op backend.Op) bool {
	ok := true
	if f.K.Format.Rotated() {
		ok = !s.HasK || s.K == f.KSeed
		s.K, s.HasK = f.KSeed, true
	}
	if op == backend.OpAttend && f.V.Format.Rotated() {
		ok = ok && (!s.HasV || s.V == f.VSeed)
		s.V, s.HasV = f.VSeed, true
	}
	return ok
}

// lists checks that the lists of queries name blocks of a view, and that the rotated sides in each
// list share seeds. It appends the seeds of each query to dst. The blocks were checked when they
// were set.
func lists[O any](dst []Seeds, op backend.Op, q *backend.Queries, v *View[O]) ([]Seeds, error) {
	var before []int32
	for i := range q.Len() {
		list := q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]]
		if i > 0 && slices.Equal(list, before) {
			dst = append(dst, dst[len(dst)-1])
			continue
		}
		before = list
		var s Seeds
		last := uint32(0) // most blocks have the form of the one before
		for j, idx := range list {
			e := v.At(int(idx))
			if e == nil {
				return nil, fmt.Errorf("query %d: entry %d of its list is %d, where a table of %d holds no"+
					" block: %w", i, j, idx, v.Len(), quant.ErrShape)
			}
			if e.Form == last {
				continue
			}
			last = e.Form
			f := &v.Form(last).Key
			switch {
			case op == backend.OpAttend && f.KeysOnly:
				return nil, fmt.Errorf("query %d: block %d has no V: %w", i, idx, quant.ErrShape)
			case !s.add(f, op):
				return nil, fmt.Errorf("query %d: block %d has another rotation seed than blocks"+
					" before: %w", i, idx, quant.ErrShape)
			}
		}
		dst = append(dst, s)
	}
	return dst, nil
}

// Attend checks the arguments of Attend. It appends the seeds of each query to dst.
func Attend[O any](dst []Seeds, q *backend.Queries, v *View[O], to *backend.Attention) ([]Seeds, error) {
	if err := queries(q, v.Shape()); err != nil {
		return nil, err
	}
	heads := int64(q.Len()) * int64(q.Group)
	switch {
	case int64(len(to.Out)) != heads*int64(q.HeadDimV):
		return nil, fmt.Errorf("out has %d values, want %d heads * %d: %w", len(to.Out), heads,
			q.HeadDimV, quant.ErrShape)
	case to.LSE != nil && int64(len(to.LSE)) != heads:
		return nil, fmt.Errorf("lse has %d values, want %d: %w", len(to.LSE), heads, quant.ErrShape)
	case to.Mass != nil && len(to.Mass) != len(q.BlockIdx):
		return nil, fmt.Errorf("mass has %d values, want %d entries of lists: %w", len(to.Mass),
			len(q.BlockIdx), quant.ErrShape)
	}
	return lists(dst, backend.OpAttend, q, v)
}

// Relevance checks the arguments of Relevance, seeds as in Attend.
func Relevance[O any](dst []Seeds, q *backend.Queries, lse []float32, v *View[O],
	rel *backend.RelevanceOut) ([]Seeds, error) {
	if err := queries(q, v.Shape()); err != nil {
		return nil, err
	}
	if heads := int64(q.Len()) * int64(q.Group); int64(len(lse)) != heads {
		return nil, fmt.Errorf("lse has %d values, want %d: %w", len(lse), heads, quant.ErrShape)
	}
	if rel == nil {
		return nil, fmt.Errorf("no Sum to add to: %w", quant.ErrShape)
	}
	if rel.Power != 1 && rel.Power != 2 {
		return nil, fmt.Errorf("power %d, want 1 or 2: %w", rel.Power, quant.ErrShape)
	}
	if len(rel.RowPtr) != v.Len()+1 || rel.RowPtr[0] != 0 ||
		int(rel.RowPtr[v.Len()]) != len(rel.Sum) {
		return nil, fmt.Errorf("RowPtr has %d entries for %d blocks, or does not run from 0 to %d: %w",
			len(rel.RowPtr), v.Len(), len(rel.Sum), quant.ErrShape)
	}
	for i := range v.Len() {
		rows := int64(v.Rows(i))
		if got := int64(rel.RowPtr[i+1]) - int64(rel.RowPtr[i]); got != rows {
			return nil, fmt.Errorf("block %d: RowPtr has room for %d rows, want %d: %w", i, got, rows,
				quant.ErrShape)
		}
	}
	return lists(dst, backend.OpRelevance, q, v)
}

// Users transposes the lists: the queries users[ptr[b]:ptr[b+1]] list block b, in ascending order.
// The results reuse the memory of ptr and users if it is large enough.
func Users(ptr []int, users []int32, q *backend.Queries, blocks int) ([]int, []int32) {
	ptr = slices.Grow(ptr[:0], blocks+2)[:blocks+2]
	clear(ptr)
	for _, b := range q.BlockIdx {
		ptr[b+2]++
	}
	for i := 2; i < len(ptr); i++ {
		ptr[i] += ptr[i-1]
	}
	users = slices.Grow(users[:0], len(q.BlockIdx))[:len(q.BlockIdx)]
	for i := range q.Len() {
		for _, b := range q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]] {
			users[ptr[b+1]] = int32(i)
			ptr[b+1]++
		}
	}
	return ptr[:blocks+1], users
}
