// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// model stands for what computes K, V and queries.
type model struct {
	geo quant.Geometry
	rng *rand.Rand
}

func (m model) rows(tokens, heads, dim int) []float32 {
	x := make([]float32, tokens*heads*dim)
	for i := range x {
		x[i] = float32(m.rng.NormFloat64())
	}
	return x
}

// step adds tokens to a sequence and keeps the first ones.
func (m model) step(c *engine.Cache, s *engine.Sequence, tokens, keep int) error {
	st, err := c.Begin(context.Background(), []engine.Row{{Seq: s, Tokens: tokens}})
	if err != nil {
		return err
	}
	g := m.geo
	for layer := range g.Layers {
		k, v := m.rows(tokens, g.KVHeads, g.HeadDim), m.rows(tokens, g.KVHeads, g.HeadDimV)
		out := make([]float32, tokens*g.Heads*g.HeadDimV)
		err := st.Append(layer, k, v)
		if err == nil {
			err = st.Attend(layer, m.rows(tokens, g.Heads, g.HeadDim), out)
		}
		if err != nil {
			_ = st.Rollback()
			return err
		}
	}
	return st.Commit(keep)
}

func open(budget int64) (*engine.Cache, model) { return openWith(engine.Config{Budget: budget}) }

func openWith(cfg engine.Config) (*engine.Cache, model) {
	be, err := cpu.Open(cpu.Options{})
	if err != nil {
		log.Fatal(err)
	}
	m := model{quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 64, HeadDimV: 64},
		rand.New(rand.NewPCG(1, 2))}
	c, err := engine.Open(be, m.geo, cfg)
	if err != nil {
		log.Fatal(err)
	}
	return c, m
}

// A prompt, then tokens one by one. The cache keeps its budget, whatever comes.
func Example() {
	c, m := open(2 << 20)
	defer c.Close()
	s, err := c.NewSequence()
	if err != nil {
		log.Fatal(err)
	}
	if err := m.step(c, s, 300, 300); err != nil { // prefill
		log.Fatal(err)
	}
	for range 1500 { // decode
		if err := m.step(c, s, 1, 1); err != nil {
			log.Fatal(err)
		}
	}
	st := c.Stats()
	fmt.Println(s.Len(), "tokens; within the budget:", st.PeakBytes <= st.BudgetBytes)
	// Output: 1800 tokens; within the budget: true
}

// Two answers to one prompt: the fork shares what is closed.
func ExampleSequence_Fork() {
	c, m := open(8 << 20)
	defer c.Close()
	a, err := c.NewSequence()
	if err == nil {
		err = m.step(c, a, 600, 600)
	}
	if err != nil {
		log.Fatal(err)
	}
	before := c.Stats().Sides["f16"]
	b, err := a.Fork()
	if err == nil {
		err = m.step(c, b, 5, 5)
	}
	if err != nil {
		log.Fatal(err)
	}
	after := c.Stats().Sides["f16"]
	fmt.Println(a.Len(), b.Len(), "tokens; blocks twice:", after > 2*before)
	// Output: 600 605 tokens; blocks twice: false
}

// A draft model guessed four tokens, of which the first two are right.
func ExampleStep_Commit() {
	c, m := open(8 << 20)
	defer c.Close()
	s, err := c.NewSequence()
	if err == nil {
		err = m.step(c, s, 100, 100)
	}
	if err == nil {
		err = m.step(c, s, 4, 2)
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Len())
	// Output: 102
}

// A system prompt that many requests begin with is computed once.
func ExampleCache_MatchPrefix() {
	c, m := open(8 << 20)
	defer c.Close()
	prompt := make([]int32, 700)
	for i := range prompt {
		prompt[i] = int32(i)
	}
	salt := []byte("of this tenant")
	for range 2 {
		s, err := c.MatchPrefix(salt, prompt)
		if err != nil {
			log.Fatal(err)
		}
		n := s.Len()
		fmt.Println("known tokens:", n)
		st, err := c.Begin(context.Background(),
			[]engine.Row{{Seq: s, Tokens: len(prompt) - int(n), IDs: prompt[n:]}})
		if err != nil {
			log.Fatal(err)
		}
		for l := range m.geo.Layers {
			k := m.rows(len(prompt)-int(n), m.geo.KVHeads, m.geo.HeadDim)
			if err := st.Append(l, k, k); err != nil { // the queries of a prompt may be left out
				log.Fatal(err)
			}
		}
		if err := st.Commit(len(prompt)); err != nil {
			log.Fatal(err)
		}
		if err := s.Close(); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// known tokens: 0
	// known tokens: 512
}

// Why a block has its bits.
func ExampleSequence_Explain() {
	c, m := open(8 << 20)
	defer c.Close()
	s, err := c.NewSequence()
	if err == nil {
		err = m.step(c, s, 400, 400)
	}
	if err == nil {
		err = s.Demote(0.3)
	}
	if err != nil {
		log.Fatal(err)
	}
	blocks, err := s.Explain(1, 0)
	if err != nil {
		log.Fatal(err)
	}
	rows := map[string]int{}
	for _, b := range blocks {
		rows[b.State] += b.Rows
	}
	fmt.Println(rows["sinks"], rows["sorted"], rows["open"], rows["exact"])
	// Output: 4 256 64 76
}

// An idle conversation goes to disk and comes back, in this process or after a restart, without the model.
func ExampleSequence_Park() {
	dir, err := os.MkdirTemp("", "kvist")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	disk, err := store.OpenDisk(dir, store.DiskOptions{MaxBytes: 1 << 30})
	if err != nil {
		log.Fatal(err)
	}
	defer disk.Close()
	c, m := openWith(engine.Config{Budget: 8 << 20, Store: disk})
	defer c.Close()
	ctx, salt := context.Background(), []byte("of this tenant")
	s, err := c.NewSequence()
	if err == nil {
		err = m.step(c, s, 600, 600)
	}
	if err != nil {
		log.Fatal(err)
	}
	id, err := s.Park(ctx, salt, time.Now().Add(24*time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("in memory:", c.Stats().Tokens, "tokens; parked:", disk.Stats().Entries > 0)

	s, err = c.Resume(ctx, salt, id)
	if err == nil {
		err = c.Discard(ctx, salt, id) // it lives in memory again
	}
	if err == nil {
		err = m.step(c, s, 1, 1)
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("resumed:", s.Len(), "tokens")
	// Output:
	// in memory: 0 tokens; parked: true
	// resumed: 601 tokens
}

// A conversation as a file, which appears whole or not at all, and in another cache.
func ExampleSequence_Save() {
	dir, err := os.MkdirTemp("", "kvist")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c, m := open(8 << 20)
	defer c.Close()
	s, err := c.NewSequence()
	if err == nil {
		err = m.step(c, s, 300, 300)
	}
	if err != nil {
		log.Fatal(err)
	}
	path := filepath.Join(dir, "talk.kvist")
	f, err := atomicfile.Create(path, false)
	if err != nil {
		log.Fatal(err)
	}
	if err := s.Save(context.Background(), f); err != nil {
		_ = f.Abort()
		log.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		log.Fatal(err)
	}

	other, m := open(8 << 20)
	defer other.Close()
	r, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		log.Fatal(err)
	}
	x, err := other.Load(context.Background(), r, info.Size())
	if err == nil {
		err = m.step(other, x, 1, 1)
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Len(), x.Len())
	// Output: 300 301
}
