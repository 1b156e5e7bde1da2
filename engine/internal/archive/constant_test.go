// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// withConstant adds a constant of so many RMS to the rows of K of head 1, and returns it.
func withConstant(seg *Segment, rms float32) []float32 {
	rng := rand.New(rand.NewPCG(3, 3))
	c := make([]float32, 16)
	for i := range c {
		c[i] = rms * float32(rng.NormFloat64())
	}
	for i := range seg.Rows[2] {
		seg.Rows[2][i] += c[i%16]
	}
	return c
}

// A constant in K is stored once, in the lane that has it, comes back within a step, and stays when streams go.
func TestConstant_ComesBack(t *testing.T) {
	for _, chunks := range []int{1, 4} {
		c, seg := cache(t, 200, chunks)
		for _, r := range seg.Rows { // none that stands apart
			for i, v := range r {
				r[i] = min(max(v, -3), 3)
			}
		}
		plain := encode(t, c, seg)
		require.EqualValues(t, modeTransform, plain[0])
		shifted := clone(seg)
		withConstant(shifted, 50)
		b := encode(t, c, shifted)
		require.EqualValues(t, modeConstants, b[0])
		require.Less(t, len(b), len(plain)+4+4+32+64)
		had, got := decode(t, c, seg, plain), decode(t, c, shifted, b)
		for lane := range had {
			var before, after float64
			for i, v := range had[lane] {
				e, f := float64(v-seg.Rows[lane][i]), float64(got[lane][i]-shifted.Rows[lane][i])
				before, after = before+e*e, after+f*f
			}
			require.InEpsilon(t, before, after, 0.2, "lane %d", lane)
		}
		s, err := Streams(b, 4)
		require.NoError(t, err)
		cut, err := Truncate(nil, b, all(s, 0))
		require.NoError(t, err)
		require.Equal(t, b[:4+4+32], cut[:4+4+32])
		_, err = Truncate(nil, cut, &Keep{Lanes: make([]bool, 4)})
		require.NoError(t, err)
	}
}

// A few rows, and rows whose embedding turns what they share, have no constant.
func TestConstant_OnlyWhereItPays(t *testing.T) {
	c, few := cache(t, fewestRows-1, 1)
	withConstant(few, 50)
	require.EqualValues(t, modeTransform, encode(t, c, few)[0])
	c, seg := cache(t, 200, 1)
	rope := c.Ropes.Of(3)
	shared := clone(seg)
	rope.Undo(shared.Rows[2], 16, seg.Pos)
	withConstant(shared, 50)
	rope.Redo(shared.Rows[2], 16, seg.Pos)
	turned := slices.Clone(shared.Rows[2])
	c.turns.Of(3).UndoWithout(turned, 16, seg.Pos)
	require.InDelta(t, 50, math.Sqrt(energyOf(columns(turned, 16))/16), 25, "a mean before the embedding stays in the rows")
}

func energyOf(x []float64) (sum float64) {
	for _, v := range x {
		sum += v * v
	}
	return sum
}

// Damage to constants is told from payloads without.
func TestConstant_Corrupt(t *testing.T) {
	c, seg := cache(t, 100, 2)
	withConstant(seg, 1e4)
	good := encode(t, c, seg)
	require.EqualValues(t, modeConstants, good[0])
	for name, edit := range map[string]func(b []byte) []byte{
		"no byte more":         func(b []byte) []byte { return b[:1] },
		"cut in the flags":     func(b []byte) []byte { return b[:6] },
		"cut in the constants": func(b []byte) []byte { return b[:20] },
		"nothing behind":       func(b []byte) []byte { return b[:4+4+32] },
		"reserved":             func(b []byte) []byte { b[1] = 1; return b },
		"of no values":         func(b []byte) []byte { b[2] = 0; return b },
		"of other values":      func(b []byte) []byte { b[2] = 15; return b },
		"a flag":               func(b []byte) []byte { b[4] = 2; return b },
		"of V":                 func(b []byte) []byte { b[5], b[6] = 1, 0; return b },
		"of no lane":           func(b []byte) []byte { b[6] = 0; return b },
		"infinite":             func(b []byte) []byte { b[9] = 0x7c; return b },
		"twice":                func(b []byte) []byte { return slices.Concat(b[:40], b) },
	} {
		err := c.Decode(emptyLike(seg), edit(slices.Clone(good)), nil)
		require.Error(t, err, name)
		require.True(t, isTyped(err), "%s: %v", name, err)
	}
}
