// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/kvist-project/kvist/engine/profile"
)

// Objective maps settings to a number; lower is better. It must be deterministic.
type Objective interface {
	// Identity describes everything that determines the values: data by hash, rates, weights. A
	// search refuses a state with another identity.
	Identity() string
	// Evaluate returns the value of the settings, or +Inf if they cannot work.
	Evaluate(ctx context.Context, p profile.Params) (float64, error)
}

// Options control a search.
type Options struct {
	// Base are settings that every evaluation uses in addition to those of the space.
	Base profile.Params
	// Evaluations bounds the number of evaluations, including the start. Default 100.
	Evaluations int
	// Seed seeds the random choices.
	Seed uint64
	// Parents (mu) and Children (lambda) of a generation. Default 4 and 8.
	Parents, Children int
	// State is a file that keeps the values, to resume from. "" keeps none.
	State string
	// Progress, if set, is called after every evaluation.
	Progress func(Progress)
}

// Progress reports how far a search is.
type Progress struct {
	Stage       string // "start", "grid", "refine"
	Done, Total int
	Value, Best float64
	Params      profile.Params
}

// Evaluation is one value of a search.
type Evaluation struct {
	Stage string // "start", "grid importance.relevance", "refine"
	// Params are the settings that were evaluated.
	Params profile.Params
	// Value is the objective's value. Cost is Value plus the prices of the settings that left their
	// start; the search compares costs.
	Value, Cost float64
}

// Result is the result of a search.
type Result struct {
	Start, Best Evaluation
	// Trail has every evaluation once, in order.
	Trail []Evaluation
	// Complete is false if the evaluations ran out before the grid was finished.
	Complete bool
}

func (o *Options) defaults() error {
	for _, f := range []struct {
		name string
		v    *int
		def  int
		most int
	}{{"evaluations", &o.Evaluations, 100, 1 << 20}, {"parents", &o.Parents, 4, 1 << 10},
		{"children", &o.Children, 8, 1 << 10}} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < 1 || *f.v > f.most {
			return shapef("options: %s %d, want 1 to %d", f.name, *f.v, f.most)
		}
	}
	return o.Base.Validate()
}

// errSpent ends a search that has used all of its evaluations.
var errSpent = errors.New("evaluations used up")

// Search finds the settings of a space with the lowest cost.
//
// Errors: quant.ErrShape, quant.ErrCorrupt (a state); those of the objective; ctx.Err(). A state
// keeps the evaluations made before an error.
func Search(ctx context.Context, space Space, obj Objective, o Options) (*Result, error) {
	if err := space.Validate(); err != nil {
		return nil, err
	}
	if err := o.defaults(); err != nil {
		return nil, err
	}
	s := &search{space: space, obj: obj, o: o, known: map[string]int{}}
	if o.State != "" {
		var err error
		if s.state, err = openState(o.State, identity(space, obj, o)); err != nil {
			return nil, err
		}
	}
	first, err := s.evaluate(ctx, "start", space.start())
	if err != nil {
		return nil, err
	}
	if math.IsInf(first.cost, 1) {
		return nil, shapef("search: nothing works under the settings it starts from")
	}
	err = s.grid(ctx, first)
	complete := err == nil
	if err == nil {
		err = s.refine(ctx)
	}
	if err != nil && !errors.Is(err, errSpent) {
		return nil, err
	}
	return &Result{Start: s.trail[0], Best: s.trail[s.best], Trail: s.trail, Complete: complete}, nil
}

type search struct {
	space Space
	obj   Objective
	o     Options
	state *state
	trail []Evaluation
	seen  []individual   // beside the trail
	known map[string]int // params text -> index of the trail
	best  int
}

// individual is a point with its cost and its mutation step size.
type individual struct {
	x     point
	cost  float64
	sigma float64
}

// startSigma is the first mutation step, as a share of a setting's range.
const startSigma = 0.2

// evaluate returns the cost of a point from the trail, the state or the objective.
func (s *search) evaluate(ctx context.Context, stage string, x point) (individual, error) {
	ind := individual{x: x, sigma: startSigma}
	params, err := s.space.params(s.o.Base, x)
	if err != nil {
		return ind, err
	}
	text := params.String()
	if i, ok := s.known[text]; ok {
		ind.cost = s.seen[i].cost
		return ind, nil
	}
	if len(s.trail) >= s.o.Evaluations {
		return ind, errSpent
	}
	if err := ctx.Err(); err != nil {
		return ind, err
	}
	v, ok := s.state.lookup(text)
	if !ok {
		if v, err = s.obj.Evaluate(ctx, params); err != nil {
			return ind, fmt.Errorf("evaluating %s: %w", text, err)
		}
		if math.IsNaN(v) || math.IsInf(v, -1) {
			return ind, shapef("objective of %s is %v", text, v)
		}
		if err := s.state.add(text, v); err != nil {
			return ind, err
		}
	}
	ind.cost = v + s.space.price(x)
	s.known[text] = len(s.trail)
	s.trail = append(s.trail, Evaluation{Stage: stage, Params: params, Value: v, Cost: ind.cost})
	s.seen = append(s.seen, ind)
	if ind.cost < s.trail[s.best].Cost {
		s.best = len(s.trail) - 1
	}
	if s.o.Progress != nil {
		s.o.Progress(Progress{Stage: stage, Done: len(s.trail), Total: s.o.Evaluations, Value: v,
			Best: s.trail[s.best].Value, Params: params})
	}
	return ind, nil
}

// grid tries the grid of each setting in turn around the best point so far.
func (s *search) grid(ctx context.Context, at individual) error {
	for i := range s.space {
		p := &s.space[i]
		best := at
		for _, v := range p.Grid {
			if v == at.x[i] {
				continue
			}
			x := slices.Clone(at.x)
			x[i] = v
			ind, err := s.evaluate(ctx, "grid "+p.Name, x)
			if err != nil {
				return err
			}
			if ind.cost < best.cost {
				best = ind
			}
		}
		at = best
	}
	return nil
}

// refine runs the evolution strategy until the evaluations are used up, or several generations
// brought no improvement.
func (s *search) refine(ctx context.Context) error {
	const patience = 6
	order := make([]int, len(s.seen))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(s.seen[a].cost, s.seen[b].cost) })
	var parents []individual
	for _, i := range order[:min(len(order), s.o.Parents)] {
		parents = append(parents, s.seen[i])
	}
	child, idle := uint64(0), 0
	for idle < patience {
		before := parents[0].cost
		all := slices.Clone(parents)
		for range s.o.Children {
			x, sigma := s.child(rand.New(rand.NewPCG(s.o.Seed, child)), parents)
			child++
			ind, err := s.evaluate(ctx, "refine", x)
			if err != nil {
				return err
			}
			ind.sigma = sigma
			all = append(all, ind)
		}
		slices.SortStableFunc(all, func(a, b individual) int { return cmp.Compare(a.cost, b.cost) })
		all = slices.CompactFunc(all, func(a, b individual) bool { return slices.Equal(a.x, b.x) })
		parents = all[:min(len(all), s.o.Parents)]
		idle++
		if parents[0].cost < before {
			idle = 0
		}
	}
	return nil
}

// child makes a new point from two parents: crossover, then mutation of at least one setting. If
// the point is known already, child draws again, a few times.
func (s *search) child(rng *rand.Rand, parents []individual) (point, float64) {
	const draws = 16
	for try := 0; ; try++ {
		a, b := parents[rng.IntN(len(parents))], parents[rng.IntN(len(parents))]
		x := slices.Clone(a.x)
		for i := range x {
			if rng.IntN(2) == 1 {
				x[i] = b.x[i]
			}
		}
		n := float64(len(x))
		// Log-normal self-adaptation with the usual rate 1/sqrt(2 n).
		sigma := math.Sqrt(a.sigma*b.sigma) * math.Exp(rng.NormFloat64()/math.Sqrt(2*n))
		sigma = min(max(sigma, 0.01), 0.5)
		must := rng.IntN(len(x))
		for i := range x {
			if i == must || rng.Float64() < 2/n {
				x[i] = s.space[i].mutate(rng, x[i], sigma)
			}
		}
		params, err := s.space.params(s.o.Base, x)
		if err == nil {
			if _, known := s.known[params.String()]; !known || try == draws {
				return x, sigma
			}
		}
		if try == draws {
			return slices.Clone(a.x), sigma
		}
	}
}

// mutate draws a value near v.
func (p *Param) mutate(rng *rand.Rand, v string, sigma float64) string {
	step := rng.NormFloat64() * sigma
	pick := rng.IntN(max(1, len(p.Grid)))
	x, err := strconv.ParseFloat(v, 64)
	switch {
	case !p.numeric() || err != nil:
	case p.Log && x < p.Low:
		// Off: entered through the grid.
	case p.Log:
		return p.number(x * math.Exp(step*math.Log(p.High/p.Low)))
	default:
		if w := p.number(x + step*(p.High-p.Low)); !p.Integer || w != v {
			return w
		}
		return p.number(x + math.Copysign(1, step))
	}
	if len(p.Grid) == 0 {
		return v
	}
	return p.Grid[pick]
}
