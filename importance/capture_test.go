// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

const captureFile = "../testdata/smollm2-sqlite-1k.safetensors"

// sinks of the capture: they are kept apart from any plan, and from these figures.
const sinks = 4

// realHead is one KV head of the capture.
type realHead struct {
	layer, tokens int
	k, v          quant.Rows
	q             []quant.Rows // of the query heads that share it
	surprisal     []float32
	rope          quant.Rope
	truth         []float64 // root mean square attention from the tokens after
	bucket        [][]float64
}

// bucket is the number of queries that sums are kept apart for.
const bucket = 64

func readRows(t testing.TB, s *capture.Source, layer int, p capture.Part, head int) quant.Rows {
	x, ok := s.KV(layer, p)
	require.True(t, ok)
	r := quant.Rows{Dim: x.Dim(), Data: make([]float32, x.Dim()*x.Rows())}
	require.NoError(t, x.ReadF32(head, 0, x.Rows(), r.Data))
	return r
}

func readCapture(t testing.TB) []*realHead {
	s, err := capture.Open(captureFile, capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	g, n, next := s.Info().Geometry, s.Info().Tokens, s.Info().TokensNext
	scale := 1 / math.Sqrt(float64(g.HeadDim))
	surprisal := make([]float32, n)
	require.NoError(t, s.ReadSurprisal(false, 0, surprisal))
	positions := upTo(n + next)
	var heads []*realHead
	for _, layer := range s.Info().Layers {
		for h := range g.KVHeads {
			r := &realHead{layer: layer, tokens: n, k: readRows(t, s, layer, capture.K, h),
				v: readRows(t, s, layer, capture.V, h), surprisal: surprisal, rope: g.Rope,
				truth: make([]float64, n+next)}
			all := join(r.k, readRows(t, s, layer, capture.KNext, h))
			for range n / bucket {
				r.bucket = append(r.bucket, make([]float64, n))
			}
			for i := range g.GQARatio() {
				q := readRows(t, s, layer, capture.Q, h*g.GQARatio()+i)
				r.q = append(r.q, q)
				_, err := attentionSums(r.truth, headQueries{
					Q:   readRows(t, s, layer, capture.QNext, h*g.GQARatio()+i),
					Pos: positions[n:], Scale: scale}, all, positions, 2)
				require.NoError(t, err)
				for b := range r.bucket {
					lo, hi := b*bucket, (b+1)*bucket
					_, err := attentionSums(r.bucket[b], headQueries{
						Q: part(q, lo, hi), Pos: positions[lo:hi], Scale: scale}, r.k, positions[:n], 2)
					require.NoError(t, err)
				}
			}
			r.truth = r.truth[:n]
			for i, x := range r.truth {
				r.truth[i] = math.Sqrt(x)
			}
			heads = append(heads, r)
		}
	}
	return heads
}

// relevance feeds the first n tokens' queries to an accumulator and returns its values.
func (h *realHead) relevance(t testing.TB, cfg RelevanceConfig) []float64 {
	r, err := NewRelevance(cfg)
	require.NoError(t, err)
	for b, sums := range h.bucket {
		rows := RowSums{Sum: make([]float32, h.tokens)}
		for i, s := range sums {
			rows.Sum[i] = float32(s)
		}
		require.NoError(t, r.Add(Queries{First: int64(b * bucket), N: bucket,
			Group: len(h.q)}, rows))
	}
	out := make([]float64, h.tokens)
	require.NoError(t, r.Values(out))
	return out
}

// accumulated is the plain sum of attention over all queries, as eviction by heavy hitters takes
// it: old tokens first.
func (h *realHead) accumulated() []float64 {
	out := make([]float64, h.tokens)
	for _, b := range h.bucket {
		for i, s := range b {
			out[i] += s
		}
	}
	for i := range out {
		out[i] = math.Sqrt(out[i])
	}
	return out
}

func (h *realHead) expected(t testing.TB, full bool) []float64 {
	var stats []*queryStats
	for _, q := range h.q {
		s, err := newQueryStats(q.Dim, h.rope, full)
		require.NoError(t, err)
		require.NoError(t, s.Add(q, upTo(h.tokens)))
		stats = append(stats, s)
	}
	out := make([]float64, h.tokens)
	require.NoError(t, expectedRelevance(out, stats, h.k,
		scores{scale: 1 / math.Sqrt(float64(h.k.Dim))}, int64(h.tokens), 256))
	return out
}

// damage is what the queries after would see, over what they would see at even bits: distortion
// goes as 1/weight^2 where the weights give out bits, at the same number of bits in all.
func (h *realHead) damage(w []float64) float64 {
	var logs, sum, even float64
	n := float64(h.tokens - sinks)
	for _, x := range w[sinks:] {
		logs += 2 * math.Log(x) / n
	}
	for i := sinks; i < h.tokens; i++ {
		e := h.truth[i] * h.truth[i]
		sum += e * math.Exp(logs) / (w[i] * w[i])
		even += e
	}
	return sum / even
}

// signals are the candidates that the test compares, by name.
func (h *realHead) signals(t testing.TB) (names []string, values map[string][]float64) {
	values = map[string][]float64{}
	add := func(name string, x []float64) {
		names = append(names, name)
		values[name] = slices.Clone(x)
	}
	shaped := func(x []float64, smooth int, floor float64) []float64 {
		x = slices.Clone(x)
		require.NoError(t, Shape(x, ShapeConfig{Sinks: sinks, Smooth: smooth,
			Floor: floor}))
		return x
	}
	window := h.relevance(t, RelevanceConfig{Window: 64})
	add("window 64", shaped(window, 1, 0.1))
	add("window 64, no floor", shaped(window, 1, 0))
	add("window 64, smooth 3", shaped(window, 3, 0.1))
	add("window 64, smooth 5", shaped(window, 5, 0.1))
	add("window 256", shaped(h.relevance(t, RelevanceConfig{Window: 256}), 1, 0.1))
	for _, mix := range []float64{0.05, 0.3} {
		for _, life := range []float64{0, 64} {
			add(fmt.Sprintf("64 + %v all, half-life %v", mix, life),
				shaped(h.relevance(t, RelevanceConfig{Window: 64, Mix: mix,
					HalfLife: life}), 1, 0.1))
		}
	}
	add("all queries that saw it", shaped(h.relevance(t, RelevanceConfig{Mix: 1}), 1, 0.1))
	add("accumulated", shaped(h.accumulated(), 1, 0.1))
	add("expected, full", shaped(h.expected(t, true), 1, 0.1))
	diagonal := shaped(h.expected(t, false), 1, 0)
	add("expected, diagonal", shaped(diagonal, 1, 0.1))
	add("expected, diagonal, no floor", diagonal)
	for _, share := range []float64{0.25, 0.5, 0.75} {
		both := make([]float64, h.tokens)
		for i := range both {
			both[i] = math.Pow(window[i], share) * math.Pow(diagonal[i], 1-share)
		}
		add(fmt.Sprintf("64^%v * expected^%v", share, 1-share), shaped(both, 1, 0.1))
	}
	d, err := newDecay(0.5, 1)
	require.NoError(t, err)
	x := make([]float64, h.tokens)
	d.Values(x, 0, int64(h.tokens)-1)
	add("recency^-0.5", shaped(x, 1, 0.1))
	rng := rand.New(rand.NewPCG(61, uint64(h.layer)))
	for i := range x {
		x[i] = rng.ExpFloat64()
	}
	add("random", shaped(x, 1, 0.1))

	all := Weighting{Surprise: 1, ValueNorm: 1, Surprisal: 1, Habituation: 1}
	for s := signalValueNorm; s <= signalHabituation; s++ {
		p := Weighting{}
		switch s {
		case signalValueNorm:
			p.ValueNorm = all.ValueNorm
		case signalSurprise:
			p.Surprise = all.Surprise
		case signalSurprisal:
			p.Surprisal = all.Surprisal
		case signalHabituation:
			p.Habituation = all.Habituation
		}
		w := h.track(t, p)
		add(s.String(), w)
		for i := range w {
			w[i] = math.Sqrt(w[i]) * values["window 64"][i]
		}
		add("window 64 * "+s.String()+"^0.5", w)
	}
	p := defaultWeighting()
	add("default weighting", h.track(t, p))
	p.Relevance, p.Expected = 0.5, 0.5
	add("default, half of it expected", h.track(t, p))
	return names, values
}

// track runs the head through a Tracker.
func (h *realHead) track(t testing.TB, p Weighting) []float64 {
	tr, err := NewTracker(p, h.k.Dim, h.v.Dim, h.rope)
	require.NoError(t, err)
	for b, sums := range h.bucket {
		lo, hi := b*bucket, (b+1)*bucket
		require.NoError(t, tr.Append(part(h.k, lo, hi), part(h.v, lo, hi), h.surprisal[lo:hi]))
		rows := RowSums{Sum: make([]float32, hi)}
		for i := range rows.Sum {
			rows.Sum[i] = float32(sums[i])
		}
		require.NoError(t, tr.Observe(Queries{First: int64(lo), N: bucket,
			Group: len(h.q)}, rows))
		var q []quant.Rows
		for _, x := range h.q {
			q = append(q, part(x, lo, hi))
		}
		require.NoError(t, tr.ObserveQueries(int64(lo), q...))
	}
	return weights(t, tr, h.k)
}

// TestSignals_OnARealCache compares what the signals said after 1,024 tokens with the attention
// that the next 256 queries then paid. The table is the ground of defaultWeighting.
func TestSignals_OnARealCache(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: attention over a whole capture")
	}
	heads := readCapture(t)
	type figures struct{ rank, damage float64 }
	sum := map[string]map[int]figures{}
	count := map[int]float64{}
	var names []string
	for _, h := range heads {
		var values map[string][]float64
		names, values = h.signals(t)
		count[h.layer]++
		for _, name := range names {
			if sum[name] == nil {
				sum[name] = map[int]figures{}
			}
			f := sum[name][h.layer]
			f.rank += spearman(values[name][sinks:], h.truth[sinks:])
			f.damage += h.damage(values[name])
			sum[name][h.layer] = f
		}
	}
	layers := slices.Sorted(func(yield func(int) bool) {
		for l := range count {
			if !yield(l) {
				return
			}
		}
	})
	get := func(name string, layer int) figures {
		f := sum[name][layer]
		return figures{f.rank / count[layer], f.damage / count[layer]}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "rank correlation with future attention, damage over that at even bits\n%-32s", "")
	for _, l := range layers {
		fmt.Fprintf(&b, "      layer %2d", l)
	}
	for _, name := range names {
		fmt.Fprintf(&b, "\n%-32s", name)
		var all figures
		for _, l := range layers {
			f := get(name, l)
			fmt.Fprintf(&b, "  %6.3f %5.3f", f.rank, f.damage)
			all.rank += f.rank / float64(len(layers))
			all.damage += f.damage / float64(len(layers))
		}
		fmt.Fprintf(&b, "  | %6.3f %5.3f", all.rank, all.damage)
	}
	t.Log(b.String())
	for _, l := range layers {
		random := get("random", l)
		for _, name := range []string{"window 64", "window 64, smooth 5", "default weighting"} {
			f := get(name, l)
			require.Greater(t, f.rank, random.rank+0.2, "%s, layer %d", name, l)
			require.Less(t, f.damage, 1.0, "%s, layer %d: better than even bits", name, l)
		}
		require.InDelta(t, 0, random.rank, 0.1)
		require.Greater(t, random.damage, 1.0)
	}
}
