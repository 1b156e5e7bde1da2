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
func measureHeld(be backend.Backend, m *model.Model, role string, conversations, tokens, after int, ratios []float64, awake bool, cfg engine.Config) error {
	bodies := bodiesOf(role)
	r, err := quality.NewRetrieval(m.Tokenizer(), bodies, questionsEach*conversations, tokens, 1)
	if err != nil {
		return err
	}
	rounds := []*quality.Retrieval{r}
	if after > 0 {
		if rounds, err = followed(m, r, bodies, after); err != nil {
			return err
		}
	}
	f16 := make([]int64, len(rounds))
	for i, x := range rounds {
		for _, c := range x.Contexts {
			f16[i] += runner.ExactBytes(m, len(c.Tokens))
		}
	}
	fmt.Println("| f16 over budget | bytes of the budget | facts found | of those that the exact cache finds | bytes of rows | windows closed | codings of sides |\n|---:|---:|---:|---:|---:|---:|---|")
	var exact []bool
	for _, ratio := range append([]float64{0.5}, ratios...) {
		all, sides := []bool{}, map[string]int{}
		var budget, bytes int64
		folded := uint64(0)
		for i, x := range rounds {
			o := quality.HeldOptions{Budget: int64(float64(f16[i]) / ratio), Config: cfg, Awake: awake,
				OnTold: func(j int) { fmt.Fprintln(os.Stderr, "told", i+j, "at", ratio) }}
			h, err := quality.MeasureHeld(context.Background(), be, m, x, o)
			if err != nil {
				return fmt.Errorf("servingtable: %g times f16: %w", ratio, err)
			}
			for _, found := range h.Found {
				all = append(all, found...)
			}
			budget, bytes, folded = budget+o.Budget, bytes+h.Bytes, folded+h.Stats.Folded
			for k, n := range h.Stats.Sides {
				sides[k] += n
			}
		}
		if exact == nil {
			exact = all
		}
		found, both, could := 0, 0, 0
		for i, ok := range all {
			if ok {
				found++
			}
			if exact[i] {
				could++
				if ok {
					both++
				}
			}
		}
		fmt.Printf("| %.2f | %d | %d of %d | %d of %d | %d | %d | %v |\n", ratio, budget, found, len(all), both, could, bytes, folded, sides)
	}
	return nil
}

// bodiesOf returns the texts of a role.
func bodiesOf(role string) (bodies []string) {
	for _, t := range texts.All() {
		if t.Role == role {
			bodies = append(bodies, t.Body)
		}
	}
	return bodies
}

// followed returns each context of a retrieval alone, with tokens of another text behind it.
func followed(m *model.Model, r *quality.Retrieval, bodies []string, after int) (rounds []*quality.Retrieval, err error) {
	for i, c := range r.Contexts {
		var more []int32
		for j := 1; len(more) < after; j++ {
			part, err := m.Tokenizer().Continue("\n\n"+bodies[(i+j)%len(bodies)], false)
			if err != nil {
				return nil, err
			}
			more = append(more, part...)
		}
		c.Tokens = append(append([]int32{}, c.Tokens...), more[:after]...)
		rounds = append(rounds, &quality.Retrieval{Contexts: []quality.RetrievalContext{c}})
	}
	return rounds, nil
}

// promptTokens is how much of a text a chain begins with.
const promptTokens = 256

// measureChains prints how what a model writes on its own fares under budgets.
func measureChains(be backend.Backend, m *model.Model, names []string, tokens int, o quality.ServingOptions) error {
	fmt.Println("| text | share of f16 | surprisal of the chain over the exact cache, nats | first tokens as those of the exact cache |\n|---|---:|---:|---:|")
	for _, name := range names {
		ids, err := encode(m, name)
		if err != nil {
			return err
		}
		all, err := quality.MeasureChain(context.Background(), be, m, ids[:promptTokens], quality.ChainOptions{Tokens: tokens,
			Temperature: 0.8, Seed: 1, Shares: o.Shares, Config: o.Config})
		if err != nil {
			return err
		}
		for i, c := range all {
			share := "exact"
			if i > 0 {
				share = fmt.Sprint(o.Shares[i-1])
			}
			fmt.Printf("| %s | %s | %.4f | %d of %d |\n", name, share, c.Surprisal, c.Same, tokens)
		}
	}
	return nil
}
