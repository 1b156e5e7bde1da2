// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// simulated is a record of names whose samples vary by a share, and whose rounds drift by another. Names of attention
// take slow times as long.
func simulated(seed uint64, sample, drift, slow float64) *Record {
	r := rand.New(rand.NewPCG(seed, 5))
	out := &Record{Format: recordFormat, Machine: Machine{Processor: "Some CPU", Cores: 2}, Threads: 2}
	for _, g := range []string{"attend", "encode"} {
		for n := range 40 {
			x := Result{Name: fmt.Sprintf("%s/coding=%d", g, n), NS: Spread{1, 1, 1}}
			level := 1 + float64(n)
			if g == "attend" {
				level *= slow
			}
			for range 3 {
				round, at := []float64(nil), level*math.Exp(drift*r.NormFloat64())
				for range 9 {
					round = append(round, at*math.Exp(sample*r.NormFloat64()))
				}
				x.Relative = append(x.Relative, spreadOf(round))
			}
			out.Results = append(out.Results, x)
		}
	}
	return out
}

// changed counts the names that a comparison calls slower or faster, groups among them.
func changed(t *testing.T, old, now *Record) (slower, faster int, attend Change) {
	c, err := Compare(old, now)
	require.NoError(t, err)
	require.Empty(t, c.Missing)
	for _, x := range c.Changes {
		if x.Slower() {
			slower++
		}
		if x.Faster() {
			faster++
		}
		if x.Group && x.Name == "attend" {
			attend = x
		}
	}
	require.Len(t, c.Slower(), slower)
	return slower, faster, attend
}

func TestCompare_QuietBetweenEqualRuns(t *testing.T) {
	for _, drift := range []float64{0, 0.01, 0.05, 0.2} {
		for seed := range uint64(50) {
			slower, faster, _ := changed(t, simulated(2*seed, 0.05, drift, 1), simulated(2*seed+1, 0.05, drift, 1))
			require.Zero(t, slower+faster, "drift %g, seed %d", drift, seed)
		}
	}
}

func TestCompare_FindsTenPercent(t *testing.T) {
	for _, drift := range []float64{0, 0.01} {
		for seed := range uint64(50) {
			slower, faster, attend := changed(t, simulated(2*seed, 0.03, drift, 1), simulated(2*seed+1, 0.03, drift, 1.1))
			require.Greater(t, slower, 20, "drift %g, seed %d", drift, seed)
			require.Zero(t, faster)
			require.True(t, attend.Slower(), "drift %g, seed %d", drift, seed)
			require.InDelta(t, 1.1, attend.Ratio, 0.02)
			_, faster, attend = changed(t, simulated(2*seed+1, 0.03, drift, 1.1), simulated(2*seed, 0.03, drift, 1))
			require.Greater(t, faster, 20)
			require.True(t, attend.Faster())
		}
	}
	_, _, attend := changed(t, simulated(1, 0.05, 0.2, 1), simulated(2, 0.05, 0.2, 1.1))
	require.False(t, attend.Slower())
	require.Greater(t, attend.Least, 0.1, "so noisy a machine cannot tell, and says so")
}

func TestCompare_RefusesOthers(t *testing.T) {
	old := simulated(1, 0, 0, 1)
	for what, change := range map[string]func(r *Record){
		"processor": func(r *Record) { r.Machine.Processor = "Another" }, "cores": func(r *Record) { r.Machine.Cores = 3 },
		"backend": func(r *Record) { r.Backend.Name = "cuda" }, "instruction set": func(r *Record) { r.Backend.ISA = "avx2" },
		"threads": func(r *Record) { r.Threads = 1 }, "--quick": func(r *Record) { r.Quick = true },
		"working set":                   func(r *Record) { r.WorkingSet = 1 },
		"have no measurement in common": func(r *Record) { r.Results = nil },
	} {
		now := simulated(1, 0, 0, 1)
		change(now)
		_, err := Compare(old, now)
		require.ErrorIs(t, err, quant.ErrUnsupported, what)
		require.ErrorContains(t, err, what)
	}
	now := simulated(1, 0, 0, 1)
	now.Results[0].Name = "attend/new"
	now.Results[1].Relative = nil
	c, err := Compare(old, now)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"attend/new", "attend/coding=0", "attend/coding=1"}, c.Missing)
	require.Len(t, c.Table().Rows, 2, "equal records: the groups alone")
}

// slowed is a backend that attends a second time in every tenth call.
type slowed struct {
	backend.Backend
	calls int
}

func (s *slowed) Attend(ctx context.Context, q *backend.Queries, v backend.View, to backend.Attention) error {
	if s.calls++; s.calls%10 == 0 {
		if err := s.Backend.Attend(ctx, q, v, to); err != nil {
			return err
		}
	}
	return s.Backend.Attend(ctx, q, v, to)
}

var repetitions = flag.Int("repetitions", 0, "pairs of real runs that are compared, equal ones and with a slow-down of 10 %")

var compareSet = flag.Int("compare-set", 0, "MiB that -repetitions attends to; 0: more than the caches hold")

// TestCompare_RealRuns compares real runs in turns: equal ones, and ones on a backend that is a tenth slower.
func TestCompare_RealRuns(t *testing.T) {
	if *repetitions == 0 {
		t.Skip("takes minutes on a quiet machine: -repetitions 10")
	}
	// One thread: others that wait for it would be measured where cores are few.
	be, err := cpu.Open(cpu.Options{Workers: 1})
	require.NoError(t, err)
	defer be.Close()
	run := func(b backend.Backend) *Record {
		r, err := Measure(t.Context(), Options{Backend: b, Quick: true, Rounds: 4, Filter: regexp.MustCompile("^attend"),
			WorkingSet: int64(*compareSet) << 20})
		require.NoError(t, err)
		return r
	}
	found, quiet := 0, 0
	for i := range *repetitions {
		old, equal, slow := run(be), run(be), run(&slowed{Backend: be})
		slower, faster, same := changed(t, old, equal)
		n, wrong, attend := changed(t, old, slow)
		t.Logf("pair %2d: equal runs %.3f, %d names slower, %d faster; slowed %.3f, %d slower, %d faster; least change told %.1f %%; "+
			"loop varied by %.1f %%", i+1, same.Ratio, slower, faster, attend.Ratio, n, wrong, 100*attend.Least, 100*slow.Noise.Spread)
		if slower+faster == 0 {
			quiet++
		}
		if attend.Slower() && wrong == 0 {
			found++
		}
	}
	t.Logf("%s: quiet between equal runs in %d of %d, slow-down of 10 %% found in %d of %d", DescribeMachine(), quiet, *repetitions, found,
		*repetitions)
	require.Equal(t, *repetitions, quiet)
	require.Equal(t, *repetitions, found)
}
