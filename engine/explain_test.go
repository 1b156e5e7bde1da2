// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestExplain_CountsEveryToken(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 250, 250)
	for l := range r.geo.Layers {
		for h := range r.geo.KVHeads {
			all, err := s.Explain(l, h)
			require.NoError(t, err)
			rows, states := 0, map[string]int{}
			for _, b := range all {
				rows += b.Rows
				states[b.State] += b.Rows
				require.Equal(t, "f16", b.K)
				require.NotZero(t, b.Bytes)
				require.Equal(t, b.State == "sorted", b.PriceK > 0)
			}
			require.Equal(t, 250, rows)
			// Pages of 32 from token 4 on leave at 31 + 32 tokens behind: 6 of them, 3 segments of 2.
			require.Equal(t, map[string]int{"sinks": 4, "sorted": 192, "exact": 54}, states)
		}
	}
	_, err = s.Explain(2, 0)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = s.Explain(0, -1)
	require.ErrorIs(t, err, quant.ErrShape)
	r.closeAll()
}

// What Tokens says of each token adds up to what Explain says of the blocks.
func TestTokens_AgreeWithBlocks(t *testing.T) {
	cfg := testConfig()
	cfg.LayerWindow = []int{0, 96}
	r := newRig(t, testGeometry(), cfg)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 250, 250)
	info, err := s.Tokens(nil)
	require.NoError(t, err)
	require.Len(t, info, 250)
	for i, x := range info {
		require.Equal(t, TokenInfo{Bits: 16, Kept: 1, Weight: x.Weight}, x, i)
	}
	require.NoError(t, s.Demote(0.6))
	info, err = s.Tokens(info)
	require.NoError(t, err)
	var rows, kept float64
	for h := range r.geo.KVHeads { // layer 0 sees every token
		all, err := s.Explain(0, h)
		require.NoError(t, err)
		for _, b := range all {
			rows += float64(b.Rows)
		}
	}
	for _, x := range info[:120] { // which the window of layer 1 has passed
		kept += float64(x.Kept) * float64(r.geo.KVHeads)
		require.Less(t, x.Bits, float32(16.5))
		require.True(t, (x.Bits == 0) == (x.Kept == 0))
	}
	require.LessOrEqual(t, kept, rows)
	require.Less(t, info[100].Bits, float32(16))
	require.Equal(t, float32(16), info[249].Bits)
	require.Equal(t, s.rowBytes(), s.Bytes())
	st, err := r.c.Begin(t.Context(), []Row{{Seq: s, Tokens: 1}})
	require.NoError(t, err)
	_, err = s.Tokens(nil)
	require.ErrorIs(t, err, quant.ErrShape)
	require.NoError(t, st.Rollback())
	r.closeAll()
}

// A hint frees what it says in its own sequence; a pinned one keeps every byte.
func TestDemoteAndPin(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	a, err := r.c.NewSequence()
	require.NoError(t, err)
	b, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(a, 1, 500, 500)
	r.step(b, 2, 500, 500)
	other, had := r.state(b), a.rowBytes()
	require.ErrorIs(t, a.Demote(2), quant.ErrShape)
	require.NoError(t, a.Demote(0))
	require.Equal(t, had, a.rowBytes())
	require.NoError(t, a.Demote(0.5))
	r.audit()
	require.InDelta(t, 0.5, float64(a.rowBytes())/float64(had), 0.05)
	require.True(t, bytes.Equal(other, r.state(b)))
	require.NoError(t, b.Pin(true))
	require.NoError(t, b.Pin(true))
	require.NoError(t, b.Demote(1))
	require.True(t, bytes.Equal(other, r.state(b)))
	r.step(b, 2, 100, 100)
	require.NoError(t, b.Truncate(520))
	r.audit()
	require.NoError(t, b.Pin(false))
	for _, g := range b.segs {
		require.Zero(t, g.pinned)
	}
	require.NoError(t, b.Demote(0.5))
	require.NoError(t, a.Demote(1))
	require.Less(t, a.rowBytes(), had/4)
	r.step(a, 1, 3, 3)
	r.audit()
	r.closeAll()
}
