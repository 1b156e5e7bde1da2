// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// parkRuns is how often each way is measured; the median counts.
const parkRuns = 5

// measurePark prints how long it takes to bring a conversation back: by computing it again, from a store in memory,
// from disk, from a file. The next logits must be what they were, to the last bit.
func measurePark(be backend.Backend, m *model.Model, ids []int32, share float64, cfg engine.Config) error {
	ctx, g := context.Background(), m.Geometry()
	dir, err := os.MkdirTemp("", "kvist-park")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	disk, err := store.OpenDisk(dir, store.DiskOptions{})
	if err != nil {
		return err
	}
	defer disk.Close()
	f16 := int64(2*len(ids)*g.Layers*g.KVHeads) * int64(g.HeadDim+g.HeadDimV)
	cfg.Budget = int64(share * float64(f16))
	st := &switching{store.NewMemory(store.MemoryOptions{})}
	cfg.Store = st
	c, err := engine.Open(be, g, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := quality.NewSequenceStore(ctx, c, g.Layers)
	if err != nil {
		return err
	}
	begin := time.Now()
	for p := 0; p < len(ids)-1; {
		n := min(32, len(ids)-1-p)
		if _, err := m.Forward(ids[p:p+n], s, p, model.ForwardOptions{}); err != nil {
			return err
		}
		p += n
	}
	prefill := time.Since(begin)
	fmt.Printf("| %g | %.1f s | %d | ", share, prefill.Seconds(), c.Stats().RowBytes)
	if share < 1 { // leave room, so that a token more changes nothing
		if err := s.Seq.Demote(0.1); err != nil {
			return err
		}
	}
	var want []float32
	next := func() error { // the last token, which is then forgotten
		p := len(ids) - 1
		got, err := m.Forward(ids[p:], s, p, model.ForwardOptions{Logits: model.LogitsAll})
		if err != nil {
			return err
		}
		if want == nil {
			want = slices.Clone(got)
		}
		for j := range want {
			if math.Float32bits(got[j]) != math.Float32bits(want[j]) {
				return fmt.Errorf("servingtable: logit %d is %v, was %v: %w", j, got[j], want[j], quant.ErrCorrupt)
			}
		}
		return s.Seq.Truncate(int64(p))
	}
	if err := next(); err != nil {
		return err
	}
	for i := range 2 {
		if i == 1 {
			st.Store = disk
		}
		var out, in, saved, loaded []time.Duration
		size := 0
		for range parkRuns {
			begin := time.Now()
			id, err := s.Seq.Park(ctx, nil, time.Time{})
			if err != nil {
				return err
			}
			out, begin = append(out, time.Since(begin)), time.Now()
			if s.Seq, err = c.Resume(ctx, nil, id); err != nil {
				return err
			}
			in = append(in, time.Since(begin))
			if err := c.Discard(ctx, nil, id); err != nil {
				return err
			}
			if err := next(); err != nil {
				return err
			}
			if i > 0 {
				continue
			}
			var w bytes.Buffer
			begin = time.Now()
			if err := s.Seq.Save(ctx, &w); err != nil {
				return err
			}
			saved, size = append(saved, time.Since(begin)), w.Len()
			if err := s.Seq.Close(); err != nil {
				return err
			}
			begin = time.Now()
			if s.Seq, err = c.Load(ctx, bytes.NewReader(w.Bytes()), int64(w.Len())); err != nil {
				return err
			}
			loaded = append(loaded, time.Since(begin))
			if err := next(); err != nil {
				return err
			}
		}
		fmt.Printf("%.0f ms | %.0f ms | %.0fx | ", ms(out), ms(in), prefill.Seconds()*1000/ms(in))
		if i == 0 {
			fmt.Printf("%d | %.0f ms | %.0f ms | ", size, ms(saved), ms(loaded))
		}
	}
	fmt.Println()
	return nil
}

// switching is a store that can be changed.
type switching struct{ store.Store }

// ms returns the median in milliseconds.
func ms(x []time.Duration) float64 {
	slices.Sort(x)
	return float64(x[len(x)/2].Microseconds()) / 1000
}
