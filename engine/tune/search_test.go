// SPDX-License-Identifier: Apache-2.0

package tune_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// bowl is an objective with a known minimum: a quadratic in three coupled settings, a choice, and a
// signal that gains almost nothing.
type bowl struct {
	calls int
	fail  int // the call that fails, from 1
	name  string
}

func (b *bowl) Identity() string { return "bowl " + b.name }

var errBowl = errors.New("bowl broke")

func (b *bowl) Evaluate(_ context.Context, p profile.Params) (float64, error) {
	b.calls++
	if b.calls == b.fail {
		return 0, errBowl
	}
	w, err := importance.ParseWeighting(p["importance"])
	if err != nil {
		return 0, err
	}
	sinks, err := strconv.ParseFloat(p["sinks"], 64)
	if err != nil {
		return 0, err
	}
	v := 3*sq(w.Relevance-0.62) + sq(w.Attention.Mix-0.31+0.3*(w.Relevance-0.62)) +
		0.3*sq(math.Log(float64(w.Attention.Window))-math.Log(48)) + 0.01*sq(sinks-6)
	if p["row-bias"] != "true" {
		v += 0.2
	}
	if w.Surprise > 0 {
		v -= 0.004
	}
	return v, nil
}

func sq(x float64) float64 { return x * x }

func bowlSpace() tune.Space {
	return tune.Space{
		{Name: "importance.relevance", Start: "1", Grid: []string{"0", "0.5", "1", "1.5"}, Low: 0, High: 2},
		{Name: "importance.window", Start: "256", Grid: []string{"16", "64", "256"}, Low: 8, High: 512,
			Log: true, Integer: true},
		{Name: "importance.mix", Start: "0", Grid: []string{"0", "0.5"}, Low: 0, High: 1},
		{Name: "importance.surprise", Start: "0", Grid: []string{"0", "0.5"}, Low: 0, High: 2, Price: 0.01},
		{Name: "sinks", Start: "4", Grid: []string{"0", "4", "8"}, Low: 0, High: 16, Integer: true},
		{Name: "row-bias", Start: "false", Grid: []string{"false", "true"}},
	}
}

func TestSearch_FindsTheLeast(t *testing.T) {
	for seed := range uint64(5) {
		res, err := tune.Search(context.Background(), bowlSpace(), &bowl{}, tune.Options{Seed: seed,
			Evaluations: 200, Base: profile.Params{"importance": "floor=0.1", "segment": "256"}})
		require.NoError(t, err)
		require.True(t, res.Complete)
		require.LessOrEqual(t, len(res.Trail), 200)
		require.Equal(t, res.Trail[0], res.Start)
		require.Less(t, res.Best.Value, 0.02*res.Start.Value, "seed %d", seed)
		require.Equal(t, "true", res.Best.Params["row-bias"])
		require.Equal(t, "256", res.Best.Params["segment"], "of the base")
		w, err := importance.ParseWeighting(res.Best.Params["importance"])
		require.NoError(t, err)
		require.InDelta(t, 0.62, w.Relevance, 0.1)
		require.InDelta(t, 0.1, w.Shape.Floor, 0, "of the base")
		require.Zero(t, w.Surprise, "it does not pay its price")
		seen := map[string]bool{}
		for _, e := range res.Trail {
			require.False(t, seen[e.Params.String()], "evaluated twice: %s", e.Params)
			seen[e.Params.String()] = true
			require.GreaterOrEqual(t, e.Cost, res.Best.Cost)
		}
	}
}

// TestSearch_ResumedIsTheSame interrupts a search after every value in turn, by an error, a
// cancelled context or its budget. The resumed search must end like an uninterrupted one.
func TestSearch_ResumedIsTheSame(t *testing.T) {
	const n = 60
	o := tune.Options{Seed: 7, Evaluations: n}
	whole, err := tune.Search(context.Background(), bowlSpace(), &bowl{}, o)
	require.NoError(t, err)
	require.Len(t, whole.Trail, n)
	for stop := 1; stop < n; stop += 10 {
		o.State = filepath.Join(t.TempDir(), "state.json")
		first := &bowl{}
		ctx, cancel := context.WithCancel(context.Background())
		part := o
		var want error
		switch stop / 10 % 3 {
		case 0:
			first.fail, want = stop+1, errBowl
		case 1:
			part.Progress, want = func(p tune.Progress) {
				if p.Done == stop {
					cancel()
				}
			}, context.Canceled
		case 2:
			part.Evaluations = stop
		}
		res, err := tune.Search(ctx, bowlSpace(), first, part)
		cancel()
		require.ErrorIs(t, err, want)
		if want == nil {
			require.Equal(t, whole.Trail[:stop], res.Trail, "fewer evaluations are the head of more")
		}
		second := &bowl{}
		res, err = tune.Search(context.Background(), bowlSpace(), second, o)
		require.NoError(t, err)
		require.Equal(t, whole, res)
		require.Equal(t, n-stop, second.calls, "what was measured is not measured again")
	}
}

func TestSearch_States(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	o := tune.Options{Evaluations: 5, State: path}
	_, err := tune.Search(context.Background(), bowlSpace(), &bowl{}, o)
	require.NoError(t, err)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary files")

	other := o
	other.Seed = 1
	_, err = tune.Search(context.Background(), bowlSpace(), &bowl{}, other)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = tune.Search(context.Background(), bowlSpace(), &bowl{name: "other"}, o)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = tune.Search(context.Background(), bowlSpace()[1:], &bowl{}, o)
	require.ErrorIs(t, err, quant.ErrShape)
	for i := range good {
		require.NoError(t, os.WriteFile(path, good[:i], 0o644))
		_, err := tune.Search(context.Background(), bowlSpace(), &bowl{}, o)
		if i < len(good)-1 {
			require.ErrorIs(t, err, quant.ErrCorrupt, "cut at %d", i)
		}
	}
	for _, bad := range []string{`{"format":"other"}`, `[]`, "{}"} {
		require.NoError(t, os.WriteFile(path, []byte(bad), 0o644))
		_, err := tune.Search(context.Background(), bowlSpace(), &bowl{}, o)
		require.ErrorIs(t, err, quant.ErrCorrupt)
	}
	o.State = filepath.Join(path, "none")
	_, err = tune.Search(context.Background(), bowlSpace(), &bowl{}, o)
	require.Error(t, err)
}

type broken float64

func (b broken) Identity() string { return "broken" }
func (b broken) Evaluate(context.Context, profile.Params) (float64, error) {
	return float64(b), nil
}

func TestSearch_Refusals(t *testing.T) {
	ctx := context.Background()
	for _, p := range []tune.Param{
		{}, {Name: "a"}, {Name: "a", Start: "x", Low: 0, High: 1}, {Name: "a", Start: "1", Low: 1, High: 0},
		{Name: "a", Start: "1", Low: 0, High: 1, Log: true}, {Name: "a", Start: "1", Price: -1},
		{Name: "a", Start: "1", Grid: []string{"a b"}}, {Name: "a", Start: "1", Low: 0, High: math.Inf(1)},
		{Name: "importance.none", Start: "1"}, {Name: "importance.relevance", Start: "99"},
	} {
		_, err := tune.Search(ctx, tune.Space{p}, &bowl{}, tune.Options{})
		require.ErrorIs(t, err, quant.ErrShape, "%+v", p)
	}
	twice := tune.Space{{Name: "a", Start: "1"}, {Name: "a", Start: "1"}}
	_, err := tune.Search(ctx, twice, &bowl{}, tune.Options{})
	require.ErrorIs(t, err, quant.ErrShape)
	one := tune.Space{{Name: "a", Start: "1"}}
	for _, o := range []tune.Options{{Evaluations: -1}, {Parents: -1}, {Children: 1 << 20},
		{Base: profile.Params{"A": "1"}}} {
		_, err = tune.Search(ctx, one, broken(1), o)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	for _, v := range []float64{math.NaN(), math.Inf(-1), math.Inf(1)} {
		_, err = tune.Search(ctx, one, broken(v), tune.Options{})
		require.ErrorIs(t, err, quant.ErrShape, "%v", v)
	}
	res, err := tune.Search(ctx, one, broken(1), tune.Options{})
	require.NoError(t, err)
	require.Len(t, res.Trail, 1, "nothing to vary")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = tune.Search(cancelled, one, broken(1), tune.Options{})
	require.ErrorIs(t, err, context.Canceled)
}

// peaks is an objective that is +Inf where x is above 0.5.
type peaks struct{}

func (peaks) Identity() string { return "peaks" }
func (peaks) Evaluate(_ context.Context, p profile.Params) (float64, error) {
	x, err := strconv.ParseFloat(p["x"], 64)
	if x > 0.5 {
		return math.Inf(1), err
	}
	return sq(x - 0.49), err
}

func TestSearch_WherePartsDoNotWork(t *testing.T) {
	space := tune.Space{{Name: "x", Start: "0", Grid: []string{"0.25", "0.75"}, Low: 0, High: 1}}
	res, err := tune.Search(context.Background(), space, peaks{}, tune.Options{Evaluations: 50,
		State: filepath.Join(t.TempDir(), "s")})
	require.NoError(t, err)
	require.Less(t, res.Best.Value, 1e-4)
	fails := 0
	for _, e := range res.Trail {
		if math.IsInf(e.Value, 1) {
			fails++
		}
	}
	require.Positive(t, fails)
}

func ExampleSearch() {
	space := tune.Space{{Name: "x", Start: "0", Grid: []string{"0.25", "0.75"}, Low: 0, High: 1}}
	res, err := tune.Search(context.Background(), space, peaks{}, tune.Options{Evaluations: 60})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(res.Start.Params, "->", res.Best.Params)
	// Output: x=0 -> x=0.488
}
