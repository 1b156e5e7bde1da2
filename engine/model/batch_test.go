// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// apart is a BatchKV that holds each part in an exact cache of its own.
type apart struct {
	g     quant.Geometry
	parts []model.Part
	kv    []*model.ExactKV
}

// each calls f with the rows of every part: K and V of the KV heads, or q and out of all heads.
func (a apart) each(k, v []float32, heads int, f func(i, pos, n int, k, v []float32) error) error {
	at := 0
	for i, p := range a.parts {
		lo, hi := at*heads, (at+len(p.Tokens))*heads
		if err := f(i, p.Pos, len(p.Tokens), k[lo*a.g.HeadDim:hi*a.g.HeadDim], v[lo*a.g.HeadDimV:hi*a.g.HeadDimV]); err != nil {
			return err
		}
		at += len(p.Tokens)
	}
	return nil
}

func (a apart) Append(layer int, k, v []float32) error {
	return a.each(k, v, a.g.KVHeads, func(i, pos, n int, k, v []float32) error {
		return a.kv[i].Append(layer, pos, k, v, n)
	})
}

func (a apart) Attend(layer int, q, out []float32) error {
	return a.each(q, out, a.g.Heads, func(i, pos, n int, q, out []float32) error {
		return a.kv[i].Attend(layer, pos, q, n, out)
	})
}

// A batch of sequences of different lengths gives each what it gets alone.
func TestForwardBatch_EachAsAlone(t *testing.T) {
	b := newTiny(5)
	b.fill(false, gguf.TensorF32)
	m := b.load(t, model.Options{})
	a, want := apart{g: m.Geometry()}, make([][]float32, 4)
	for i, n := range []int{0, 3, 40, 17} {
		kv, err := m.NewKV(model.KVOptions{})
		require.NoError(t, err)
		if n > 0 {
			_, err = m.Forward(b.tokens(n), kv, 0, model.ForwardOptions{Logits: model.LogitsNone})
			require.NoError(t, err)
		}
		p := model.Part{Tokens: b.tokens([]int{20, 1, 1, 7}[i]), Pos: n, Logits: i != 2}
		a.kv, a.parts = append(a.kv, kv), append(a.parts, p)
		want[i], err = m.Forward(p.Tokens, kv.Clone(), n, model.ForwardOptions{})
		require.NoError(t, err)
	}
	var got []int
	require.NoError(t, m.ForwardBatch(a.parts, a, func(i int, logits []float32) error {
		got = append(got, i)
		for j := range logits {
			require.InDelta(t, want[i][j], logits[j], 1e-4)
		}
		return nil
	}))
	require.Equal(t, []int{0, 1, 3}, got)
}

func TestForwardBatch_Refusals(t *testing.T) {
	b := newTiny(5)
	b.fill(false, gguf.TensorF32)
	m := b.load(t, model.Options{})
	for _, c := range []struct {
		parts []model.Part
		want  error
	}{
		{nil, quant.ErrShape},
		{[]model.Part{{}}, quant.ErrShape},
		{[]model.Part{{Tokens: []int32{1}, Pos: -1}}, quant.ErrShape},
		{[]model.Part{{Tokens: []int32{48}}}, quant.ErrShape},
		{[]model.Part{{Tokens: []int32{1}, Pos: 512}}, quant.ErrTooLarge},
		{[]model.Part{{Tokens: make([]int32, 4000)}, {Tokens: make([]int32, 97)}}, quant.ErrTooLarge},
	} {
		err := m.ForwardBatch(c.parts, apart{}, func(int, []float32) error { return nil })
		require.ErrorIs(t, err, c.want)
	}
}
