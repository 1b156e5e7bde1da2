// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
)

// Rows are searched in pieces. A worker takes searchRows rows and decodes tileRows at a time, once
// for all queries. Products are in plain Go.
const searchRows = 1024

var _ backend.Searcher = (*Backend)(nil)

// searchPiece is a range of rows of a side.
type searchPiece struct {
	rows     *backend.SearchRows
	mem      []byte
	rotation *codec.Rotation
	first, n int
}

// searching is one call of Search. The hits of a query are kept in the order of CompareHits. The
// order is total, so the hits do not depend on which worker finished first.
type searching struct {
	*backend.Search
	b      *Backend
	pieces []searchPiece
	mu     sync.Mutex
	found  [][]backend.Hit // [queries]
}

// Search finds the rows with the largest inner products; see backend.Searcher.
func (b *Backend) Search(ctx context.Context, s *backend.Search, out []backend.Hit) error {
	turn, err := b.open(ctx, backend.OpDecode)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	c := &searching{Search: s, b: b, found: make([][]backend.Hit, s.Len())}
	var failed error
	err = b.checker.Search(s, out, func(i int, mem []byte) {
		r := &s.Rows[i]
		p := searchPiece{rows: r, mem: mem}
		if r.Side.Coding.Format.Rotated() && failed == nil {
			p.rotation, failed = b.rotation(s.Dim, r.Side.Seed)
		}
		for ; p.first < r.Rows; p.first += searchRows {
			p.n = min(searchRows, r.Rows-p.first)
			c.pieces = append(c.pieces, p)
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("kvist/cpu: search: %w", err)
	}
	if len(c.found) > 0 {
		if err := b.workers.run(ctx, backend.OpDecode, len(c.pieces), c.search); err != nil {
			return err
		}
	}
	args.PutHits(out, s.TopK, c.found)
	return nil
}

// search processes one piece.
func (c *searching) search(i int) error {
	p := &c.pieces[i]
	w := c.b.coders.Get().(*coder)
	defer c.b.coders.Put(w)
	w.tile = grow(w.tile, tileRows*c.Dim)
	best := make([][]backend.Hit, len(c.found))
	for r := p.first; r < p.first+p.n; r += tileRows {
		n := min(tileRows, p.first+p.n-r)
		tile := w.tile[:n*c.Dim]
		if p.rotation != nil {
			w.Decode(tile, p.rows.Side.Coding, p.mem, p.rows.Rows, p.rotation, r, n)
		} else {
			attend.UnpackScaled(tile, p.rows.Side.Coding, p.mem, p.rows.Rows, c.Dim, r, n)
		}
		for q := range best {
			query := c.Q[q*c.Dim : (q+1)*c.Dim]
			for k := range n {
				x := innerProduct(query, tile[k*c.Dim:(k+1)*c.Dim])
				best[q] = keepHit(best[q], backend.Hit{Row: p.rows.First + int64(r+k), Product: x}, c.TopK)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for q, hits := range best {
		for _, h := range hits {
			c.found[q] = keepHit(c.found[q], h, c.TopK)
		}
	}
	return nil
}

// keepHit inserts a hit into the best k, which are in order.
func keepHit(best []backend.Hit, h backend.Hit, k int) []backend.Hit {
	if h.Product != h.Product {
		return best
	}
	if len(best) == k {
		if backend.CompareHits(h, best[k-1]) >= 0 {
			return best
		}
		best = best[:k-1]
	}
	at, _ := slices.BinarySearchFunc(best, h, backend.CompareHits)
	return slices.Insert(best, at, h)
}

// innerProduct adds in four lanes.
func innerProduct(a, b []float32) float32 {
	b = b[:len(a)]
	var s [4]float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s[0] += a[i] * b[i]
		s[1] += a[i+1] * b[i+1]
		s[2] += a[i+2] * b[i+2]
		s[3] += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s[0] += a[i] * b[i]
	}
	return (s[0] + s[1]) + (s[2] + s[3])
}
