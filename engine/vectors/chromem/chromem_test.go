// SPDX-License-Identifier: Apache-2.0

package chromem_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/philippgille/chromem-go"

	index "github.com/kvist-project/kvist/engine/vectors/chromem"
	"github.com/kvist-project/kvist/quant"
)

// embedding returns a unit vector with a spectrum that falls.
func embedding(seed uint64) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, 64)
	var sum float64
	for i := range x {
		v := rng.NormFloat64() * math.Exp(-float64(i)/20)
		x[i] = float32(v)
		sum += v * v
	}
	for i := range x {
		x[i] /= float32(math.Sqrt(sum))
	}
	return x
}

// The index answers as the collection does, with and without conditions.
func TestQueryEmbedding_AsCollection(t *testing.T) {
	ctx := context.Background()
	c, err := chromem.NewDB().CreateCollection("x", nil, func(context.Context, string) ([]float32, error) {
		return nil, errors.New("documents have embeddings")
	})
	if err != nil {
		t.Fatal(err)
	}
	var docs []chromem.Document
	var ids []string
	for i := range 600 {
		ids = append(ids, fmt.Sprint("doc", i))
		docs = append(docs, chromem.Document{ID: ids[i], Embedding: embedding(uint64(i)), Content: fmt.Sprint("text ", i),
			Metadata: map[string]string{"parity": fmt.Sprint(i % 2)}})
	}
	if err := c.AddDocuments(ctx, docs, 2); err != nil {
		t.Fatal(err)
	}
	s, err := index.New(ctx, c, ids[:500], 40)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(ctx, ids[500:]...); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(ctx, "doc7"); !errors.Is(err, quant.ErrShape) {
		t.Fatalf("a document twice: %v", err)
	}
	for q := range uint64(30) {
		for _, where := range []map[string]string{nil, {"parity": "1"}} {
			for _, document := range []map[string]string{nil, {"$contains": "3"}, {"$not_contains": "3"}} {
				query := embedding(10_000 + q)
				want, err := c.QueryEmbedding(ctx, query, 10, where, document)
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.QueryEmbedding(ctx, query, 10, where, document)
				if err != nil {
					t.Fatal(err)
				}
				for i := range want {
					if got[i].ID != want[i].ID || math.Abs(float64(got[i].Similarity-want[i].Similarity)) > 1e-5 {
						t.Fatalf("query %d, hit %d: %s %g, want %s %g", q, i, got[i].ID, got[i].Similarity, want[i].ID, want[i].Similarity)
					}
				}
			}
		}
	}
	if err := s.Remove("doc3"); err != nil {
		t.Fatal(err)
	}
	got, err := s.QueryEmbedding(ctx, embedding(3), 1, nil, nil)
	if err != nil || got[0].ID == "doc3" {
		t.Fatalf("after removal: %v %v", got, err)
	}
	if _, err := s.QueryEmbedding(ctx, embedding(3), 1, nil, map[string]string{"$like": "x"}); !errors.Is(err, quant.ErrUnsupported) {
		t.Fatalf("an operator that is not known: %v", err)
	}
}
