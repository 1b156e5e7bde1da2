// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"cmp"
	"context"
)

// MaxTopK bounds Search.TopK.
const MaxTopK = 1024

// Search asks for the rows whose inner products with queries are the largest.
type Search struct {
	Q    []float32 // [queries, dim], original basis, finite
	Dim  int
	TopK int // hits a query, 1 to MaxTopK
	// Rows are searched one after the other; at most 2^31 - 1 in all.
	Rows []SearchRows
}

// SearchRows are packed rows of Search.Dim values. Row r has the number First + r.
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

// Hit is a row found. NoHit fills the places of a query for which there are fewer rows.
type Hit struct {
	Row     int64 // its number
	Product float32
}

// NoHit is Hit.Row where there is none.
const NoHit = -1

// CompareHits orders hits: larger products first, then smaller numbers. Places without a hit come
// last.
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

// Searcher is a backend that searches packed rows by inner product, exhaustively: what an index of
// embeddings stands on. It is apart from Backend, which a cache can do without.
type Searcher interface {
	// Search writes the TopK hits of every query to out [queries, TopK], in the order of
	// CompareHits. Products are float32 sums, so that rows as near to each other as rounding may
	// come in another order on another backend; on one backend they never change. A row whose
	// product is not a number is no hit. Codings are those that Decode supports.
	//
	// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrTooLarge, quant.ErrClosed; nothing is
	// written then.
	Search(ctx context.Context, s *Search, out []Hit) error
}
