// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/engine/store"
)

// measureParked tells a cache conversations with facts in them, parks each in archive form when it is told, and asks for
// the facts when they have come back. The first row parks them as they are. The budget holds one conversation and a
// half: the others are in the store.
func measureParked(be backend.Backend, m *model.Model, role string, conversations, tokens int, bits []float64, cfg engine.Config) error {
	bodies := bodiesOf(role)
	r, err := quality.NewRetrieval(m.Tokenizer(), bodies, questionsEach*conversations, tokens, 1)
	if err != nil {
		return err
	}
	var f16, most int64
	for _, c := range r.Contexts {
		n := runner.ExactBytes(m, len(c.Tokens))
		f16, most = f16+n, max(most, n)
	}
	fmt.Println("| bits asked for | bytes in the store | f16 over them | facts found | of those that the exact cache finds | longest resume |\n|---:|---:|---:|---:|---:|---:|")
	exact, coder := map[[2]int]bool{}, cfg.Archiver
	for i, b := range append([]float64{16}, bits...) {
		st := store.NewMemory(store.MemoryOptions{})
		cfg.Store, cfg.Archiver, cfg.ArchiveBits = st, coder, b
		if i == 0 {
			cfg.Archiver, cfg.ArchiveBits = nil, 0
		}
		h, err := quality.MeasureHeld(context.Background(), be, m, r, quality.HeldOptions{Budget: most * 3, Config: cfg, Park: true})
		if err != nil {
			return fmt.Errorf("servingtable: %g bits: %w", b, err)
		}
		found, both, could, all := 0, 0, 0, 0
		for j, of := range h.Found {
			for k, ok := range of {
				if i == 0 {
					exact[[2]int{j, k}] = ok
				}
				all++
				if ok {
					found++
				}
				if exact[[2]int{j, k}] {
					could++
					if ok {
						both++
					}
				}
			}
		}
		fmt.Printf("| %g | %d | %.2f | %d of %d | %d of %d | %v |\n", b, st.Held(), float64(f16)/float64(st.Held()), found, all, both, could, h.Resume)
	}
	return nil
}
