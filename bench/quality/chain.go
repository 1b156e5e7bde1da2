// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"math"
	"math/rand/v2"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// Chain is what a model wrote, token after token on its own.
type Chain struct {
	Tokens []int32
	Same   int // first tokens that are those of the exact cache
	// Surprisal is the mean of -log p of the tokens, p being what the model gives them over the exact cache of
	// this very chain: what a cache has lost shows in what the model writes.
	Surprisal float64
	Budget    int64
}

// ChainOptions configure MeasureChain.
type ChainOptions struct {
	Tokens      int // to write
	Temperature float64
	Seed        uint64
	Shares      []float64 // budgets, as shares of the f16 bytes of prompt and chain
	Config      engine.Config
	OnToken     func(done int)
}

// MeasureChain has the model go on from a prompt, once over the exact cache and once under each budget. All chains
// draw from the same random numbers, so that those of two caches are the same until a probability differs.
//
// Errors: those of the model and of the cache.
func MeasureChain(ctx context.Context, be backend.Backend, m *model.Model, prompt []int32, o ChainOptions) ([]Chain, error) {
	g := m.Geometry()
	n := len(prompt) + o.Tokens
	var all []Chain
	for _, share := range append([]float64{0}, o.Shares...) {
		var kv model.KVStore
		budget := int64(0)
		if share == 0 {
			exact, err := m.NewKV(model.KVOptions{})
			if err != nil {
				return nil, err
			}
			kv = exact
		} else {
			cfg := servingConfig(m, o.Config)
			budget = int64(share * float64(2*seen(m, 0, n, n)))
			cfg.Budget = budget
			c, err := engine.Open(be, g, cfg)
			if err != nil {
				return nil, err
			}
			defer c.Close() //nolint:errcheck // it holds memory alone
			if kv, err = NewSequenceStore(ctx, c, g.Layers); err != nil {
				return nil, err
			}
		}
		tokens, err := write(m, kv, prompt, o)
		if err != nil {
			return nil, err
		}
		x := Chain{Tokens: tokens, Budget: budget}
		if x.Surprisal, err = surprisalOf(m, prompt, tokens); err != nil {
			return nil, err
		}
		for first := tokens; x.Same < len(tokens); x.Same++ {
			if len(all) > 0 {
				first = all[0].Tokens
			}
			if first[x.Same] != tokens[x.Same] {
				break
			}
		}
		all = append(all, x)
	}
	return all, nil
}

// write draws tokens from the model over a cache.
func write(m *model.Model, kv model.KVStore, prompt []int32, o ChainOptions) (tokens []int32, err error) {
	const chunk = 16
	var logits []float32
	for p := 0; p < len(prompt); p += chunk {
		if logits, err = m.Forward(prompt[p:min(p+chunk, len(prompt))], kv, p, model.ForwardOptions{}); err != nil {
			return nil, err
		}
	}
	for len(tokens) < o.Tokens {
		rng := rand.New(rand.NewPCG(o.Seed, uint64(len(tokens))))
		best, next := math.Inf(-1), int32(0)
		for i, v := range logits { // the largest of logits with Gumbel noise is a draw from their distribution
			if x := float64(v)/o.Temperature - math.Log(rng.ExpFloat64()); x > best {
				best, next = x, int32(i)
			}
		}
		tokens = append(tokens, next)
		if o.OnToken != nil {
			o.OnToken(len(tokens))
		}
		if logits, err = m.Forward(tokens[len(tokens)-1:], kv, len(prompt)+len(tokens)-1, model.ForwardOptions{}); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

// surprisalOf returns the mean surprisal of a chain over the exact cache.
func surprisalOf(m *model.Model, prompt, tokens []int32) (float64, error) {
	kv, err := m.NewKV(model.KVOptions{})
	if err != nil {
		return 0, err
	}
	all := append(append([]int32{}, prompt...), tokens...)
	sum := 0.0
	_, err = m.Forward(all[:len(all)-1], kv, 0, model.ForwardOptions{Logits: model.LogitsRange, From: len(prompt) - 1, To: len(all) - 1,
		OnLogits: func(i int, logits []float32) error {
			sum += model.Surprisal(logits, all[i+1])
			return nil
		}})
	if err == nil && math.IsNaN(sum) {
		err = quant.ErrRange
	}
	return sum / float64(len(tokens)), err
}
