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

// blockView is a block as it is read. The memory of buffers is looked up where it changes from block to
// block.
type blockView struct {
	view                   *view
	form                   *form
	base                   int64  // position of the block's segment
	origin                 int64  // of the positions of the group
	k, v, pos, count, bias []byte // optional ones are nil if not given

	site, group, kind uint32        // indices of site, group and form, 0 for none
	kBuf, vBuf, pBuf  []byte        // the buffers of k, v and pos, from the high half of their offsets on
	means             [2]args.Place // of K and V
}

// again reads another block of the view. It was checked when it was set, but its memory may have been freed
// since.
func (w *blockView) again(e *entry, withV bool) error {
	if e.Site != w.site && !w.move(e.Site, withV) || e.Group != w.group && !w.join(e.Group) {
		return errFreed()
	}
	if e.Form != w.kind {
		w.kind, w.form = e.Form, w.view.Form(e.Form)
	}
	f := w.form
	w.base = w.origin + int64(e.Base)
	w.k = w.kBuf[e.K:][:f.Own.k.bytes:f.Own.k.bytes]
	if withV {
		w.v = w.vBuf[e.V:][:f.Own.v.bytes:f.Own.v.bytes]
	}
	rows := int(f.Key.Rows)
	w.pos = nil
	if f.Key.HasPos {
		w.pos = w.pBuf[e.Pos:][:2*rows]
	}
	if f.Key.HasCount || f.Key.HasBias || w.count != nil || w.bias != nil {
		return w.perRow(e, rows)
	}
	return nil
}

// next is again for a block whose form, group and site are those of the last one, without anything per row.
// It returns false for others.
func (w *blockView) next(e *entry) bool {
	if e.Form != w.kind || e.Site != w.site || w.pos != nil || w.count != nil || w.bias != nil {
		return false
	}
	w.base = w.origin + int64(e.Base)
	k, v := len(w.k), len(w.v)
	w.k, w.v = w.kBuf[e.K:][:k:k], w.vBuf[e.V:][:v:v]
	return true
}

// move looks up the buffers of a site. It returns false if one was freed.
func (w *blockView) move(site uint32, withV bool) (ok bool) {
	s := &w.view.Site(site).Key
	w.site = 0
	if w.kBuf, ok = memoryOf(w.view, s.K); !ok {
		return false
	}
	if withV {
		if w.vBuf, ok = memoryOf(w.view, s.V); !ok {
			return false
		}
	}
	if w.pBuf, ok = memoryOf(w.view, s.Pos); ok {
		w.site = site
	}
	return ok
}

// join looks up what blocks of a group share. It returns false if a mean was freed.
func (w *blockView) join(group uint32) bool {
	g := &w.view.Group(group).Key
	w.group, w.origin, w.means = group, g.Base, [2]args.Place{g.MeanK, g.MeanV}
	for _, m := range w.means {
		if _, ok := memoryOf(w.view, m.Slab); !ok {
			w.group = 0
			return false
		}
	}
	return true
}

// perRow reads the spans that few blocks have.
func (w *blockView) perRow(e *entry, rows int) error {
	w.count, w.bias = nil, nil
	s := &w.view.Site(e.Site).Key
	for _, x := range []struct {
		to   *[]byte
		from args.Place
		n    int
	}{{&w.count, s.Count, 2 * rows}, {&w.bias, s.Bias, 4 * rows}} {
		mem, ok := memoryOf(w.view, x.from.Slab)
		if !ok {
			return errFreed()
		}
		if x.from.Slab != 0 {
			*x.to = mem[x.from.Off:][:x.n]
		}
	}
	return nil
}

// memoryOf returns the memory of a buffer of a view, nil for none; false if it was freed.
func memoryOf(v *view, slab uint32) ([]byte, bool) {
	if slab == 0 {
		return nil, true
	}
	s := v.Slab(slab)
	mem := s.Buf.(*buffer).mem.Load()
	if mem == nil {
		return nil, false
	}
	return (*mem)[s.High<<32:], true
}

// meanOf writes a mean of a view to dst, [dim]. It returns false if its memory was freed.
func (p *prepared) meanOf(v *view, at args.Place, dst []float32) bool {
	mem, ok := memoryOf(v, at.Slab)
	if ok {
		p.kern.Exact(dst, quant.F16, mem[at.Off:], 1, len(dst), len(dst))
	}
	return ok
}

func errFreed() error { return fmt.Errorf("a buffer was freed: %w", quant.ErrClosed) }

// seeds are the seeds of the rotated sides in one query's list.
type seeds = args.Seeds
