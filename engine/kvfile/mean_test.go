// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// shifted is cacheInMemory with a constant of rms times the rows' RMS in all rows of K.
func shifted(tokens int, rms float64) *kvfile.Memory {
	m := cacheInMemory(tokens)
	rng := rand.New(rand.NewPCG(3, 3))
	g := &m.Geometry
	for _, k := range m.K {
		for h := range g.KVHeads {
			for d := range g.HeadDim {
				c := float32(rms * rng.NormFloat64())
				for t := range tokens {
					k[(h*tokens+t)*g.HeadDim+d] += c
				}
			}
		}
	}
	return m
}

// packedError returns the relative squared error of attention over a cache that was packed, and the file.
func packedError(t *testing.T, m *kvfile.Memory, config string) (float64, []byte) {
	t.Helper()
	return packedErrorOf(t, m, config, func([]float32) {})
}

// packedErrorOf does with queries what edit makes of them, [n, head_dim].
func packedErrorOf(t *testing.T, m *kvfile.Memory, config string, edit func(q []float32)) (float64, []byte) {
	t.Helper()
	ctx := context.Background()
	cfg, err := kvfile.ParseConfig(config)
	require.NoError(t, err)
	var file bytes.Buffer
	_, err = m.Write(ctx, &file, kvfile.Options{Config: &cfg})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "x.kvist")
	require.NoError(t, os.WriteFile(path, file.Bytes(), 0o600))
	kv, err := kvfile.Open(path, kvfile.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, kv.Close()) }()
	q := make([]float32, 8*m.Geometry.Heads*m.Geometry.HeadDim)
	rng := rand.New(rand.NewPCG(5, 1))
	for i := range q {
		q[i] = float32(rng.NormFloat64())
	}
	edit(q)
	var e, ref float64
	for layer := range m.Geometry.Layers {
		want := exactAttention(m, layer, q)
		got := make([]float32, len(want))
		require.NoError(t, kv.Attend(ctx, layer, q, got))
		for i := range want {
			e, ref = e+(float64(got[i])-want[i])*(float64(got[i])-want[i]), ref+want[i]*want[i]
		}
	}
	return e / ref, file.Bytes()
}

// centered counts the blocks of a file whose K was coded without a mean, and the others that hold rows.
func centered(t *testing.T, b []byte) (with, without int) {
	records(t, b, func(rec *container.Record) {
		for hi := range rec.Heads {
			for _, b := range rec.Heads[hi].Blocks {
				switch {
				case b.Centered:
					with++
				case b.Level != quant.Dropped:
					without++
				}
			}
		}
	})
	return with, without
}

// A constant in all rows of K shifts all scores of a query alike, so that attention is what it was. Coded, it
// costs its own bytes and no precision.
func TestMean_ConstantInK(t *testing.T) {
	const tokens, fixed = 1024, "k=lm2+len+s8 v=lm2+len+s8"
	plain, file := packedError(t, shifted(tokens, 0), fixed)
	budget, _ := packedError(t, shifted(tokens, 0), "bits=2.25")
	n, _ := centered(t, file)
	require.Zero(t, n, "nothing in common")
	for _, rms := range []float64{1, 4, 16} {
		m := shifted(tokens, rms)
		e, with := packedError(t, m, fixed)
		require.InEpsilon(t, plain, e, 0.1, "%g RMS", rms)
		require.Less(t, float64(len(with)), 1.02*float64(len(file)), "%g RMS", rms)
		n, _ := centered(t, with)
		require.NotZero(t, n)
		b, with := packedError(t, m, "bits=2.25")
		require.Less(t, b, 1.2*budget, "%g RMS", rms)
		require.LessOrEqual(t, quant.BitsPerValue(int64(len(with)), 2*tokens*2*(32+16)), 2.25)
		bad, off := packedError(t, m, fixed+" mean=false")
		n, _ = centered(t, off)
		require.Zero(t, n, "turned off")
		t.Logf("%g RMS: %.4f of %.4f with, %.4f without; by budget %.4f of %.4f", rms, e, plain, bad, b, budget)
		require.Greater(t, bad, e, "the mean is what makes the difference")
	}
}

// Decompressed rows are those that the blocks stand for: attention over them is that over the blocks.
func TestMean_Decompress(t *testing.T) {
	const tokens = 700
	m := shifted(tokens, 4)
	g := &m.Geometry
	_, file := packedError(t, m, "bits=2.5 row-bias=false levels=full")
	n, _ := centered(t, file)
	require.NotZero(t, n)
	src := decompress(t, file)
	r := reader(t, file)
	for layer := range g.Layers {
		k := raw(t, src, "layers."+string(rune('0'+layer))+".k")
		for seg := range int(r.Header().Segments(layer)) {
			at, _ := r.Find(layer, seg)
			rec, err := r.ReadRecord(at)
			require.NoError(t, err)
			for hi, head := range rec.Heads {
				for _, b := range head.Blocks {
					x := quant.Rows{Dim: g.HeadDim, Data: make([]float32, b.Rows()*g.HeadDim)}
					require.NoError(t, quant.Decode(x, b.K, b.KData, r.Header().Seed))
					if b.Centered {
						require.NoError(t, frame.Uncenter(x, x, head.MeanK, nil))
					}
					for i, tok := range b.Tokens {
						row := (hi*tokens + seg*r.Header().SegmentTokens + int(tok)) * g.HeadDim
						for d, v := range x.Row(i) {
							at := 4 * (row + d)
							bits := uint32(k[at]) | uint32(k[at+1])<<8 | uint32(k[at+2])<<16 | uint32(k[at+3])<<24
							require.Equal(t, v, math.Float32frombits(bits))
						}
					}
				}
			}
		}
	}
}

// A few rows of another kind, as late sinks are, are no part of the mean and are coded finely as they are.
func TestMean_LateSinks(t *testing.T) {
	const tokens = 512
	m := shifted(tokens, 4)
	g := &m.Geometry
	late := map[uint16]bool{100: true, 101: true, 400: true}
	for _, k := range m.K {
		for h := range g.KVHeads {
			for tok := range late {
				row := k[(h*tokens+int(tok))*g.HeadDim:][:g.HeadDim]
				for d := range row {
					row[d] = -row[d] / 4
				}
			}
		}
	}
	_, file := packedError(t, m, "bits=2.25")
	records(t, file, func(rec *container.Record) {
		for _, h := range rec.Heads {
			for _, b := range h.Blocks {
				for _, tok := range b.Tokens {
					if late[tok] {
						require.False(t, b.Centered, "token %d", tok)
						require.GreaterOrEqual(t, b.K.Format.Bits(), 4, "token %d", tok)
					}
				}
			}
			require.True(t, h.Centered())
		}
	})
}
