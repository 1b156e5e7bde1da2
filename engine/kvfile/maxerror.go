// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/ahead"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/quant"
)

// errorFit fits the future-attention error of a file.
type errorFit struct {
	hf   *hotFile
	want [][]float32 // [layers] outputs over the exact context
}

// fit finds the least bytes whose measured future-attention error is within the bound, by
// bisection on the file's bytes.
func (x *errorFit) fit(ctx context.Context) (*plan.Plan, float64, error) {
	for i := range x.hf.c.in.Layers {
		if l := &x.hf.c.in.Layers[i]; !l.HasV || l.Next == nil {
			return nil, 0, fmt.Errorf(
				"kvist/kvfile: a bound on the future-attention error needs q_next, k_next and v_next of every layer; %s of %s has none: %w",
				l.Name,
				x.hf.c.in.Name,
				quant.ErrUnsupported,
			)
		}
	}
	best := x.hf.main.Solver.Best()
	top, err := x.hf.fileBytes(best)
	if err != nil {
		return nil, 0, err
	}
	bestErr, err := x.measure(ctx, best)
	if err != nil {
		return nil, 0, err
	}
	if bestErr > x.hf.c.cfg.MaxError {
		return nil, 0, fmt.Errorf(
			"kvist/kvfile: future-attention error of at most %g: the least possible with these codings is %.3g, at %d bytes: %w",
			x.hf.c.cfg.MaxError,
			bestErr,
			top,
			quant.ErrBudget,
		)
	}
	// The measured error follows the planner's damage: error = factor * damage^power, with a power
	// near 1. The last two plans that were measured say which damage to try next.
	low, high := x.hf.main.Solver.Least().Bytes, best.Bytes
	lastDamage, lastErr, power := 1.0, 1.0, 1.0
	const rounds = 10
	for i := range rounds {
		x.hf.c.say.Say("fitting the error", int64(i), rounds)
		if float64(high) < 1.01*float64(low) || bestErr > 0.95*x.hf.c.cfg.MaxError {
			break
		}
		target := lastDamage * math.Pow(0.98*x.hf.c.cfg.MaxError/lastErr, 1/power)
		p, err := x.guess(target, low, high)
		if p == nil || err != nil {
			return best, bestErr, err
		}
		e, err := x.measure(ctx, p)
		if err != nil {
			return nil, 0, err
		}
		if e <= x.hf.c.cfg.MaxError {
			best, bestErr, high = p, e, p.Bytes
		} else {
			low = p.Bytes
		}
		if p.Damage > 0 && e > 0 {
			if x := math.Log(e/lastErr) / math.Log(p.Damage/lastDamage); i > 0 && !math.IsNaN(x) {
				power = min(max(x, 0.5), 2)
			}
			lastDamage, lastErr = p.Damage, e
		}
	}
	x.hf.c.say.Say("fitting the error", rounds, rounds)
	return best, bestErr, nil
}

// guess returns a plan of about this damage, with bytes well within the bracket, or nil if the
// bracket holds none.
func (x *errorFit) guess(damage float64, low, high int64) (*plan.Plan, error) {
	// Never at the ends, so that every round narrows the bracket.
	from, to := low+(high-low)/50, high-(high-low)/50
	var p *plan.Plan
	for from < to {
		var err error
		if p, err = x.hf.main.Solver.Solve((from + to) / 2); err != nil {
			return nil, err
		}
		if p.Damage > damage {
			from = (from+to)/2 + 1
		} else {
			to = (from + to) / 2
		}
		if float64(to-from) < 0.001*float64(to) {
			break
		}
	}
	if p == nil || p.Bytes <= low || p.Bytes >= high {
		return nil, nil
	}
	return p, nil
}

// measure encodes a plan in memory, a layer at a time, and measures its mean
// future-attention error.
func (x *errorFit) measure(ctx context.Context, choice *plan.Plan) (float64, error) {
	if x.want == nil {
		x.want = make([][]float32, len(x.hf.c.in.Layers))
	}
	var sum float64
	var recs []*container.Record
	err := x.hf.eachRecord(choice, func(rec *container.Record) error {
		if err := x.hf.encodeRecord(ctx, rec); err != nil {
			return err
		}
		recs = append(recs, rec)
		l := &x.hf.c.in.Layers[rec.Layer]
		if rec.Segment < l.Segments()-1 {
			return nil
		}
		want := x.want[rec.Layer]
		s, _, err := ahead.Error(ctx, x.hf.c.in, l, x.hf.c.header, recs, x.hf.c.be, x.hf.c.rowBias(), &want)
		x.want[rec.Layer] = want
		sum, recs = sum+s.Relative(), nil
		return err
	})
	return sum / float64(len(x.hf.c.in.Layers)), err
}
