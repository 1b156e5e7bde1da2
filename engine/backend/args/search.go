// SPDX-License-Identifier: Apache-2.0

package args

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Search checks the arguments of a search and passes the memory of every side to the caller.
func (c Checker[M]) Search(s *backend.Search, out []backend.Hit, each func(i int, m M)) error {
	if s.Dim < 1 || s.Dim > quant.MaxDim || len(s.Q)%max(1, s.Dim) != 0 {
		return fmt.Errorf("%d values of queries of dim %d: %w", len(s.Q), s.Dim, quant.ErrShape)
	}
	if s.TopK < 1 || s.TopK > backend.MaxTopK {
		return fmt.Errorf("top-k %d, want 1 to %d: %w", s.TopK, backend.MaxTopK, quant.ErrShape)
	}
	if len(out)/s.TopK != s.Len() || len(out)%s.TopK != 0 {
		return fmt.Errorf("room for %d hits, want %d for each of %d queries: %w", len(out), s.TopK, s.Len(),
			quant.ErrShape)
	}
	for i, v := range s.Q {
		if !finite(v) {
			return fmt.Errorf("query %d, value %d is %v: %w", i/s.Dim, i%s.Dim, v, quant.ErrRange)
		}
	}
	var rows int64
	for i := range s.Rows {
		r := &s.Rows[i]
		m, err := c.Side(fmt.Sprintf("rows %d", i), backend.OpDecode, r.Side, r.Rows, s.Dim)
		if err != nil {
			return err
		}
		if r.First < 0 || r.First > math.MaxInt64-int64(r.Rows) {
			return fmt.Errorf("rows %d: First is %d: %w", i, r.First, quant.ErrShape)
		}
		if rows += int64(r.Rows); rows > math.MaxInt32 {
			return fmt.Errorf("rows %d: more than %d in all: %w", i, math.MaxInt32, quant.ErrTooLarge)
		}
		each(i, m)
	}
	return nil
}

// PutHits writes the hits of each query, at most topK, to out [queries, topK]. NoHit fills the
// remaining places.
func PutHits(out []backend.Hit, topK int, found [][]backend.Hit) {
	for q, hits := range found {
		to := out[q*topK : (q+1)*topK]
		for i := copy(to, hits); i < len(to); i++ {
			to[i] = backend.Hit{Row: backend.NoHit}
		}
	}
}
