// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// family is a context to test methods with.
type family struct {
	name   string
	c      *Context
	future *future
}

// realFamily returns the capture of a real model, with the first later tokens after it.
func realFamily(t testing.TB, later int) family {
	t.Helper()
	src, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	c, next, err := loadCapture(src)
	require.NoError(t, err)
	for i, l := range next.Layers {
		next.Layers[i] = sliceTokens(l, 256, 64, 0, later)
	}
	f, err := newFuture(c, next)
	require.NoError(t, err)
	return family{"smollm2", c, f}
}

func syntheticFamily(t testing.TB, o syntheticOptions) family {
	t.Helper()
	c, next, err := synthetic(o)
	require.NoError(t, err)
	f, err := newFuture(c, next)
	require.NoError(t, err)
	return family{"synthetic", c, f}
}

func smallFamily(t testing.TB) family {
	return syntheticFamily(t, syntheticOptions{Layers: 3, KVHeads: 2, GQA: 2, HeadDim: 64,
		Tokens: 160, Next: 24, Seed: 7})
}

func compress(t testing.TB, m Method, c *Context) *Cache {
	t.Helper()
	cache, err := m.Compress(context.Background(), c)
	require.NoError(t, err, m.Name())
	return cache
}

func method(t testing.TB, name string) Method {
	t.Helper()
	m, err := ByName(name)
	require.NoError(t, err)
	return m
}

func (f family) bits(cache *Cache) float64 {
	return quant.BitsPerValue(cache.Bytes, f.future.values(len(f.c.Layers)))
}

func (f family) error(t testing.TB, cache *Cache) float64 {
	t.Helper()
	e, err := f.future.Error(context.Background(), cache)
	require.NoError(t, err)
	return e
}

// TestBaseline_Table runs every standard method over both families, logs the table, and checks
// what holds for any cache.
func TestBaseline_Table(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	small := syntheticOptions{Layers: 2, KVHeads: 1, Tokens: 768, Next: 64}
	families := []family{realFamily(t, 64), syntheticFamily(t, small)}
	errs := map[string][]float64{}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "method\tbits/value\tsmollm2\tbits/value\tsynthetic\t")
	for _, m := range All() {
		fmt.Fprintf(w, "%s\t", m.Name())
		for _, f := range families {
			cache := compress(t, m, f.c)
			e, bits := f.error(t, cache), f.bits(cache)
			fmt.Fprintf(w, "%.3f\t%.5f\t", bits, e)
			errs[m.Name()] = append(errs[m.Name()], e)
			require.False(t, math.IsNaN(e) || math.IsInf(e, 0), m.Name())
			require.Greater(t, bits, 0.0)
			require.LessOrEqual(t, bits, 16.0)
		}
		fmt.Fprintln(w)
	}
	require.NoError(t, w.Flush())
	t.Logf("future-attention error\n%s", table.String())
	for i, f := range families {
		descending := func(names ...string) {
			for k := 1; k < len(names); k++ {
				require.Less(t, errs[names[k-1]][i], errs[names[k]][i], "%s: %s against %s",
					f.name, names[k-1], names[k])
			}
		}
		descending("f16", "ggml-q8_0", "ggml-q4_0")
		descending("ggml-q8_0", "fp8")
		descending("kivi4", "kivi3", "kivi2")
		descending("gear4", "gear2")
		descending("gear2", "kivi2")
		descending("tqmse4", "tqmse3", "tqmse2")
		descending("tqprod4", "tqprod3", "tqprod2")
		descending("snapkv:50%", "snapkv:25%", "snapkv:12.5%", "snapkv:6.25%")
		descending("kvist:4.25", "kvist:3.25", "kvist:2.75", "kvist:2.25", "kvist:1.75",
			"kvist:1.5")
		require.Less(t, errs["f16"][i], 1e-6)
	}
}

func TestBaseline_Bytes(t *testing.T) {
	f := smallFamily(t)
	// 3 layers, 2 KV heads, 160 tokens, 64 values a row: 6 heads of 160 rows, 10,240 values.
	const heads, rows, dim, n = 6, 160, 64, 160 * 64
	for name, want := range map[string]int64{
		"f16":       heads * 2 * 2 * n,
		"ggml-q8_0": heads * 2 * n / 32 * 34,
		"ggml-q4_0": heads * 2 * n / 32 * 18,
		"fp8":       heads * 2 * (n + 2),
		"kivi2":     heads * 2 * (n*2/8 + n/32*4),
		"kivi3":     heads * 2 * (n*3/8 + n/32*4),
		"kivi4":     heads * 2 * (n*4/8 + n/32*4),
		// 40 exact tokens; 120 tokens of K are four groups a channel, the last of 24.
		"kivi2:window=40": heads * (2*2*40*dim + 2*120*dim*2/8 + 4*dim*4 + 120*2*4),
		"tqmse3":          heads * 2 * (n*3/8 + rows*2),
		"tqmse3:sinks=4":  heads * 2 * ((n-4*dim)*3/8 + (rows-4)*2 + 4*dim*2),
		"tqprod3":         heads * ((n*2/8 + rows*2) + (n/8 + rows*2) + (n*3/8 + rows*2)),
		"lm2+len+s8":      heads * 2 * (n*2/8 + rows + 4),
		// Groups of 64: K three a channel, V one a token. Rank 4. Outliers: 1 % of 160 tokens
		// rounds up to 2 at either end of a channel of K, of 128 values to 2 of a token of V.
		"gear2": heads*2*n*2/8 + heads*(3*dim*4+rows*4) + heads*2*2*(rows+dim)*4 +
			heads*dim*4*4 + 3*rows*4*4,
		"snapkv:25%":       heads * 40 * 2 * dim * 2,
		"h2o:25%":          heads * 40 * 2 * dim * 2,
		"sinks-recent:25%": heads * 40 * 2 * dim * 2,
		"expected:25%":     heads * 40 * 2 * dim * 2,
		"pyramidkv:25%":    heads * 40 * 2 * dim * 2,
		"adakv:25%":        heads * (40*2*dim*2 + 4),
		"kvzip:25%":        heads * (40*2*dim*2 + 4),
		"ems:25%":          heads * 40 * (2*dim*2 + 2),
	} {
		require.Equal(t, want, compress(t, method(t, name), f.c).Bytes, name)
	}
	m := Kvist{Config: kvfile.DefaultConfig()}
	m.Config.Bits = 3
	got := compress(t, m, f.c).Bytes
	require.LessOrEqual(t, got, int64(heads*2*n*3/8))
	require.Greater(t, got, int64(heads*2*n*3/8*98/100))
}

func TestBaseline_BitsOfPapers(t *testing.T) {
	c, _, err := synthetic(syntheticOptions{Layers: 1, KVHeads: 1, GQA: 1, Tokens: 64, Next: 1})
	require.NoError(t, err)
	for name, want := range map[string]float64{
		"kivi2": 3, "kivi4": 5, "ggml-q8_0": 8.5, "ggml-q4_0": 4.5, "tqmse3": 3.125,
	} {
		cache := compress(t, method(t, name), c)
		require.InDelta(t, want, quant.BitsPerValue(cache.Bytes, 2*64*128), 1e-9, name)
	}
}

func TestBaseline_SinksAndWindow(t *testing.T) {
	f := smallFamily(t)
	check := func(name string, exact func(tok int) bool) {
		cache := compress(t, method(t, name), f.c)
		differ := 0
		for i, l := range cache.Layers {
			for h := range f.future.kvHeads {
				k, v := f.future.k(l.K, h), f.future.v(l.V, h)
				k0, v0 := f.future.k(f.c.Layers[i].K, h), f.future.v(f.c.Layers[i].V, h)
				for tok := range k.Len() {
					if exact(tok) {
						require.Equal(t, k0.Row(tok), k.Row(tok), "%s: token %d", name, tok)
						require.Equal(t, v0.Row(tok), v.Row(tok), "%s: token %d", name, tok)
					} else if !slices.Equal(k0.Row(tok), k.Row(tok)) {
						differ++
					}
				}
			}
		}
		require.Greater(t, differ, 100, name)
	}
	check("tqmse2:sinks=4", func(tok int) bool { return tok < 4 })
	check("uniform:k=lm3+len+s8,v=lm2+len+s8,sinks=5", func(tok int) bool { return tok < 5 })
	check("kivi2:window=33", func(tok int) bool { return tok >= 160-33 })
}

// TestBaseline_Contract tests what Method promises: the context does not change, the same call gives
// the same bits, shapes fit, numbers are finite, and the name of a method is a name of it.
func TestBaseline_Contract(t *testing.T) {
	f := smallFamily(t)
	before := f.c.clone()
	// The same context with other values behind it in memory, which a method must not read.
	other := f.c.clone()
	for i := range other.Layers {
		l := &other.Layers[i]
		for _, x := range []*[]float32{&l.K, &l.V, &l.Q} {
			n := len(*x)
			*x = append(*x, slices.Repeat([]float32{float32(math.NaN())}, n)...)[:n]
		}
	}
	for _, m := range All() {
		a, b := compress(t, m, f.c), compress(t, m, other)
		require.True(t, reflect.DeepEqual(a, b), "%s: not the same twice", m.Name())
		require.True(t, reflect.DeepEqual(before, f.c), "%s changed the context", m.Name())
		require.NotEmpty(t, m.Source(), m.Name())
		rows := f.future.kvHeads * f.future.tokens
		for _, l := range a.Layers {
			require.Len(t, l.K, rows*64)
			require.Len(t, l.V, rows*64)
			require.Contains(t, []int{0, rows}, len(l.Keep))
			require.Contains(t, []int{0, rows}, len(l.Bias))
			for _, x := range [][]float32{l.K, l.V, l.Bias} {
				for _, v := range x {
					if v-v != 0 {
						t.Fatalf("%s: value %g", m.Name(), v)
					}
				}
			}
		}
		again := method(t, m.Name())
		require.Equal(t, m, again, m.Name())
		require.Equal(t, m.Name(), again.Name())
	}
}

func (c *Context) clone() *Context {
	d := *c
	d.Tokens, d.Layers = slices.Clone(c.Tokens), nil
	for _, l := range c.Layers {
		d.Layers = append(d.Layers, Layer{slices.Clone(l.K), slices.Clone(l.V), slices.Clone(l.Q)})
	}
	return &d
}

func TestBaseline_Refusals(t *testing.T) {
	good := smallFamily(t).c
	ctx := context.Background()
	for name, spoil := range map[string]func(c *Context){
		"no layers":    func(c *Context) { c.Layers = nil },
		"no tokens":    func(c *Context) { c.Layers[0].K = nil },
		"short K":      func(c *Context) { c.Layers[1].K = c.Layers[1].K[1:] },
		"short V":      func(c *Context) { c.Layers[2].V = c.Layers[2].V[:10] },
		"short Q":      func(c *Context) { c.Layers[2].Q = c.Layers[2].Q[:10] },
		"token count":  func(c *Context) { c.Tokens = c.Tokens[1:] },
		"bad geometry": func(c *Context) { c.Geometry.KVHeads = 3 },
	} {
		for _, m := range All() {
			c := good.clone()
			spoil(c)
			_, err := m.Compress(ctx, c)
			require.ErrorIs(t, err, quant.ErrShape, "%s: %s", m.Name(), name)
		}
	}
	for _, m := range All() {
		_, err := m.Compress(ctx, nil)
		require.ErrorIs(t, err, quant.ErrShape, m.Name())
		c := good.clone()
		for i := range c.Layers {
			c.Layers[i].Q = nil
		}
		_, err = m.Compress(ctx, c)
		if e, ok := m.(Eviction); ok && e.Policy != SinksRecent {
			require.ErrorIs(t, err, quant.ErrShape, m.Name())
		} else {
			require.NoError(t, err, m.Name())
		}
		if _, ok := m.(Eviction); ok {
			continue // it may well drop the row
		}
		if u, ok := m.(Uniform); ok && u.K.Format.Exact() {
			continue // keeps any bits
		}
		for _, x := range []float32{float32(math.NaN()), float32(math.Inf(-1))} {
			c := good.clone()
			c.Layers[1].V[77*64+5] = x
			_, err := m.Compress(ctx, c)
			require.ErrorIs(t, err, quant.ErrRange, "%s: %g", m.Name(), x)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	for _, m := range All() {
		_, err := m.Compress(done, good)
		require.ErrorIs(t, err, context.Canceled, m.Name())
	}
}
