// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// records calls f with every record of a file.
func records(t testing.TB, b []byte, f func(*container.Record)) {
	t.Helper()
	r := reader(t, b)
	for i := range r.Records() {
		rec, err := r.ReadRecord(i)
		require.NoError(t, err)
		f(rec)
	}
}

// A budget below what coding every token takes: tokens are merged and dropped, all levels of the
// config are used, every token is in one block, and what comes back is what the file says.
func TestLevels_RoundTrip(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	b, res := compress(t, src, be, config(t, "bits=0.6 levels=full+chunks+summary+dropped"))
	require.LessOrEqual(t, res.BitsPerValue, 0.6)
	require.Greater(t, res.BitsPerValue, 0.59)
	cmp := measure(t, src, be, b)
	t.Logf("future %.4f, predicted %.4f", cmp.FutureError, res.Predicted)
	back := decompress(t, b)
	seen := map[quant.Level]int{}
	layers := src.Info().Layers
	records(t, b, func(rec *container.Record) {
		n := layers[rec.Layer]
		k, _ := back.KV(n, capture.K)
		orig, _ := src.KV(n, capture.K)
		for h, head := range rec.Heads {
			kept := make([]uint8, src.Info().Tokens)
			if holds(back, n, "kept") {
				require.NoError(t, back.ReadKept(n, h, 0, kept))
			} else {
				for i := range kept {
					kept[i] = 1
				}
			}
			row := func(x capture.Tensor, s *capture.Source, tok uint16) []float32 {
				out := make([]float32, x.Dim())
				require.NoError(t, x.ReadF32(h, rec.Segment*512+int(tok), 1, out))
				return out
			}
			for _, blk := range head.Blocks {
				seen[blk.Level] += len(blk.Tokens)
				for _, tok := range blk.Tokens {
					at := rec.Segment*512 + int(tok)
					require.Equal(t, blk.Level != quant.Dropped, kept[at] != 0)
					if at < 4 {
						require.Equal(t, quant.Full, blk.Level, "sinks take no part")
						require.GreaterOrEqual(t, blk.K.Format.Bits(), 8)
						require.GreaterOrEqual(t, blk.V.Format.Bits(), 8)
					}
				}
				at := 0
				for _, count := range blk.Counts {
					run := blk.Tokens[at : at+int(count)]
					at += int(count)
					if blk.Level == quant.Chunks {
						require.GreaterOrEqual(t, int(count), 2)
						require.Equal(t, int(run[0])+int(count)-1, int(run[count-1]), "adjacent")
					}
					first := row(k, back, run[0])
					var least, cos float64 = math.Inf(1), 0
					for _, tok := range run {
						require.Equal(t, first, row(k, back, tok), "one row at each of its positions")
						e := quanttest.NMSE(row(orig, src, tok), first)
						least, cos = min(least, e), cos+e/float64(count)
					}
					require.Less(t, least, 1.0, "a mean is nearer to its nearest token than zeros are")
				}
			}
		}
	})
	t.Log("tokens by level", seen)
	require.Positive(t, seen[quant.Dropped])
	require.Positive(t, seen[quant.Chunks]+seen[quant.Summary])
	require.Positive(t, seen[quant.Full])
}

// Left to themselves, levels beyond FULL are for budgets where they pay.
func TestLevels_Auto(t *testing.T) {
	long(t)
	src, be := open(t, kvFile), openCPU(t)
	for bits, all := range map[string]bool{"bits=2": true, "bits=4": false, "share=0.1": true,
		"share=0.3": false} {
		b, _ := compress(t, src, be, config(t, bits))
		other := false
		records(t, b, func(rec *container.Record) {
			for _, h := range rec.Heads {
				for _, blk := range h.Blocks {
					other = other || blk.Level != quant.Full
				}
			}
		})
		require.Equal(t, all, other, bits)
	}
}

// Levels are chosen because they are cheaper at the same damage: allowing them never raises the
// damage that the planner expects, at any budget.
func TestLevels_NeverWorseInThePlan(t *testing.T) {
	long(t)
	src, be := open(t, kvFile), openCPU(t)
	for _, bits := range []float64{1.3, 3} {
		_, full := compress(t, src, be, config(t, fmt.Sprintf("bits=%g unseen=0 levels=full", bits)))
		_, all := compress(t, src, be, config(t, fmt.Sprintf("bits=%g unseen=0 levels=full+chunks+dropped", bits)))
		t.Logf("bits %g: damage %.5f with FULL only, %.5f with all", bits, full.Damage, all.Damage)
		require.Less(t, all.Damage, full.Damage*1.001) // measured alike: unseen would be charged to one only
	}
}

// Queries unlike those seen: the larger their share, the more is kept of rows that no query has asked for, so
// that the plain errors of rows fall. The number of dropped tokens may go either way.
func TestLevels_UnseenHoldsBack(t *testing.T) {
	long(t)
	src, be := open(t, kvFile), openCPU(t)
	var k, v []float64
	for _, unseen := range []float64{0, 0.3} {
		b, _ := compress(t, src, be, config(t,
			fmt.Sprintf("bits=1.5 levels=full+dropped unseen=%g", unseen)))
		cmp := measure(t, src, be, b)
		k, v = append(k, cmp.KError), append(v, cmp.VError)
	}
	t.Log("errors of K", k, "of V", v)
	require.Less(t, k[1], k[0])
	require.Less(t, v[1], v[0])
}

// What is expected is what comes, within a factor of 1.5, on a capture that nothing was fitted to.
func TestPredicted_AgainstMeasured(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	configs := []string{"bits=3", "bits=4.3", "bits=6", "bits=3.5 importance=none",
		"bits=3.25 levels=full row-bias=false", "k=lm4 v=lm3"}
	if testing.Short() {
		configs = configs[:1]
	}
	for _, cfg := range configs {
		b, res := compress(t, src, be, config(t, cfg))
		f := measure(t, src, be, b).FutureError
		t.Logf("%s: predicted %.5f, measured %.5f, ratio %.2f", cfg, res.Predicted, f, res.Predicted/f)
		require.Less(t, res.Predicted/f, 1.5, cfg)
		require.Greater(t, res.Predicted/f, 1/1.5, cfg)
	}
}

// Heads of a layer in another order: the same plan in that order.
func TestPlan_PermutedHeads(t *testing.T) {
	be := openCPU(t)
	s := shape{4, 2, 600, 64, 64, quant.Float16, true}
	plain := synthetic(t, s, quanttest.Gaussian, nil)
	var m memory
	swapped := swapHeads(t, plain, s, &m)
	for _, cfg := range []string{"bits=2.5 levels=full", "bits=0.9"} {
		var heads [2][][]container.Head
		for i, src := range []*capture.Source{plain, swapped} {
			b, _ := compress(t, src, be, config(t, cfg))
			records(t, b, func(rec *container.Record) { heads[i] = append(heads[i], rec.Heads) })
		}
		for r := range heads[0] {
			for h := range heads[0][r] {
				require.Equal(t, heads[0][r][h], heads[1][r][1-h], "%s: record %d head %d", cfg, r, h)
			}
		}
	}
}

// swapHeads writes a capture with its two KV heads, and their query heads, exchanged.
func swapHeads(t *testing.T, src *capture.Source, s shape, m *memory) *capture.Source {
	t.Helper()
	var decls []capture.Decl
	for _, x := range src.Tensors() {
		decls = append(decls, capture.Decl{Name: x.Name, DTypeName: x.DTypeName, Shape: x.Shape})
	}
	w, err := capture.NewWriter(m, decls, src.Info().Metadata)
	require.NoError(t, err)
	for _, x := range src.Tensors() {
		b := raw(t, src, x.Name)
		if x.Name != "tokens" {
			b = slices.Concat(b[len(b)/2:], b[:len(b)/2])
		}
		require.NoError(t, w.WriteAt(x.Name, 0, b))
	}
	require.NoError(t, w.Close())
	out, err := capture.New("swapped", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return out
}

// More bytes, less expected damage; the budget kept to the byte; sinks never below 8 bits.
func TestPlan_Budgets(t *testing.T) {
	be := openCPU(t)
	src := synthetic(t, shape{4, 2, 1100, 64, 64, quant.Float16, true}, quanttest.Gaussian, nil)
	last := math.Inf(1)
	budgets := []float64{0.2, 0.5, 1, 1.3, 2, 3, 4.5, 9, 17}
	if testing.Short() {
		budgets = []float64{0.5, 2, 9}
	}
	for _, bits := range budgets {
		b, res := compress(t, src, be, config(t, fmt.Sprintf("bits=%g", bits)))
		budget := int64(bits * float64(res.Values) / 8)
		require.LessOrEqual(t, int64(len(b)), budget)
		require.LessOrEqual(t, res.Damage, last*(1+1e-12), "bits %g", bits)
		last = res.Damage
		records(t, b, func(rec *container.Record) {
			for _, h := range rec.Heads {
				for _, blk := range h.Blocks {
					if rec.Segment == 0 && slices.ContainsFunc(blk.Tokens,
						func(x uint16) bool { return x < 4 }) {
						require.GreaterOrEqual(t, blk.K.Format.Bits(), 8)
						require.GreaterOrEqual(t, blk.V.Format.Bits(), 8)
					}
				}
			}
		})
	}
}

// What is odd about an input gives a file or a typed error that says how much is needed.
func TestPlan_OddInputs(t *testing.T) {
	be := openCPU(t)
	fill := func(v float32) func(quant.Rows) {
		return func(k quant.Rows) {
			for i := range k.Data {
				k.Data[i] = v
			}
		}
	}
	for name, src := range map[string]*capture.Source{
		"no tokens": synthetic(t, shape{2, 1, 0, 64, 64, quant.Float16, true}, quanttest.Gaussian, nil),
		"one token": synthetic(t, shape{2, 1, 1, 64, 64, quant.Float16, true}, quanttest.Gaussian, nil),
		"fewer than sinks": synthetic(t, shape{2, 1, 3, 64, 64, quant.Float16, true},
			quanttest.Gaussian, nil),
		"all equal": synthetic(t, shape{2, 1, 300, 64, 64, quant.Float16, true}, quanttest.Gaussian,
			fill(1.5)),
		"all zero": synthetic(t, shape{2, 1, 300, 64, 64, quant.Float16, true}, quanttest.Gaussian,
			fill(0)),
	} {
		for _, bits := range []float64{0.001, 0.1, 2.5, 40} {
			cfg := config(t, fmt.Sprintf("bits=%g", bits))
			if src.Info().Tokens < 10 {
				cfg.Bits, cfg.Bytes = 0, int64(bits*1000) // a header alone takes more
			}
			var m bytes.Buffer
			res, err := kvfile.Compress(context.Background(), src, &m, kvfile.Options{Config: &cfg, Backend: be})
			if err != nil {
				require.ErrorIs(t, err, quant.ErrBudget, name)
				require.ErrorContains(t, err, "least possible", name)
				require.Less(t, bits, 3.0, name)
				continue
			}
			require.Equal(t, int64(m.Len()), res.Bytes)
			require.False(t, math.IsNaN(res.Predicted), name)
			decompress(t, m.Bytes())
		}
	}
}

// Explain finds the plan of the file, and its prices make sense.
func TestExplain(t *testing.T) {
	long(t)
	src, be := open(t, kvFile), openCPU(t)
	b, res := compress(t, src, be, config(t, "bits=1.5 levels=full+chunks+dropped"))
	r := reader(t, b)
	why, err := kvfile.Explain(context.Background(), r, src, kvfile.Options{Backend: be})
	require.NoError(t, err)
	require.Positive(t, why.Slope)
	require.InEpsilon(t, res.Damage, why.Predicted, 1e-9)
	tokens, wrong, prices := map[[3]int]int{}, 0, 0
	var damage float64
	for _, x := range why.Blocks {
		tokens[[3]int{x.Layer, x.Head, x.Segment}] += len(x.Tokens)
		for _, s := range x.Sides {
			damage += s.Damage
			for _, o := range s.Options {
				prices++
				if (o.Bytes < s.Bytes && o.Price < 1-1e-9) || (o.Bytes > s.Bytes && o.Price > 1+1e-9) {
					wrong++
				}
			}
		}
	}
	require.Len(t, tokens, 4*3*2)
	for at, n := range tokens {
		require.Equal(t, 512, n, "%v", at)
	}
	t.Logf("%d of %d prices on the wrong side of the plan's: those of the last bytes", wrong, prices)
	require.Less(t, wrong, 64)
	for _, p := range why.Parts {
		damage += p.Variants[p.Chosen].Levels
	}
	require.InEpsilon(t, why.Predicted, damage, 1e-9)

	rep, err := report.Build(context.Background(), r, nil)
	require.NoError(t, err)
	require.NoError(t, rep.AddWhy(why))
	for _, row := range rep.Map.Rows {
		require.Len(t, row.Weight, 1024)
		require.Positive(t, slices.Max(row.Weight))
	}
	why.Blocks[0].Layer = 9
	require.ErrorIs(t, rep.AddWhy(why), quant.ErrShape)
	weights := func(int, int) ([]float32, error) { return nil, nil }
	_, err = kvfile.Explain(context.Background(), r, src, kvfile.Options{Backend: be, Weights: weights})
	require.ErrorIs(t, err, quant.ErrShape)
}
