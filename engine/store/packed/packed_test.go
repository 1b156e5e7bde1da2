// SPDX-License-Identifier: Apache-2.0

package packed_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/engine/store/packed"
	"github.com/kvist-project/kvist/quant"
)

// normal returns numbers in bfloat16 whose channels differ in size.
func normal(rng *rand.Rand, n, channels int) []byte {
	p := make([]byte, 0, 2*n)
	for i := range n {
		v := rng.NormFloat64() * math.Exp2(float64(i%channels*7%11))
		p = binary.LittleEndian.AppendUint16(p, uint16(math.Float32bits(float32(v))>>16))
	}
	return p
}

func inputs() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 50001)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	rare := make([]byte, 1<<20) // one symbol is nearly all, many are rare
	for i := range 200 {
		rare[1+2*i*2000] = byte(i)
	}
	all := make([]byte, 1<<17) // every symbol is there
	for i := range all {
		all[i] = byte(i >> 1)
	}
	return map[string][]byte{"empty": nil, "one": {1}, "text": []byte("a few words"), "random": random, "zeros": make([]byte, 9999), "rare": rare,
		"all": all, "normal": normal(rng, 30000, 64), "odd": append(normal(rng, 3000, 128), 7), "few": normal(rng, 1024, 1)}
}

func TestRoundTrip(t *testing.T) {
	for name, src := range inputs() {
		p := packed.Pack(src)
		require.LessOrEqual(t, len(p), len(src)+24, name)
		n, err := packed.Size(p)
		require.NoError(t, err)
		require.EqualValues(t, len(src), n)
		got, err := packed.Unpack(p, n)
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(src, got), name)
		if n > 0 {
			_, err = packed.Unpack(p, n-1)
			require.ErrorIs(t, err, quant.ErrTooLarge)
		}
	}
	x := inputs()
	require.Greater(t, ratio(x["normal"]), 1.4)
	require.Greater(t, ratio(x["rare"]), 1.9)
}

func ratio(src []byte) float64 { return float64(len(src)) / float64(len(packed.Pack(src))) }

// Damage is found, whatever it hits.
func TestDamage(t *testing.T) {
	src := normal(rand.New(rand.NewPCG(3, 4)), 2000, 64)
	p := packed.Pack(src)
	require.Less(t, len(p), len(src))
	check := func(q []byte) {
		got, err := packed.Unpack(q, 1<<20)
		if err == nil {
			require.Equal(t, src, got)
			return
		}
		require.True(t, errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrVersion) || errors.Is(err, quant.ErrTooLarge), "%v", err)
	}
	for i := range p {
		q := bytes.Clone(p)
		q[i] ^= 1 << (i % 8)
		check(q)
		check(p[:i])
	}
	check(append(bytes.Clone(p), 0))
}

func FuzzUnpack(f *testing.F) {
	for _, src := range inputs() {
		if len(src) < 1<<14 {
			f.Add(packed.Pack(src))
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		got, err := packed.Unpack(p, 1<<16)
		if err == nil {
			n, err := packed.Size(p)
			require.NoError(t, err)
			require.EqualValues(t, n, len(got))
			return
		}
		require.True(t, errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrVersion) || errors.Is(err, quant.ErrTooLarge), "%v", err)
	})
}

// capture is a store of a model that keeps K and V.
type capture struct {
	model.KVStore
	k, v [][]byte
}

func (c *capture) Append(layer, pos int, k, v []float32, n int) error {
	for len(c.k) <= layer {
		c.k, c.v = append(c.k, nil), append(c.v, nil)
	}
	c.k[layer], c.v[layer] = appendBF16(c.k[layer], k), appendBF16(c.v[layer], v)
	return c.KVStore.Append(layer, pos, k, v, n)
}

func appendBF16(p []byte, x []float32) []byte {
	for _, v := range x {
		b := math.Float32bits(v)
		p = binary.LittleEndian.AppendUint16(p, uint16((b+0x7fff+b>>16&1)>>16)) // to the nearest, ties to even
	}
	return p
}

// values returns K and V of 256 tokens of a text in bfloat16, [2, layers, tokens, heads * head_dim].
func values(t testing.TB, m *model.Model) []byte {
	text, err := os.ReadFile("../../../bench/quality/texts/eval-encyclopedia.txt")
	require.NoError(t, err)
	tokens, err := m.Tokenizer().Encode(string(text), true)
	require.NoError(t, err)
	exact, err := m.NewKV(model.KVOptions{})
	require.NoError(t, err)
	c := &capture{KVStore: exact}
	_, err = m.Forward(tokens[:256], c, 0, model.ForwardOptions{Logits: model.LogitsLast})
	require.NoError(t, err)
	return append(bytes.Join(c.k, nil), bytes.Join(c.v, nil)...)
}

func TestRatio_Models(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *model.Model{"SmolLM2": modeltest.SmolLM2, "Gemma": modeltest.Gemma} {
		t.Run(name, func(t *testing.T) {
			src := values(t, open(t))
			got, err := packed.Unpack(packed.Pack(src), int64(len(src)))
			require.NoError(t, err)
			require.True(t, bytes.Equal(src, got))
			t.Logf("%s: %d bytes of bf16 K and V, %.3f times smaller", name, len(src), ratio(src))
			require.Greater(t, ratio(src), 1.35)
		})
	}
}

func BenchmarkPack(b *testing.B) {
	src := normal(rand.New(rand.NewPCG(3, 4)), 1<<21, 192)
	p := packed.Pack(src)
	b.Run("pack", func(b *testing.B) {
		b.SetBytes(int64(len(src)))
		for b.Loop() {
			packed.Pack(src)
		}
	})
	b.Run("unpack", func(b *testing.B) {
		b.SetBytes(int64(len(src)))
		for b.Loop() {
			if _, err := packed.Unpack(p, 1<<30); err != nil {
				b.Fatal(err)
			}
		}
	})
}
