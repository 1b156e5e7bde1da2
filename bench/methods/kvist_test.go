// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

// TestKvist_AgreesWithCompare compares the error of this package, of rows that went through a file,
// with that of kvfile.Compare on packed rows.
func TestKvist_AgreesWithCompare(t *testing.T) {
	if testing.Short() {
		t.Skip("compresses a real capture twice")
	}
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, be.Close()) }()
	src, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	m, err := NewKvist("k=lm3+len+s8 v=lm2+s8 row-bias=false")
	require.NoError(t, err)
	m.Backend = be

	var file bytes.Buffer
	_, err = kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &m.Config, Backend: be})
	require.NoError(t, err)
	size := int64(file.Len())
	r, err := container.Open("f", bytes.NewReader(file.Bytes()), size, container.Limits{})
	require.NoError(t, err)
	cmp, err := report.Compare(context.Background(), r, src, report.Options{Backend: be})
	require.NoError(t, err)

	f := realFamily(t, 256)
	cache := compress(t, m, f.c)
	layers, err := f.future.Layers(context.Background(), cache)
	require.NoError(t, err)
	for i, l := range cmp.Layers {
		require.InEpsilon(t, l.FutureError, layers[i], 0.01, l.Name)
	}
	require.InEpsilon(t, cmp.FutureError, f.error(t, cache), 0.01)
	// The same payload; the capture in testdata has more side tensors and metadata.
	require.Less(t, cache.Bytes, int64(file.Len()))
	require.Greater(t, cache.Bytes, int64(file.Len())-16<<10)
}

func TestKvist_Budget(t *testing.T) {
	f := smallFamily(t)
	for _, bits := range []string{"2", "3", "5"} {
		m := method(t, "kvist:"+bits)
		cache := compress(t, m, f.c)
		want := m.(Kvist).Config.Bits
		require.LessOrEqual(t, f.bits(cache), want)
		require.Greater(t, f.bits(cache), 0.97*want)
	}
	_, err := method(t, "kvist:0.1").Compress(context.Background(), f.c)
	require.ErrorIs(t, err, quant.ErrBudget)
}

func TestKvist_RowBias(t *testing.T) {
	f := smallFamily(t)
	with := compress(t, method(t, "kvist:k=lm2+len+s8,v=lm4"), f.c)
	without := compress(t, method(t, "kvist:k=lm2+len+s8,v=lm4,row-bias=false"), f.c)
	negative := 0
	for i := range with.Layers {
		require.Nil(t, without.Layers[i].Bias)
		require.Equal(t, without.Layers[i].K, with.Layers[i].K)
		for _, b := range with.Layers[i].Bias {
			require.LessOrEqual(t, b, float32(0))
			if b < 0 {
				negative++
			}
		}
	}
	require.Equal(t, 3*2*(160-4), negative, "all rows but the sinks")
}

// Random weights move bytes between tokens, in the same way each time.
func TestKvist_RandomWeights(t *testing.T) {
	f := smallFamily(t)
	random := compress(t, method(t, "kvist:2.5,weights=random"), f.c)
	require.Equal(t, random, compress(t, method(t, "kvist:2.5,weights=random"), f.c))
	require.NotEqual(t, random.Layers, compress(t, method(t, "kvist:2.5,importance=none"), f.c).Layers)
	w := randomWeights(4096)
	a, err := w(0, 0)
	require.NoError(t, err)
	b, err := w(0, 1)
	require.NoError(t, err)
	require.NotEqual(t, a, b)
}

// TestKvist_Weights gives a few tokens most of the weight. Their errors must shrink.
func TestKvist_Weights(t *testing.T) {
	f := smallFamily(t)
	m, err := NewKvist("bits=3")
	require.NoError(t, err)
	m.Label = "tokens 40-71"
	m.Weights = func(c *Context) (kvfile.Weights, error) {
		require.Same(t, f.c, c)
		return func(layer, kvHead int) ([]float32, error) {
			w := make([]float32, 160)
			for i := range w {
				w[i] = 0.01
				if i >= 40 && i < 72 {
					w[i] = 1
				}
			}
			return w, nil
		}, nil
	}
	require.Equal(t, "kvist:3 tokens 40-71", m.Name())
	errorOf := func(m Kvist) float64 {
		cache := compress(t, m, f.c)
		var e, all float64
		for i := range cache.Layers {
			for h := range 2 {
				for tok := 40; tok < 72; tok++ {
					a := f.future.v(f.c.Layers[i].V, h).Row(tok)
					b := f.future.v(cache.Layers[i].V, h).Row(tok)
					for c := range a {
						e += float64(a[c]-b[c]) * float64(a[c]-b[c])
						all += float64(a[c]) * float64(a[c])
					}
				}
			}
		}
		return e / all
	}
	plain := m
	plain.Weights, plain.Label = nil, ""
	require.Less(t, errorOf(m), 0.5*errorOf(plain))

	m.Weights = func(*Context) (kvfile.Weights, error) {
		return func(int, int) ([]float32, error) { return []float32{1}, nil }, nil
	}
	_, err = m.Compress(context.Background(), f.c)
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestMemory(t *testing.T) {
	var m memory
	for _, w := range []struct {
		off  int64
		data string
	}{{6, "def"}, {0, "xyz"}, {3, "abc"}, {0, "012"}} {
		n, err := m.WriteAt([]byte(w.data), w.off)
		require.NoError(t, err)
		require.Equal(t, 3, n)
	}
	require.Equal(t, "012abcdef", string(m.data))
	b := make([]byte, 4)
	n, err := m.ReadAt(b, 7)
	require.Equal(t, 2, n)
	require.Error(t, err)
	_, err = m.ReadAt(b, 99)
	require.Error(t, err)
}
