// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/archive"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/offline"
	"github.com/kvist-project/kvist/engine/profile"
)

// ArchiveSteps measures in the model what errors in each layer's K and V do to its predictions, and
// returns what that says about the steps of the profile's archive: the texts are coded at some
// bits a value, and one side of one layer at a time takes the place of the exact rows. Where that
// moves the divergence more than its share of the bytes, steps are made finer.
//
// With D the divergence of a group of rows, which goes as the square of the step, and R the bytes
// that a finer step costs, the best steps have the same D/R everywhere. The measurement is noisy and
// groups act together, so the correction is damped and bounded.
//
// Errors: quant.ErrShape for texts that are too short; those of the model and of the archive.
func ArchiveSteps(ctx context.Context, m *model.Model, texts []Input, p *profile.Profile,
	bits float64, o Options) (*offline.ArchiveSteps, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	g := m.Geometry()
	own, err := cpu.Open(cpu.Options{})
	if err != nil {
		return nil, err
	}
	defer own.Close() //nolint:errcheck // its buffers are all freed, nothing is left to fail
	s := &stepper{m: m, p: p, o: o, be: own, bits: bits, old: offline.OldArchiveSteps(p),
		damage: make([]float64, 2*g.Layers), slope: make([]float64, 2*g.Layers)}
	for i, in := range texts {
		if err := s.text(ctx, in, i, len(texts)); err != nil {
			return nil, err
		}
	}
	return s.steps(), nil
}

type stepper struct {
	m             *model.Model
	p             *profile.Profile
	o             Options
	be            backend.Backend
	bits          float64
	old           *offline.ArchiveSteps
	damage, slope []float64 // [layers*2]
}

func (s *stepper) text(ctx context.Context, in Input, at, of int) error {
	run := &textRun{m: s.m, in: in, o: s.o}
	n := s.o.Context + s.o.Next
	if len(in.Tokens) < n {
		return shapef("archive steps", "%s has %d tokens, want %d", in.Name, len(in.Tokens), n)
	}
	run.in.Tokens = in.Tokens[:n:n]
	c, kv, err := prefill(ctx, s.m, in.Tokens[:s.o.Context])
	if err != nil {
		return err
	}
	run.ref = newReference(s.m.Vocab, run.in.Tokens[s.o.Context:])
	if err := run.next(kv, run.ref.add); err != nil {
		return err
	}
	coarse, fine, err := s.sizes(ctx, c)
	if err != nil {
		return err
	}
	k := Kvist{Config: s.config(s.bits), Backend: s.be}
	k.Config.Profile = s.p
	left, err := k.Compress(ctx, c)
	if err != nil {
		return err
	}
	exact := &Cache{Layers: make([]CacheLayer, len(c.Layers))}
	for i, l := range c.Layers {
		exact.Layers[i] = CacheLayer{K: l.K, V: l.V}
	}
	for i := range s.damage {
		if s.o.Progress != nil {
			s.o.Progress("measuring layers", int64(at*len(s.damage)+i), int64(of*len(s.damage)))
		}
		one := &Cache{Layers: slices.Clone(exact.Layers)}
		l := &one.Layers[i/2]
		if i%2 == 0 {
			l.K, l.Bias = left.Layers[i/2].K, left.Layers[i/2].Bias
		} else {
			l.V = left.Layers[i/2].V
		}
		store, err := s.m.NewKV(model.KVOptions{})
		if err != nil {
			return err
		}
		if err := fill(store, one, len(c.Tokens)); err != nil {
			return err
		}
		sc := scorer{ref: run.ref}
		if err := run.next(store, sc.add); err != nil {
			return err
		}
		score, err := sc.score()
		if err != nil {
			return err
		}
		s.damage[i] += score.KL
		s.slope[i] += fine[i] - coarse[i]
	}
	return nil
}

func (s *stepper) config(bits float64) offline.Config {
	cfg := offline.DefaultConfig()
	cfg.Form, cfg.Bits, cfg.Profile = offline.FormArchive, bits, s.p
	return cfg
}

// sizes returns the bytes of the lanes of each (layer, side) a little below and above the target.
func (s *stepper) sizes(ctx context.Context, c *Context) (coarse, fine []float64, err error) {
	sh, err := c.shape("archive", false)
	if err != nil {
		return nil, nil, err
	}
	var raw memory
	if err := writeCapture(&raw, c, sh); err != nil {
		return nil, nil, err
	}
	src, err := capture.New("context", &raw, int64(len(raw.data)), capture.Limits{})
	if err != nil {
		return nil, nil, err
	}
	for _, f := range []float64{0.9, 1.1} {
		var file bytes.Buffer
		if _, err := offline.Compress(ctx, src, &file, s.be, s.config(f*s.bits), nil, nil); err != nil {
			return nil, nil, err
		}
		r, err := container.Open("context.kvist", bytes.NewReader(file.Bytes()), int64(file.Len()),
			container.Limits{})
		if err != nil {
			return nil, nil, err
		}
		sum := make([]float64, len(s.damage))
		for i, info := range r.Records() {
			rec, err := r.ReadRecord(i)
			if err != nil {
				return nil, nil, err
			}
			lanes, err := archive.LaneSizes(rec.Archive, 2*r.Header().KVHeads())
			if err != nil {
				return nil, nil, err
			}
			for j, n := range lanes {
				sum[2*info.Layer+j%2] += float64(n)
			}
		}
		coarse, fine = fine, sum
	}
	return coarse, fine, nil
}

// damping is the share of a measured correction that is believed.
const damping = 0.7

// steps turns what was measured into steps.
func (s *stepper) steps() *offline.ArchiveSteps {
	g := s.m.Geometry()
	v := make([]float64, len(s.damage))
	var mean float64
	for i, d := range s.damage {
		v[i] = -4 * damping * math.Log2(max(d, 1e-9)/max(s.slope[i], 1))
		mean += v[i] / float64(len(v))
	}
	out := &offline.ArchiveSteps{K: make([]float32, g.Layers*g.KVHeads), V: make([]float32, g.Layers*g.KVHeads)}
	for i := range v {
		d := float32(math.Round(min(max(v[i]-mean, -24), 24)))
		for h := range g.KVHeads {
			at := i/2*g.KVHeads + h
			if i%2 == 0 {
				out.K[at] = d
			} else {
				out.V[at] = d
			}
		}
	}
	if s.old != nil {
		for i := range out.K {
			out.K[i] += s.old.K[i]
			out.V[i] += s.old.V[i]
		}
	}
	return out
}

// String lists the damage of each layer, for a look at it.
func (s *stepper) String() string {
	var b bytes.Buffer
	for i := range s.damage {
		fmt.Fprintf(&b, "%d%s %.6f %.0f\n", i/2, [2]string{"k", "v"}[i%2], s.damage[i], s.slope[i])
	}
	return b.String()
}
