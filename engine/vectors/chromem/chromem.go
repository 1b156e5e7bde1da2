// SPDX-License-Identifier: Apache-2.0

// Package chromem searches a collection of chromem-go by an index of package vectors instead of comparing all of
// its float32 embeddings. It is a module of its own: kvist does not depend on chromem-go.
//
// A [Searcher] answers [Searcher.QueryEmbedding] as the collection does. Candidates come from the codes; their
// similarities are then computed from the embeddings of the collection, so that scores are exact. An index of
// 100 bytes finds nearly all of the ten nearest of 384 values; see bench/results/vectors.md.
package chromem

import (
	"context"
	"fmt"
	"strings"

	"github.com/philippgille/chromem-go"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

// Searcher searches a collection. It is safe for concurrent use, also with Add.
type Searcher struct {
	collection *chromem.Collection
	index      *vectors.Index
	names      *names
}

// New indexes the documents of a collection that ids name, at so many bytes an embedding. It needs 64 documents
// at least, to calibrate on.
//
// Errors: those of the collection and of package vectors.
func New(ctx context.Context, c *chromem.Collection, ids []string, bytes float64) (*Searcher, error) {
	rows, err := embeddings(ctx, c, ids)
	if err != nil {
		return nil, err
	}
	index, err := vectors.Calibrate(rows, vectors.Options{Bytes: bytes, Rows: len(ids), Metric: vectors.Cosine})
	if err != nil {
		return nil, err
	}
	s := &Searcher{c, index, &names{number: map[string]uint64{}}}
	return s, s.add(ctx, ids, rows)
}

// Add indexes more documents of the collection.
//
// Errors: those of New; nothing is added then.
func (s *Searcher) Add(ctx context.Context, ids ...string) error {
	rows, err := embeddings(ctx, s.collection, ids)
	if err != nil {
		return err
	}
	return s.add(ctx, ids, rows)
}

func (s *Searcher) add(ctx context.Context, ids []string, rows quant.Rows) error {
	numbers, err := s.names.enter(ids)
	if err != nil {
		return err
	}
	if err := s.index.Add(ctx, numbers, rows); err != nil {
		s.names.forget(ids)
		return err
	}
	return nil
}

// Remove takes documents out of the index, not out of the collection.
//
// Errors: *vectors.IDError.
func (s *Searcher) Remove(ids ...string) error {
	numbers, err := s.names.numbers(ids)
	if err != nil {
		return err
	}
	if err := s.index.Remove(numbers...); err != nil {
		return err
	}
	s.names.forget(ids)
	return nil
}

// embeddings returns those of documents.
func embeddings(ctx context.Context, c *chromem.Collection, ids []string) (quant.Rows, error) {
	var rows quant.Rows
	for _, id := range ids {
		d, err := c.GetByID(ctx, id)
		if err != nil {
			return rows, fmt.Errorf("chromem: document %q: %w", id, err)
		}
		if rows.Dim == 0 {
			rows.Dim = len(d.Embedding)
		}
		if len(d.Embedding) != rows.Dim {
			return rows, fmt.Errorf("chromem: document %q has %d values, want %d: %w", id, len(d.Embedding), rows.Dim,
				quant.ErrShape)
		}
		rows.Data = append(rows.Data, d.Embedding...)
	}
	return rows, nil
}

// QueryEmbedding returns the n documents that are most alike, as chromem.Collection.QueryEmbedding: where holds
// metadata that must be equal, whereDocument may have $contains and $not_contains. It returns fewer where there
// are fewer.
//
// Errors: those of package vectors and of the collection; quant.ErrUnsupported for another operator.
func (s *Searcher) QueryEmbedding(ctx context.Context, embedding []float32, n int, where, whereDocument map[string]string) ([]chromem.Result, error) {
	for op := range whereDocument {
		if op != "$contains" && op != "$not_contains" {
			return nil, fmt.Errorf("chromem: operator %q: %w", op, quant.ErrUnsupported)
		}
	}
	opts := vectors.SearchOptions{Rescore: vectors.Rescore{Factor: 4, Source: source{ctx, s}}}
	if len(where)+len(whereDocument) > 0 {
		opts.Filter = func(number uint64) bool {
			d, err := s.collection.GetByID(ctx, s.names.name(number))
			return err == nil && matches(&d, where, whereDocument)
		}
	}
	hits, err := s.index.Search(ctx, quant.Rows{Dim: len(embedding), Data: embedding}, n, opts)
	if err != nil {
		return nil, err
	}
	var out []chromem.Result
	for _, h := range hits[0] {
		d, err := s.collection.GetByID(ctx, s.names.name(h.ID))
		if err != nil {
			return nil, err
		}
		out = append(out, chromem.Result{ID: d.ID, Metadata: d.Metadata, Embedding: d.Embedding, Content: d.Content,
			Similarity: h.Score})
	}
	return out, nil
}

func matches(d *chromem.Document, where, whereDocument map[string]string) bool {
	for k, v := range where {
		if d.Metadata[k] != v {
			return false
		}
	}
	for op, text := range whereDocument {
		if strings.Contains(d.Content, text) != (op == "$contains") {
			return false
		}
	}
	return true
}

// source gives the index the embeddings of the collection.
type source struct {
	ctx context.Context
	s   *Searcher
}

// Row implements vectors.Source.
func (r source) Row(number uint64, dst []float32) error {
	d, err := r.s.collection.GetByID(r.ctx, r.s.names.name(number))
	if err == nil && len(d.Embedding) != len(dst) {
		err = fmt.Errorf("chromem: document %q has %d values: %w", d.ID, len(d.Embedding), quant.ErrShape)
	}
	copy(dst, d.Embedding)
	return err
}
