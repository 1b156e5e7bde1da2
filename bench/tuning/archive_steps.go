// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"bytes"
	"context"
	"math"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
)

// ArchiveSteps returns the steps of the profile's archive, corrected by a measurement in the model. It
// codes the texts at some bits a value and replaces the exact rows of one side of one layer at a time.
// A side that raises the divergence by more than its share of the bytes gets finer steps.
//
// Let D be the divergence of a group of rows, which grows with the square of the step, and R the bytes
// that a finer step costs. The best steps have the same D/R everywhere. The correction is damped and
// bounded, because the measurement is noisy and groups act together.
//
// Errors: quant.ErrShape for texts that are too short; those of the model and of the archive.
func ArchiveSteps(ctx context.Context, m *model.Model, texts []quality.Input, p *profile.Profile,
	bits float64, o quality.Options) (*tune.ArchiveSteps, error) {
	g := m.Geometry()
	own, err := cpu.Open(cpu.Options{})
	if err != nil {
		return nil, err
	}
	defer own.Close() //nolint:errcheck // its buffers are all freed, nothing is left to fail
	s := &stepper{m: m, p: p, o: o, be: own, bits: bits, old: tune.OldArchiveSteps(p),
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
	o             quality.Options
	be            backend.Backend
	bits          float64
	old           *tune.ArchiveSteps
	damage, slope []float64 // [layers*2]
}

func (s *stepper) text(ctx context.Context, in quality.Input, at, of int) error {
	run, err := quality.NewRun(ctx, s.m, in, s.o)
	if err != nil {
		return err
	}
	c := run.PerLayer()
	coarse, fine, err := s.sizes(ctx, c)
	if err != nil {
		return err
	}
	left, err := methods.Kvist{Config: s.config(s.bits), Backend: s.be}.Compress(ctx, c)
	if err != nil {
		return err
	}
	for i := range s.damage {
		if s.o.Progress != nil {
			s.o.Progress("measuring layers", int64(at*len(s.damage)+i), int64(of*len(s.damage)))
		}
		one := exact(c)
		l := &one.Layers[i/2]
		if i%2 == 0 {
			l.K, l.Bias = left.Layers[i/2].K, left.Layers[i/2].Bias
		} else {
			l.V = left.Layers[i/2].V
		}
		score, err := run.Score(one)
		if err != nil {
			return err
		}
		s.damage[i] += score.KL
		s.slope[i] += fine[i] - coarse[i]
	}
	return nil
}

// exact returns a cache with the exact rows of a context.
func exact(c *methods.Context) *methods.Cache {
	out := &methods.Cache{Layers: make([]methods.CacheLayer, len(c.Layers))}
	for i, l := range c.Layers {
		out.Layers[i] = methods.CacheLayer{K: l.K, V: l.V}
	}
	return out
}

func (s *stepper) config(bits float64) kvfile.Config {
	cfg := kvfile.DefaultConfig()
	cfg.Form, cfg.Bits, cfg.Profile = kvfile.FormArchive, bits, s.p
	return cfg
}

// sizes returns the bytes of each (layer, side) in archives a little below and above the target.
func (s *stepper) sizes(ctx context.Context, c *methods.Context) (coarse, fine []float64, err error) {
	src, err := c.Capture()
	if err != nil {
		return nil, nil, err
	}
	for _, f := range []float64{0.9, 1.1} {
		var file bytes.Buffer
		// s.bits are of the values that later queries see, those of a config of all.
		cfg := s.config(f * s.bits * c.SeenShare())
		if _, err := kvfile.Compress(ctx, src, &file, kvfile.Options{Config: &cfg, Backend: s.be}); err != nil {
			return nil, nil, err
		}
		r, err := container.Open("context.kvist", bytes.NewReader(file.Bytes()), int64(file.Len()),
			container.Limits{})
		if err != nil {
			return nil, nil, err
		}
		sides, err := tune.ArchiveSides(r)
		if err != nil {
			return nil, nil, err
		}
		var sum []float64
		for _, n := range sides {
			sum = append(sum, float64(n[0]), float64(n[1]))
		}
		coarse, fine = fine, sum
	}
	return coarse, fine, nil
}

// damping is the share of the measured correction that steps applies.
const damping = 0.7

// steps computes the steps from the measurement.
func (s *stepper) steps() *tune.ArchiveSteps {
	g := s.m.Geometry()
	v := make([]float64, len(s.damage))
	var mean float64
	for i, d := range s.damage {
		v[i] = -4 * damping * math.Log2(max(d, 1e-9)/max(s.slope[i], 1))
		mean += v[i] / float64(len(v))
	}
	out := &tune.ArchiveSteps{K: make([]float32, g.Layers*g.KVHeads), V: make([]float32, g.Layers*g.KVHeads)}
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
