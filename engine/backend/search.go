// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"cmp"
	"context"
)

// MaxTopK bounds Search.TopK.
const MaxTopK = 1024

// Search is a request for the rows with the largest inner products with each query.
type Search struct {
	Q    []float32 // [queries, dim], original basis, finite
	Dim  int
	TopK int // hits per query, 1 to MaxTopK
	// Rows are searched in order; at most 2^31 - 1 rows in total.
	Rows []SearchRows
}

// SearchRows are packed rows of Search.Dim values. Row r of them has the number First + r.
type SearchRows struct {
	Side  Side
	Rows  int
	First int64
}

// Len returns the number of queries.
func (s *Search) Len() int {
	if s.Dim < 1 {
		return 0
	}
	return len(s.Q) / s.Dim
}

// Hit is a row that a search found. NoHit fills the remaining places if there are fewer rows than
// TopK.
type Hit struct {
	Row     int64 // its number
	Product float32
}

// NoHit is the value of Hit.Row for a place without a hit.
const NoHit = -1

// CompareHits orders hits: larger products first, then smaller row numbers, then places without a
// hit.
func CompareHits(a, b Hit) int {
	switch {
	case a.Row == NoHit || b.Row == NoHit:
		return cmp.Compare(b2i(a.Row == NoHit), b2i(b.Row == NoHit))
	case a.Product != b.Product:
		return cmp.Compare(b.Product, a.Product)
	}
	return cmp.Compare(a.Row, b.Row)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Searcher is a backend that searches packed rows exhaustively by inner product, for an index of
// embeddings. It is optional; a cache works without it.
type Searcher interface {
	// Search writes the TopK hits of every query to out [queries, TopK], in the order of
	// CompareHits. Products are float32 sums: rows whose products differ by rounding only may come
	// in another order on another backend, but never on the same one. A row whose product is NaN is
	// not a hit. Search supports the codings that Decode supports.
	//
	// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrTooLarge, quant.ErrClosed; nothing is
	// written then.
	Search(ctx context.Context, s *Search, out []Hit) error
}
