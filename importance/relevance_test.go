// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

// attention is the whole tokens x tokens matrix, which only a test may have.
func attention(q, k quant.Rows, scale float64) [][]float64 {
	out := make([][]float64, q.Len())
	for i := range out {
		out[i] = make([]float64, k.Len())
		var sum float64
		for t := 0; t <= i && t < k.Len(); t++ {
			var s float64
			for d, v := range q.Row(i) {
				s += float64(v) * float64(k.Row(t)[d])
			}
			out[i][t] = math.Exp(scale * s)
			sum += out[i][t]
		}
		for t := range out[i] {
			out[i][t] /= sum
		}
	}
	return out
}

func TestAttentionSums_EqualsTheMatrix(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const n, dim = 37, 8
	k := randomRows(rng, n, dim, 1)
	for power := 1; power <= 2; power++ {
		want, got := make([]float64, n), make([]float64, n)
		for range 3 { // query heads of one KV head
			q := randomRows(rng, n, dim, 1)
			for _, row := range attention(q, k, 0.4) {
				for r, p := range row {
					want[r] += math.Pow(p, float64(power))
				}
			}
			saw, err := attentionSums(got,
				headQueries{Q: q, Pos: upTo(n), Scale: 0.4}, k, upTo(n), power)
			require.NoError(t, err)
			require.Equal(t, n, saw)
		}
		close32(t, want, got, 1e-12)
	}
}

func TestAttentionSums_QueriesThatSeeNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	k, q := randomRows(rng, 5, 8, 1), randomRows(rng, 2, 8, 1)
	sum := make([]float64, 5)
	saw, err := attentionSums(sum, headQueries{Q: q, Pos: []int64{2, 12},
		Scale: 1}, k, []int64{10, 11, 12, 13, 14}, 1)
	require.NoError(t, err)
	require.Equal(t, 1, saw)
	require.InDelta(t, 1, sum[0]+sum[1]+sum[2], 1e-12)
	require.Zero(t, sum[3]+sum[4])
	saw, err = attentionSums(nil, headQueries{Q: q, Scale: 1},
		quant.Rows{Dim: 8}, nil, 1)
	require.NoError(t, err)
	require.Zero(t, saw)
}

func TestAttentionSums_Refuses(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	k, q := randomRows(rng, 5, 8, 1), randomRows(rng, 2, 8, 1)
	bad := randomRows(rng, 5, 8, 1)
	bad.Data[3*8+1] = float32(math.NaN())
	sum := make([]float64, 5)
	for name, c := range map[string]struct {
		sum   []float64
		q, k  quant.Rows
		pos   []int64
		scale float64
		power int
		want  error
	}{
		"power":     {sum, q, k, nil, 1, 3, quant.ErrShape},
		"room":      {sum[:4], q, k, nil, 1, 1, quant.ErrShape},
		"dims":      {sum, randomRows(rng, 2, 4, 1), k, nil, 1, 1, quant.ErrShape},
		"positions": {sum, q, k, []int64{1}, 1, 1, quant.ErrShape},
		"scale":     {sum, q, k, nil, math.Inf(1), 1, quant.ErrShape},
		"nan in k":  {sum, q, bad, nil, 1, 1, quant.ErrRange},
		"nan in q":  {sum, bad, k, nil, 1, 1, quant.ErrRange},
		"no rows":   {sum, q, quant.Rows{Data: k.Data}, nil, 1, 1, quant.ErrShape},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := attentionSums(c.sum,
				headQueries{Q: c.q, Pos: c.pos, Scale: c.scale}, c.k, upTo(5), c.power)
			require.ErrorIs(t, err, c.want)
			require.Equal(t, make([]float64, 5), sum)
		})
	}
}

// feed hands queries [from, to) to r in batches of at most step, as a backend would.
func feed(t require.TestingT, r *Relevance, att [][]float64, from, to, step, power int) {
	for i := from; i < to; {
		n := min(step, r.room(), to-i)
		sum := make([]float32, i+n)
		for tok := range sum {
			var s float64
			for _, row := range att[i : i+n] {
				s += math.Pow(row[tok], float64(power))
			}
			sum[tok] = float32(s)
		}
		cut := len(sum) / 3 // blocks, in any order
		pos := make([]uint16, len(sum)-cut)
		back := make([]float32, len(sum)-cut)
		for j := range pos {
			pos[j], back[j] = uint16(len(sum)-cut-1-j), sum[len(sum)-1-j]
		}
		require.NoError(t, r.Add(Queries{First: int64(i), N: n, Group: 1},
			RowSums{Base: int64(cut), Pos: pos, Sum: back},
			RowSums{Sum: sum[:cut]}))
		i += n
	}
}

// direct is the definition of the relevance, from the matrix.
func direct(att [][]float64, to int, cfg RelevanceConfig) []float64 {
	out := make([]float64, to)
	power := 2.0
	if cfg.Power == 1 {
		power = 1
	}
	start := (to - 1) / cfg.Window * cfg.Window // of the current window
	f := 1 - float64(to-start)/float64(cfg.Window)
	for t := range out {
		var win, seenWin, all, seenAll float64
		for i := t; i < to; i++ {
			p := math.Pow(att[i][t], power)
			w, a := 0.0, 1.0
			switch {
			case i >= start:
				w = 1
			case i >= start-cfg.Window:
				w = f
			}
			if cfg.HalfLife > 0 {
				ago := start/cfg.Window - i/cfg.Window
				// The window before the current one is as fresh as when it closed.
				a = math.Exp2(-float64(max(0, ago-1)*cfg.Window) / cfg.HalfLife)
			}
			win, seenWin = win+w*p, seenWin+w
			all, seenAll = all+a*p, seenAll+a
		}
		x := 0.0
		if seenWin > 0 {
			x += (1 - cfg.Mix) * win / seenWin
		}
		if seenAll > 0 {
			x += cfg.Mix * all / seenAll
		}
		if power == 2 {
			x = math.Sqrt(x)
		}
		out[t] = x
	}
	return out
}

func TestRelevance_EqualsTheDefinitionForAnySplit(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	const n, dim = 90, 8
	att := attention(randomRows(rng, n, dim, 1), randomRows(rng, n, dim, 1), 0.5)
	rapid.Check(t, func(t *rapid.T) {
		cfg := RelevanceConfig{
			Window:   rapid.IntRange(1, 40).Draw(t, "window"),
			Mix:      rapid.SampledFrom([]float64{0, 0.05, 0.5, 1}).Draw(t, "mix"),
			HalfLife: rapid.SampledFrom([]float64{0, 5, 64}).Draw(t, "half-life"),
			Power:    rapid.IntRange(1, 2).Draw(t, "power"),
		}
		to := rapid.IntRange(1, n).Draw(t, "queries")
		step := rapid.IntRange(1, 50).Draw(t, "step")
		r, err := NewRelevance(cfg)
		require.NoError(t, err)
		feed(t, r, att, 0, to, step, cfg.Power)
		got := make([]float64, to)
		require.NoError(t, r.Values(got))
		close32(t, direct(att, to, cfg), got, 2e-5)
	})
}

func TestRelevance_FutureDoesNotChangeThePast(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	q, k := randomRows(rng, 80, 8, 1), randomRows(rng, 80, 8, 1)
	other := join(part(q, 0, 40), randomRows(rng, 40, 8, 1))
	var past [2][]float64
	for i, x := range []quant.Rows{q, other} {
		r, err := NewRelevance(RelevanceConfig{Window: 16, Mix: 0.5})
		require.NoError(t, err)
		feed(t, r, attention(x, k, 0.5), 0, 40, 7, 2)
		fork := r.clone()
		feed(t, r, attention(x, k, 0.5), 40, 80, 7, 2)
		past[i] = make([]float64, 40)
		require.NoError(t, fork.Values(past[i]), "a clone does not follow its origin")
	}
	require.Equal(t, past[0], past[1])
}

func TestRelevance_MergedRowSharesItsAttention(t *testing.T) {
	for power, want := range map[int]float64{1: 0.1, 2: 0.1} {
		r, err := NewRelevance(RelevanceConfig{Power: power})
		require.NoError(t, err)
		sum := float32(math.Pow(0.4, float64(power))) // four tokens at 0.1 each
		require.NoError(t, r.Add(Queries{First: 10, N: 1, Group: 1}, RowSums{
			Base: 2, Pos: []uint16{1}, Count: []uint16{4}, Sum: []float32{sum}}))
		got := make([]float64, 8)
		require.NoError(t, r.Values(got))
		for i, x := range got {
			switch {
			case i < 3:
				require.Zero(t, x)
			case i < 7:
				require.InDelta(t, want, x, 1e-6)
			default: // not known: the mean of the seven
				require.InDelta(t, 4*want/7, x, 1e-6)
			}
		}
	}
}

func TestRelevance_TruncateForgetsTokens(t *testing.T) {
	r, err := NewRelevance(RelevanceConfig{Window: 4, Mix: 0.5})
	require.NoError(t, err)
	ones := RowSums{Sum: []float32{.1, .1, .1, .1, .1, .1, .1, .1}}
	for i := range int64(8) {
		require.NoError(t, r.Add(Queries{First: 8 + i, N: 1, Group: 1}, ones))
	}
	r.truncate(5)
	require.Equal(t, 5, r.tokens())
	require.NoError(t, r.Add(Queries{First: 7, N: 1, Group: 1},
		RowSums{Base: 5, Sum: []float32{.4, .4, .4}}))
	got := make([]float64, 8)
	require.NoError(t, r.Values(got))
	require.Greater(t, got[6], 1.5*got[0], "new tokens do not share the past of those forgotten")
	r.truncate(-3)
	require.Zero(t, r.tokens())
	r.truncate(4)
	require.Zero(t, r.tokens())
}

func TestRelevance_Refuses(t *testing.T) {
	two := []float32{1, 1}
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	one, none := Queries{N: 1, Group: 1}, RowSums{}
	for name, c := range map[string]struct {
		q    Queries
		rows RowSums
		want error
	}{
		"nan":           {one, RowSums{Sum: []float32{1, nan}}, quant.ErrRange},
		"infinite":      {one, RowSums{Sum: []float32{inf}}, quant.ErrRange},
		"negative":      {one, RowSums{Sum: []float32{-1}}, quant.ErrRange},
		"far position":  {one, RowSums{Base: 1 << 39, Sum: []float32{1}}, quant.ErrTooLarge},
		"limit":         {one, RowSums{Base: 100, Sum: []float32{1}}, quant.ErrTooLarge},
		"before start":  {one, RowSums{Base: -1, Sum: []float32{1}}, quant.ErrShape},
		"absurd":        {one, RowSums{Base: 1 << 62, Sum: []float32{1}}, quant.ErrShape},
		"positions":     {one, RowSums{Pos: []uint16{1}, Sum: two}, quant.ErrShape},
		"no tokens":     {one, RowSums{Count: []uint16{0}, Sum: []float32{1}}, quant.ErrShape},
		"over a window": {Queries{N: 9, Group: 1}, none, quant.ErrShape},
		"no heads":      {Queries{N: 1}, none, quant.ErrShape},
		"negative n":    {Queries{N: -1, Group: 1}, none, quant.ErrShape},
		"the past":      {Queries{First: 3, N: 1, Group: 1}, none, quant.ErrShape},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := NewRelevance(RelevanceConfig{Window: 8, MaxTokens: 100})
			require.NoError(t, err)
			if name == "the past" {
				require.NoError(t, r.Add(Queries{First: 5, N: 2, Group: 1}))
			}
			require.ErrorIs(t, r.Add(c.q, c.rows), c.want)
			require.Zero(t, r.tokens())
		})
	}
	var v *ValueError
	r, _ := NewRelevance(RelevanceConfig{})
	require.True(t, errors.As(r.Add(one, RowSums{Sum: []float32{1, nan}}), &v))
	require.Equal(t, 1, v.Index)
	for _, cfg := range []RelevanceConfig{{Window: -1}, {Mix: -0.1}, {Mix: 1.1},
		{Mix: math.NaN()}, {HalfLife: -1}, {HalfLife: math.NaN()}, {HalfLife: math.Inf(1)},
		{Power: 3}, {MaxTokens: -1}} {
		_, err := NewRelevance(cfg)
		require.ErrorIs(t, err, quant.ErrShape, fmt.Sprintf("%+v", cfg))
	}
}

func TestRelevance_NothingSeen(t *testing.T) {
	r, err := NewRelevance(RelevanceConfig{})
	require.NoError(t, err)
	got := []float64{7, 7}
	require.NoError(t, r.Values(got))
	require.Equal(t, []float64{0, 0}, got)
	require.NoError(t, r.Values(nil))
	require.NoError(t, r.Add(Queries{N: 1, Group: 1},
		RowSums{Sum: []float32{1}}))
	require.ErrorIs(t, r.Values(nil), quant.ErrShape)
}

func TestRelevance_StateIsBounded(t *testing.T) {
	r, err := NewRelevance(RelevanceConfig{Window: 1, Mix: 0.5, HalfLife: 100})
	require.NoError(t, err)
	rows := RowSums{Sum: make([]float32, 64)}
	for i := range rows.Sum {
		rows.Sum[i] = 0.01
	}
	for i := range int64(5000) {
		require.NoError(t, r.Add(Queries{First: 64 + i, N: 1, Group: 1}, rows))
	}
	require.LessOrEqual(t, r.stateBytes(), int64(64*12+64<<10))
	got := make([]float64, 64)
	require.NoError(t, r.Values(got))
	for _, x := range got { // every query gave every token the same
		require.InDelta(t, 0.1, x, 1e-3)
	}
}

func TestShape_SmoothsFloorsNormalises(t *testing.T) {
	x := []float64{100, 0, 0, 5, 0, 0, 0, 0, 0, 0}
	require.NoError(t, Shape(x, ShapeConfig{Sinks: 1, Smooth: 5, Floor: 0.1}))
	var mean float64
	smooth := []float64{5.0 / 3, 5.0 / 4, 1, 1, 1, 0, 0, 0, 0}
	for _, v := range smooth {
		mean += v / 9
	}
	var after float64
	for i, v := range smooth {
		smooth[i] = max(v, 0.1*mean)
		after += smooth[i] / 9
	}
	for i := range smooth {
		smooth[i] /= after
	}
	close32(t, smooth, x[1:], 1e-12)
	require.InDelta(t, 100/after, x[0], 1e-9, "a sink neither spreads nor counts in the mean")
}

func TestShape_Properties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float64Range(0, 1), 1, 200).Draw(t, "x")
		cfg := ShapeConfig{
			Sinks:  rapid.IntRange(0, 8).Draw(t, "sinks"),
			Smooth: 2*rapid.IntRange(0, 5).Draw(t, "half") + 1,
			Floor:  rapid.Float64Range(0, 1).Draw(t, "floor"),
			Temper: rapid.Float64Range(0, 1).Draw(t, "temper"),
		}
		a, b := append([]float64(nil), x...), append([]float64(nil), x...)
		for i := range b {
			if a[i] < 1e-200 {
				a[i], b[i] = 0, 0 // or scaling would lose digits
			}
			b[i] *= 0x1p-40
		}
		require.NoError(t, Shape(a, cfg))
		require.NoError(t, Shape(b, cfg))
		require.Equal(t, a, b, "powers of two do not matter")
		if cfg.Sinks >= len(x) {
			return
		}
		var sum float64
		for _, v := range a[cfg.Sinks:] {
			require.False(t, math.IsNaN(v) || v < 0)
			sum += v
		}
		require.InDelta(t, 1, sum/float64(len(x)-cfg.Sinks), 1e-9)
	})
}

func TestShape_TemperFlattensWhatIsGathered(t *testing.T) {
	spread := func(temper float64, x ...float64) float64 {
		require.NoError(t, Shape(x, ShapeConfig{Temper: temper}))
		return x[0] / x[1]
	}
	require.InDelta(t, 1000, spread(0, 1000, 1, 1, 1), 1e-6)
	require.Less(t, spread(1, 1000, 1, 1, 1), 2.0)
	require.InDelta(t, 1.1, spread(1, 1.1, 1, 1, 1), 0.001, "an even signal keeps its shape")
}

func TestShape_Edges(t *testing.T) {
	require.NoError(t, Shape(nil, ShapeConfig{Smooth: 5, Sinks: 3}))
	zeros := []float64{0, 0, 0}
	require.NoError(t, Shape(zeros, ShapeConfig{Floor: 0.1, Temper: 1}))
	require.Equal(t, []float64{1, 1, 1}, zeros)
	tiny := []float64{5e-324, 0, 1e-323}
	require.NoError(t, Shape(tiny, ShapeConfig{}))
	close32(t, []float64{1, 0, 2}, tiny, 1e-12)
	huge := []float64{math.MaxFloat64, math.MaxFloat64}
	require.NoError(t, Shape(huge, ShapeConfig{}))
	require.Equal(t, []float64{1, 1}, huge)
	for _, x := range []float64{math.NaN(), math.Inf(1), -1} {
		require.ErrorIs(t, Shape([]float64{1, x}, ShapeConfig{}), quant.ErrRange)
	}
	for _, cfg := range []ShapeConfig{{Sinks: -1}, {Smooth: 2}, {Smooth: -1},
		{Floor: 2}, {Floor: math.NaN()}, {Temper: -1}} {
		require.ErrorIs(t, Shape([]float64{1}, cfg), quant.ErrShape)
	}
}

func TestConcentrate_TellsCollapsedFromSpread(t *testing.T) {
	even := make([]float64, 200)
	for i := range even {
		even[i] = 3
	}
	c, err := Concentrate(even)
	require.NoError(t, err)
	require.InDelta(t, 200, c.Effective, 1e-9)
	require.InDelta(t, math.Log(200), c.Entropy, 1e-9)
	require.InDelta(t, 4.0/200, c.TopShare, 1e-12)
	require.False(t, c.Collapsed)
	require.Empty(t, c.Reason)

	sink := make([]float64, 200)
	sink[0], sink[1], sink[7] = 0.9, 0.06, 0.02
	for i := range sink {
		sink[i] += 1e-5
	}
	c, err = Concentrate(sink)
	require.NoError(t, err)
	require.True(t, c.Collapsed)
	require.Contains(t, c.Reason, "4 of 200 rows")
	require.Greater(t, c.TopShare, 0.95)
	c, err = Concentrate(sink[:20])
	require.NoError(t, err)
	require.False(t, c.Collapsed, "too few to judge")

	one := make([]float64, 1000) // half on one row, the rest spread thin
	for i := range one {
		one[i] = 0.5 / 1000
	}
	one[500] = 0.8
	c, err = Concentrate(one)
	require.NoError(t, err)
	require.True(t, c.Collapsed)
	require.Less(t, c.Effective, 3.0)

	c, err = Concentrate(make([]float64, 64))
	require.NoError(t, err)
	require.True(t, c.Collapsed)
	require.Contains(t, c.Reason, "zero")
	c, err = Concentrate(nil)
	require.NoError(t, err)
	require.False(t, c.Collapsed)
	_, err = Concentrate([]float64{1, math.NaN()})
	require.ErrorIs(t, err, quant.ErrRange)
}

// Queries that are skipped do not move the others: batches end where they did, windows that were
// skipped whole leave no trace, and in other windows the mean is over the queries that were added.
func TestRelevance_Skip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := RelevanceConfig{Window: rapid.IntRange(1, 9).Draw(t, "window"),
			Mix: rapid.SampledFrom([]float64{0, 0.3, 1}).Draw(t, "mix"), Power: 1,
			HalfLife: rapid.SampledFrom([]float64{0, 8}).Draw(t, "half-life")}
		n := rapid.IntRange(1, 40).Draw(t, "queries")
		got, err := NewRelevance(cfg)
		require.NoError(t, err)
		whole, err := NewRelevance(cfg) // without the windows of which nothing is known
		require.NoError(t, err)
		counted := make([]bool, n)
		traceless := true
		for from := 0; from < n; from += cfg.Window {
			to := min(from+cfg.Window, n)
			window := rapid.SampledFrom([]string{"known", "unknown", "mixed"}).Draw(t, "kind")
			traceless = traceless && window != "mixed"
			for at := from; at < to; {
				step := min(rapid.IntRange(1, cfg.Window).Draw(t, "step"), to-at)
				require.LessOrEqual(t, step, got.room())
				if window == "unknown" || window == "mixed" && rapid.Bool().Draw(t, "skip") {
					require.NoError(t, got.Skip(int64(at), step))
				} else {
					q := Queries{First: int64(at), N: step, Group: 1}
					sums := RowSums{Sum: []float32{float32(step) / 2, float32(step) / 4}}
					require.NoError(t, got.Add(q, sums))
					if window == "known" {
						require.NoError(t, whole.Add(q, sums))
					}
					for i := range step {
						counted[at+i] = true
					}
				}
				at += step
			}
		}
		x, y := make([]float64, 2), make([]float64, 2)
		require.NoError(t, got.Values(x))
		require.NoError(t, whole.Values(y))
		any := false
		for i := range counted {
			any = any || counted[i]
		}
		switch {
		case !any:
			require.Equal(t, []float64{0, 0}, x)
		default:
			// All queries pay the first token a half: so it is, whichever of them are known.
			require.InDelta(t, 0.5, x[0], 1e-6)
		}
		// Windows of no queries at all shift nothing, so the others weigh as if there were none.
		if traceless && n%cfg.Window == 0 {
			require.InDelta(t, y[0], x[0], 1e-6)
			require.InDelta(t, y[1], x[1], 1e-6)
		}
		require.ErrorIs(t, got.Skip(int64(n-1), 1), quant.ErrShape)
		require.ErrorIs(t, got.Skip(int64(n), got.room()+1), quant.ErrShape)
		require.ErrorIs(t, got.Skip(int64(n), -1), quant.ErrShape)
	})
}
