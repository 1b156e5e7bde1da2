// SPDX-License-Identifier: Apache-2.0

package cpu

// prefetchAfter prefetches the sides in bit planes of the tile after row r of the current block, entry e of
// a unit's list, while the current tile is processed.
func (s *scratch) prefetchAfter(c *call, u *unit, e, r int) {
	b := &s.blk
	if r += tileRows; r < int(b.form.Key.Rows) {
		s.prefetchTile(b.form, b.k, b.v, r)
		return
	}
	if e++; e == len(u.list) {
		return
	}
	next := c.view.At(int(u.list[e]))
	if next.Site != b.site {
		return // not worth looking up
	}
	f := c.view.Form(next.Form)
	s.prefetchTile(f, b.kBuf[next.K:][:f.Own.k.bytes], b.vBuf[next.V:][:f.Own.v.bytes], 0)
}

func (s *scratch) prefetchTile(f *form, k, v []byte, r int) {
	p, rows := s.p, int(f.Key.Rows)
	n := min(tileRows, rows-r)
	if n <= 0 {
		return
	}
	if f.Own.k.planes {
		p.kern.PrefetchPlanes(f.Key.K, k, rows, p.HeadDim, r, n)
	}
	if f.Own.v.planes {
		p.kern.PrefetchPlanes(f.Key.V, v, rows, p.HeadDimV, r, n)
	}
}
