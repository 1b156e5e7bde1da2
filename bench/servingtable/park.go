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
	begin := now()
	for p := 0; p < len(ids)-1; {
		n := min(32, len(ids)-1-p)
		if _, err := m.Forward(ids[p:p+n], s, p, model.ForwardOptions{}); err != nil {
			return err
		}
		p += n
	}
	prefill := begin.since()
	fmt.Printf("| %g | %.1f s (%.1f) | %d | ", share, prefill.wall.Seconds(), prefill.cpu.Seconds(), c.Stats().RowBytes)
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
		var out, in, saved, loaded []took
		size := 0
		for range parkRuns {
			begin := now()
			id, err := s.Seq.Park(ctx, nil, time.Time{})
			if err != nil {
				return err
			}
			out, begin = append(out, begin.since()), now()
			if s.Seq, err = c.Resume(ctx, nil, id); err != nil {
				return err
			}
			in = append(in, begin.since())
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
			begin = now()
			if err := s.Seq.Save(ctx, &w); err != nil {
				return err
			}
			saved, size = append(saved, begin.since()), w.Len()
			if err := s.Seq.Close(); err != nil {
				return err
			}
			begin = now()
			if s.Seq, err = c.Load(ctx, bytes.NewReader(w.Bytes()), int64(w.Len())); err != nil {
				return err
			}
			loaded = append(loaded, begin.since())
			if err := next(); err != nil {
				return err
			}
		}
		fmt.Printf("%s | %s | %.0fx (%.0fx) | ", ms(out), ms(in), ratio(prefill.wall, in, took.ofWall), ratio(prefill.cpu, in, took.ofCPU))
		if i == 0 {
			fmt.Printf("%d | %s | %s | ", size, ms(saved), ms(loaded))
		}
	}
	fmt.Println()
	return nil
}

// switching is a store that can be changed.
type switching struct{ store.Store }

// took is how long something took, or when it began: by the clock, and in processor time of this process.
type took struct{ wall, cpu time.Duration }

var start = time.Now()

func now() took { return took{time.Since(start), cpuTime()} }

func (t took) since() took {
	u := now()
	return took{u.wall - t.wall, u.cpu - t.cpu}
}

func (t took) ofWall() time.Duration { return t.wall }
func (t took) ofCPU() time.Duration  { return t.cpu }

// median returns the median of one of the times.
func median(x []took, of func(took) time.Duration) time.Duration {
	var all []time.Duration
	for _, t := range x {
		all = append(all, of(t))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// ms shows the median times.
func ms(x []took) string {
	return fmt.Sprintf("%.0f ms (%.0f)", median(x, took.ofWall).Seconds()*1000, median(x, took.ofCPU).Seconds()*1000)
}

// ratio returns how much longer a time is than the median of others.
func ratio(t time.Duration, x []took, of func(took) time.Duration) float64 {
	return t.Seconds() / max(median(x, of).Seconds(), 1e-9)
}
