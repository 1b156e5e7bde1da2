// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"context"
	"slices"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// Sensitivities hold the effect of coding one side of one KV head, measured in the model and predicted
// by the planner. Slices are [layers, kv_heads], means over texts.
type Sensitivities struct {
	Layers, KVHeads int
	Coding          quant.Coding
	Texts           []string
	// K and V are KL(exact || that side of that head coded), nats.
	K, V []float64
	// PredictedK and PredictedV are the damages that tune.Predict returns for them.
	PredictedK, PredictedV []float64
	// All is the KL with both sides of every head coded. It would be the sum of K and V if damages
	// added up.
	All float64
	// Passes is the number of forward passes taken.
	Passes int
}

// sensitivityNext is the number of tokens of a continuation that sensitivities are measured on.
const sensitivityNext = 64

// MeasureSensitivities codes one side of one head at a time, all tokens but the sinks. It measures KL
// on the first 64 tokens of the continuation, for at most the first most texts. A text takes
// 2 * layers * kv_heads + 1 passes. With layersOnly, the heads of a layer are coded together and get
// the same value, in 2 * layers + 1 passes.
//
// Errors: those of kvfile.Compress and of the model.
func (t *Objective) MeasureSensitivities(ctx context.Context, coding quant.Coding, layersOnly bool,
	most int, progress func(stage string, done, total int64)) (*Sensitivities, error) {
	g := t.m.Geometry()
	n := g.Layers * g.KVHeads
	s := &Sensitivities{Layers: g.Layers, KVHeads: g.KVHeads, Coding: coding,
		K: make([]float64, n), V: make([]float64, n), PredictedK: make([]float64, n),
		PredictedV: make([]float64, n)}
	cfg := kvfile.DefaultConfig()
	cfg.K, cfg.V = []quant.Coding{coding}, []quant.Coding{coding}
	cfg.Importance = "none"
	step := 1
	if layersOnly {
		step = g.KVHeads
	}
	used := t.texts[:min(len(t.texts), max(1, most))]
	total := int64(len(used)) * int64(2*n/step+1)
	for i := range used {
		x := used[i].First(sensitivityNext)
		s.Texts = append(s.Texts, x.Name)
		if err := t.predict(ctx, x.PerLayer(), cfg, s, len(used)); err != nil {
			return nil, err
		}
		coded, err := methods.Kvist{Config: cfg, Backend: t.o.Backend}.Compress(ctx, x.PerLayer())
		if err != nil {
			return nil, err
		}
		measure := func(into []float64, unit func(out []methods.CacheLayer)) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			left := exact(x.Context)
			unit(left.Layers)
			score, err := x.Score(left)
			for j := range into {
				into[j] += score.KL / float64(len(into)) / float64(len(used))
			}
			s.Passes++
			if progress != nil {
				progress("sensitivities", int64(s.Passes), total)
			}
			return err
		}
		for u := 0; u < n; u += step {
			l, h := u/g.KVHeads, u%g.KVHeads
			rows := len(x.Context.Tokens)
			if err := measure(s.K[u:u+step], func(out []methods.CacheLayer) {
				from, to := h*rows*g.HeadDim, (h+step)*rows*g.HeadDim
				out[l].K = slices.Clone(out[l].K)
				copy(out[l].K[from:to], coded.Layers[l].K[from:to])
				if coded.Layers[l].Bias != nil {
					out[l].Bias = make([]float32, g.KVHeads*rows)
					copy(out[l].Bias[h*rows:(h+step)*rows], coded.Layers[l].Bias[h*rows:(h+step)*rows])
				}
			}); err != nil {
				return nil, err
			}
			if err := measure(s.V[u:u+step], func(out []methods.CacheLayer) {
				from, to := h*rows*g.HeadDimV, (h+step)*rows*g.HeadDimV
				out[l].V = slices.Clone(out[l].V)
				copy(out[l].V[from:to], coded.Layers[l].V[from:to])
			}); err != nil {
				return nil, err
			}
		}
		all := make([]float64, 1)
		if err := measure(all, func(out []methods.CacheLayer) { copy(out, coded.Layers) }); err != nil {
			return nil, err
		}
		s.All += all[0]
	}
	return s, nil
}

// predict adds the planner's predictions for a text.
func (t *Objective) predict(ctx context.Context, c *methods.Context, cfg kvfile.Config,
	s *Sensitivities, texts int) error {
	src, err := c.Capture()
	if err != nil {
		return err
	}
	all, err := tune.Predict(ctx, src, t.o.Backend, cfg, cfg.K[0], cfg.V[0])
	if err != nil {
		return err
	}
	for _, d := range all {
		i := d.Layer*s.KVHeads + d.KVHead
		s.PredictedK[i] += d.K / float64(texts)
		s.PredictedV[i] += d.V / float64(texts)
	}
	return nil
}

// Sum returns the sum of K and V.
func (s *Sensitivities) Sum() (sum float64) {
	for i := range s.K {
		sum += s.K[i] + s.V[i]
	}
	return sum
}

// sensitivityPrior is added to the measured and the predicted damage, both over their means. It keeps
// the factor of a head near 1 if both are small.
const sensitivityPrior = 0.1

// Factors returns how much more an error in a head counts than the planner predicts: measured over
// predicted, both divided by their means over all heads and sides, with the prior added. So what the
// planner's probe already sees is not counted twice.
func (s *Sensitivities) Factors() *profile.Sensitivity {
	kl, predicted := s.Sum(), 0.0
	for i := range s.K {
		predicted += s.PredictedK[i] + s.PredictedV[i]
	}
	n := float64(2 * len(s.K))
	factor := func(measured, thought []float64) []float32 {
		out := make([]float32, len(measured))
		for i := range out {
			out[i] = 1
			if kl > 0 && predicted > 0 {
				out[i] = float32((measured[i]/kl*n + sensitivityPrior) /
					(thought[i]/predicted*n + sensitivityPrior))
			}
		}
		return out
	}
	f := &profile.Sensitivity{K: factor(s.K, s.PredictedK), V: factor(s.V, s.PredictedV)}
	return f.Power(1) // limits factors to the range of a profile
}
