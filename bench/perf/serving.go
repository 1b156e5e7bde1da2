// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// Two layers of SmolLM2-135M stand for a model: what a step costs grows with its layers.
var servingGeometry = quant.Geometry{Layers: 2, Heads: 9, KVHeads: 3, HeadDim: 64, HeadDimV: 64}

// servingSegment is the default of engine.Config: tokens that are sorted and priced together.
const servingSegment = 256

// servingShares are the budgets of the cache as shares of what its rows take as f16. 0: no pressure.
var servingShares = []float64{0, 0.25}

// serveCases measure the serving cache: steps of one token for several conversations, prompts that close a segment,
// and a conversation that is parked and comes back.
func serveCases(quick bool, threads int) (all []Case) {
	seqs, tokens := 8, 4096
	if quick {
		seqs, tokens = 4, 1024
	}
	for _, share := range servingShares {
		budget := "none"
		if share > 0 {
			budget = fmt.Sprintf("%g%%", 100*share)
		}
		key := fmt.Sprintf("budget=%s/layers=%d/seqs=%d/context=%d/threads=%d", budget, servingGeometry.Layers, seqs, tokens, threads)
		all = append(all, Case{Names: []string{"serve/op=step/" + key, "serve/op=close/" + key, "serve/op=park/" + key,
			"serve/op=resume/" + key}, Setup: func(ctx context.Context, e *Env) (*Ready, error) {
			return serveReady(ctx, e, share, seqs, tokens)
		}})
	}
	return all
}

// server is a cache with conversations of the same length.
type server struct {
	c       *engine.Cache
	rows    []engine.Row
	k, v, q []float32 // of a chunk of a segment
	out     []float32
}

func serveReady(ctx context.Context, e *Env, share float64, seqs, tokens int) (_ *Ready, err error) {
	g := servingGeometry
	f16 := int64(seqs*tokens) * int64(g.Layers*g.KVHeads*4*g.HeadDim)
	cfg := engine.Config{Budget: 2*f16 + 64<<20, Seed: 3, Store: store.NewMemory(store.MemoryOptions{})}
	if share > 0 { // windows and scratch memory do not shrink with it
		cfg.Budget = int64(share*float64(f16)) + int64(seqs)*1<<18 + 4<<20
	}
	s := &server{}
	if s.c, err = engine.Open(e.Backend, g, cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.c.Close())
		}
	}()
	const chunk = servingSegment
	n := max(chunk, seqs) * g.KVHeads * g.HeadDim
	s.k, s.v, s.q = gaussian(n, 1), gaussian(n, 2), gaussian(n*g.GQARatio(), 3)
	s.out = make([]float32, len(s.q))
	for range seqs {
		q, err := s.c.NewSequence()
		if err != nil {
			return nil, err
		}
		s.rows = append(s.rows, engine.Row{Seq: q, Tokens: 1})
		for t := 0; t < tokens; t += 64 {
			if err := s.step(ctx, []engine.Row{{Seq: q, Tokens: 64}}, 64); err != nil {
				return nil, err
			}
		}
	}
	return s.ready(e, seqs, tokens), nil
}

// step adds tokens, n in all.
func (s *server) step(ctx context.Context, rows []engine.Row, n int) error {
	g := servingGeometry
	st, err := s.c.Begin(ctx, rows)
	if err != nil {
		return err
	}
	kv, qo := n*g.KVHeads*g.HeadDim, n*g.Heads*g.HeadDim
	for l := range g.Layers {
		if err := st.Append(l, s.k[:kv], s.v[:kv]); err != nil {
			return err
		}
		if err := st.Attend(l, s.q[:qo], s.out[:qo]); err != nil {
			return err
		}
	}
	return st.Commit(rows[0].Tokens)
}

// ready returns the work in the order of the names. Parking takes the first conversation away and resuming brings it
// back, each outside of the other's time.
func (s *server) ready(e *Env, seqs, tokens int) *Ready {
	g := servingGeometry
	perToken := float64(g.Layers * g.KVHeads * 4 * g.HeadDim)
	held := func() float64 { return float64(s.c.Stats().RowBytes) }
	work := func(units float64, run func(context.Context) error) *Work {
		return &Work{Unit: "token", Units: units, Threads: e.Threads, Run: run}
	}
	step := work(float64(seqs), func(ctx context.Context) error { return s.step(ctx, s.rows, seqs) })
	step.Bytes, step.Plain = held(), float64(seqs*tokens)*perToken
	closing := work(servingSegment, func(ctx context.Context) error {
		f, err := s.rows[0].Seq.Fork()
		if err != nil {
			return err
		}
		for t := 0; t < servingSegment; t += 64 {
			if err := s.step(ctx, []engine.Row{{Seq: f, Tokens: 64}}, 64); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		return f.Close()
	})
	closing.Plain = servingSegment * perToken
	var key store.Key
	var parked bool
	park := func(ctx context.Context) (err error) {
		if parked {
			return nil
		}
		key, err = s.rows[0].Seq.Park(ctx, nil, time.Time{})
		parked = err == nil
		return err
	}
	resume := func(ctx context.Context) (err error) {
		if !parked {
			return nil
		}
		if s.rows[0].Seq, err = s.c.Resume(ctx, nil, key); err != nil {
			return err
		}
		parked = false
		return s.c.Discard(ctx, nil, key)
	}
	out, in := work(float64(tokens), park), work(float64(tokens), resume)
	out.Before, in.Before = resume, park
	out.Plain, in.Plain = float64(tokens)*perToken, float64(tokens)*perToken
	return &Ready{Work: []*Work{step, closing, out, in}, Close: s.c.Close}
}
