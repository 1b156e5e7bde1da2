// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

type searchFlags struct {
	queries, rescore, tensor string
	k, factor, candidates    int
	exhaustive, json         bool
}

func newEmbedSearch(a *app) *cobra.Command {
	var f searchFlags
	cmd := &cobra.Command{
		Use:   "search INDEX.kvist --queries QUERIES",
		Short: "Find the vectors of an index that are most like each query",
		Long: `search prints the numbers of the k best vectors for every query, with their scores: estimated inner products or
cosines, the larger the better, or squared distances, the smaller the better. With --rescore the best
k * FACTOR are compared again by the original vectors, and scores are exact.

Fields of --json: queries, a list of {ids, scores}.`,
		Example: `  kvist embed search index.kvist --queries queries.npy -k 10
  kvist embed search index.kvist --queries queries.npy --rescore vectors.npy --factor 4`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			if f.k < 1 || f.factor < 1 || f.candidates < 0 {
				return usagef("-k %d, --factor %d, --candidates %d: want numbers of at least 1", f.k, f.factor, f.candidates)
			}
			return a.embedSearch(cmd.Context(), args[0], &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.queries, "queries", "", "`FILE` of queries (required)")
	fl.StringVar(&f.tensor, "tensor", "", "the `NAME` of the tensor, where a file has several")
	fl.IntVarP(&f.k, "neighbors", "k", 10, "how many vectors to find")
	fl.BoolVar(&f.exhaustive, "exhaustive", false, "compare whole vectors, not their heads first")
	fl.IntVar(&f.candidates, "candidates", 0, "vectors to complete after their heads were compared; 0 is 200 or 20k")
	fl.StringVar(&f.rescore, "rescore", "", "`FILE` of the original vectors, to compare the best again")
	fl.IntVar(&f.factor, "factor", 4, "k times this many are rescored")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	_ = cmd.MarkFlagRequired("queries") // the flag is there
	return cmd
}

type foundJSON struct {
	IDs    []uint64  `json:"ids"`
	Scores []float32 `json:"scores"`
}

// rowSource is the original vectors by number.
type rowSource quant.Rows

// Row implements vectors.Source.
func (r rowSource) Row(id uint64, dst []float32) error {
	if id >= uint64(quant.Rows(r).Len()) {
		return fmt.Errorf("there are %d original vectors: %w", quant.Rows(r).Len(), quant.ErrShape)
	}
	copy(dst, quant.Rows(r).Row(int(id)))
	return nil
}

func (a *app) embedSearch(ctx context.Context, name string, f *searchFlags) (err error) {
	x, err := a.openIndex(ctx, name)
	if err != nil {
		return err
	}
	defer closing(x, &err)
	queries, err := a.readVectors(ctx, f.queries, f.tensor)
	if err != nil {
		return err
	}
	opts := vectors.SearchOptions{Exhaustive: f.exhaustive, Candidates: f.candidates}
	if f.rescore != "" {
		rows, err := a.readVectors(ctx, f.rescore, f.tensor)
		if err != nil {
			return err
		}
		if rows.Dim != x.Dim() {
			return fmt.Errorf("%s has vectors of %d values, the index has %d: %w", inputName(f.rescore), rows.Dim, x.Dim(),
				quant.ErrShape)
		}
		opts.Rescore = vectors.Rescore{Factor: f.factor, Source: rowSource(rows)}
	}
	hits, err := x.Search(ctx, queries, f.k, opts)
	if err != nil {
		return err
	}
	if f.json {
		out := make([]foundJSON, len(hits))
		for i, list := range hits {
			out[i] = foundJSON{make([]uint64, len(list)), make([]float32, len(list))}
			for j, h := range list {
				out[i].IDs[j], out[i].Scores[j] = h.ID, h.Score
			}
		}
		return printJSON(a.stdout, struct {
			Queries []foundJSON `json:"queries"`
		}{out})
	}
	p := &printer{w: a.stdout}
	for i, list := range hits {
		p.printf("query %d:", i)
		for _, h := range list {
			p.printf(" %d (%.4f)", h.ID, h.Score)
		}
		p.printf("\n")
	}
	return p.err
}
