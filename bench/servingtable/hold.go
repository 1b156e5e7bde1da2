// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
)

// questionsEach is the number of questions that a context of quality.Retrieval has.
const questionsEach = 8

// measureHeld tells a cache conversations with facts in them and asks for the facts when all are told: once in a
// cache that holds all of them exactly, and once at each ratio.
func measureHeld(be backend.Backend, m *model.Model, role string, conversations, tokens int, ratios []float64, awake bool, cfg engine.Config) error {
	var bodies []string
	for _, t := range texts.All() {
		if t.Role == role {
			bodies = append(bodies, t.Body)
		}
	}
	r, err := quality.NewRetrieval(m.Tokenizer(), bodies, questionsEach*conversations, tokens, 1)
	if err != nil {
		return err
	}
	f16 := int64(0)
	for _, c := range r.Contexts {
		f16 += runner.ExactBytes(m, len(c.Tokens))
	}
	fmt.Println("| f16 over budget | budget | facts found | of those that the exact cache finds | bytes of rows | windows closed | codings of sides |\n|---:|---:|---:|---:|---:|---:|---|")
	var exact *quality.Held
	for _, ratio := range append([]float64{0.5}, ratios...) {
		o := quality.HeldOptions{Budget: int64(float64(f16) / ratio), Config: cfg, Awake: awake, OnTold: func(i int) { fmt.Fprintln(os.Stderr, "told", i) }}
		h, err := quality.MeasureHeld(context.Background(), be, m, r, o)
		if err != nil {
			return fmt.Errorf("servingtable: %g times f16: %w", ratio, err)
		}
		if exact == nil {
			exact = h
		}
		found, asked := h.Count()
		both, could := 0, 0
		for i := range exact.Found {
			for j, ok := range exact.Found[i] {
				if ok {
					could++
					if h.Found[i][j] {
						both++
					}
				}
			}
		}
		fmt.Printf("| %.2f | %d | %d of %d | %d of %d | %d | %d | %v |\n", ratio, o.Budget, found, asked, both, could, h.Bytes, h.Stats.Folded, h.Stats.Sides)
	}
	return nil
}
