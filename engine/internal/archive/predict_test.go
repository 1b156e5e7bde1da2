// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// told33 is the SHA-256 of the rows that testdata/golden-predicted.bin decodes to.
const told33 = "05f393fae2af7bfe97d62caf3a9df8da1faf12209ab460936040e947bd2fc52b"

const (
	goldenPredicted  = "testdata/golden-predicted.bin"
	goldenPredictors = "testdata/golden-predictors.bin"
)

// alike returns a codec with predictors for two heads of K and V that have most of their rows in common, and a
// segment of such rows.
func alike(t testing.TB, tokens int) (*Codec, *Segment) {
	c, _ := cache(t, 300, 1)
	rows := func(seed uint64, tokens int) *Segment {
		const dim = 16
		rng := rand.New(rand.NewPCG(seed, 3))
		seg := &Segment{Layer: 3, First: 10, Dims: []int{dim, dim}, Step8: []int{-12, -9, -14, -8}, Chunks: 1}
		common := make([]float32, tokens*dim)
		for i := range common {
			common[i] = float32(rng.NormFloat64())
		}
		for i := range tokens {
			seg.Pos = append(seg.Pos, 10+int64(i))
		}
		for lane := range 4 {
			x := make([]float32, tokens*dim)
			for i := range x {
				x[i] = common[i/dim*dim+(i+lane)%dim] + 0.2*float32(rng.NormFloat64())
				if rng.IntN(300) == 0 {
					x[i] *= 30
				}
			}
			if lane%2 == 0 {
				rope := c.Ropes.Of(3)
				rope.Redo(x, dim, seg.Pos)
				class := make([]uint8, tokens)
				for i := range class {
					class[i] = uint8(rng.IntN(NumTokenClasses))
				}
				seg.Class = append(seg.Class, class)
			}
			seg.Rows = append(seg.Rows, x)
		}
		return seg
	}
	learn := rows(5, 1000)
	p, err := c.Prepare(clone(learn))
	require.NoError(t, err)
	pairing := NewPairing(c.Set.Transforms[0], 2)
	pairing.Add(c, p, 0, Effort{Lambda: 0.12}, 0)
	predictors := pairing.Predictors(0.1)
	require.Nil(t, predictors[0], "nothing comes before the first lane")
	for _, lane := range []int{1, 2, 3} {
		require.Greater(t, pairing.Saved(predictors[lane], lane, learn.Step8[lane]), 1., "lane %d", lane)
	}
	with := *c.Params
	with.Set, with.Own, with.Predict = c.Set.WithThese([][]*Predictor{predictors}), false, true
	d, err := NewCodec(&with, true)
	require.NoError(t, err)
	return d, rows(6, tokens)
}

func TestPredict_TakesFewerBytes(t *testing.T) {
	for _, tokens := range []int{1, 2, 33, 512} {
		c, seg := alike(t, tokens)
		b := encode(t, c, seg)
		out, noise := emptyLike(seg), [][]float32{make([]float32, tokens), nil, make([]float32, tokens), nil}
		require.NoError(t, c.Decode(out, b, noise))
		require.Equal(t, seg.Class, out.Class)
		require.Equal(t, seg.Step8, out.Step8)
		plain := *c.Params
		plain.Predict = false
		d, err := NewCodec(&plain, true)
		require.NoError(t, err)
		p := encode(t, d, seg)
		require.EqualValues(t, modeTransform, p[0])
		require.NoError(t, d.Decode(emptyLike(seg), p, nil))
		// Errors do not add up from lane to lane: they are those of the steps, as without prediction.
		without, with := squaredSteps(t, d, seg, decode(t, d, seg, p)), squaredSteps(t, d, seg, out.Rows)
		t.Logf("%d tokens: %d bytes, %d without; error %.1f, %.1f", tokens, len(b), len(p), with, without)
		require.Less(t, with, 1.1*without+1)
		if tokens == 512 {
			require.EqualValues(t, modePredicted, b[0])
			require.Less(t, float64(len(b)), 0.9*float64(len(p)))
		}
	}
}

// What the encoder takes for decoded is what a decoder makes of it, or prediction would drift.
func TestValues_AsDecoded(t *testing.T) {
	slow := 0
	for _, step8 := range []int{-200, -60, -20, 0, 30} {
		c, seg := cache(t, 65, 1)
		p, err := c.Prepare(clone(seg))
		require.NoError(t, err)
		q := c.c.quantizer(0.12)
		var quick levels
		for i := range p.y {
			l, steps := c.lane(seg, i, &p.told, seg.Step8[i]+step8)
			quick.quantize(q, l, p.y[i], steps)
			slow += len(quick.slow[0])
			got, want := quick.values(q, nil, l), make([]float32, len(p.y[i]))
			require.True(t, c.c.decodeOne(l, quick.encode(nil, q, l), want))
			require.Equal(t, want, got)
		}
	}
	require.Positive(t, slow)
}

func TestPredict_WhereItDoesNotHelp(t *testing.T) {
	c, seg := alike(t, 200)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, scale := range []float64{1e-20, 1, 1e20} { // rows of another kind, and of another unit
		for i := range seg.Rows {
			for j := range seg.Rows[i] {
				seg.Rows[i][j] = float32(scale * rng.NormFloat64() * math.Exp2(float64(rng.IntN(8))))
			}
			seg.Step8[i] = int(8 * math.Log2(scale))
		}
		p, err := c.Prepare(clone(seg))
		require.NoError(t, err)
		plain := *c.Params
		plain.Predict = false
		d, err := NewCodec(&plain, true)
		require.NoError(t, err)
		with, without := c.Cost(p, 0, Effort{}), d.Cost(p, 0, Effort{})
		require.Less(t, with, 1.02*without, "%g", scale)
		require.NoError(t, c.Decode(emptyLike(seg), encode(t, c, seg), nil))
	}
}

// A record of several stages is not predicted: what was dropped of a lane would be missing from the next.
func TestPredict_NotInStages(t *testing.T) {
	c, seg := alike(t, 100)
	seg.Chunks = 3
	b := encode(t, c, seg)
	require.EqualValues(t, modeTransform, b[0])
	require.NoError(t, c.Decode(emptyLike(seg), b, nil))
	seg.Chunks = 1
	b = encode(t, c, seg)
	b[4] = 2 // stages of the record behind the mask
	require.ErrorIs(t, c.Decode(emptyLike(seg), b, nil), quant.ErrCorrupt)
}

func TestPredict_DroppedLanes(t *testing.T) {
	c, seg := alike(t, 100)
	b := encode(t, c, seg)
	for lane := range 4 {
		keep := &Keep{Lanes: slices.Repeat([]bool{true}, 4)}
		keep.Lanes[lane] = false
		cut, err := Truncate(nil, b, keep)
		require.NoError(t, err)
		require.Less(t, len(cut), len(b))
		require.NoError(t, c.Decode(emptyLike(seg), cut, nil))
	}
}

func TestPredict_EveryBitAndLength(t *testing.T) {
	c, seg := alike(t, 9)
	b := encode(t, c, seg)
	require.EqualValues(t, modePredicted, b[0])
	for n := range b {
		require.True(t, isTyped(c.Decode(emptyLike(seg), b[:n], nil)), "cut at %d", n)
	}
	for i := range b {
		for bit := range 8 {
			d := slices.Clone(b)
			d[i] ^= 1 << bit
			if err := c.Decode(emptyLike(seg), d, nil); err != nil {
				require.True(t, isTyped(err), "%v", err)
			} else if i < 3 {
				t.Errorf("bit %d of byte %d passes", bit, i)
			}
		}
	}
	// A set without predictors cannot decode it, and says so.
	plain := *c.Params
	plain.Set = plain.Set.plain
	d, err := NewCodec(&plain, false)
	require.NoError(t, err)
	require.ErrorIs(t, d.Decode(emptyLike(seg), b, nil), quant.ErrCorrupt)
	require.ErrorIs(t, d.Side(emptyLike(seg), b), quant.ErrCorrupt)
	require.NoError(t, c.Side(emptyLike(seg), b))
}

// TestPredict_SameOnEveryMachine holds decoded rows to the bit.
func TestPredict_SameOnEveryMachine(t *testing.T) {
	made, seg := alike(t, 33)
	if *update {
		require.NoError(t, os.WriteFile(goldenPredictors, made.Set.AppendPredictors(nil), 0o644))
		own := *made.Params
		own.Predict, own.Own = false, true
		require.NoError(t, os.WriteFile("testdata/golden-predicted-params.bin", own.Append(nil), 0o644))
		require.NoError(t, os.WriteFile(goldenPredicted, encode(t, made, seg), 0o644))
	}
	params, err := os.ReadFile("testdata/golden-predicted-params.bin")
	require.NoError(t, err)
	p, err := ParseParams(params)
	require.NoError(t, err)
	predictors, err := os.ReadFile(goldenPredictors)
	require.NoError(t, err)
	p.Set, err = p.Set.WithPredictors(predictors)
	require.NoError(t, err)
	c, err := NewCodec(p, false)
	require.NoError(t, err)
	b, err := os.ReadFile(goldenPredicted)
	require.NoError(t, err)
	require.EqualValues(t, modePredicted, b[0])
	h := sha256.New()
	for _, r := range decode(t, c, seg, b) {
		for _, v := range r {
			u := math.Float32bits(v)
			h.Write([]byte{byte(u), byte(u >> 8), byte(u >> 16), byte(u >> 24)})
		}
	}
	require.Equal(t, told33, hex.EncodeToString(h.Sum(nil)))
}

func TestPredictors_RoundTripAndDamage(t *testing.T) {
	c, _ := alike(t, 2)
	plain := c.Set.plain
	b := c.Set.AppendPredictors(nil)
	set, err := plain.WithPredictors(b)
	require.NoError(t, err)
	require.Equal(t, b, set.AppendPredictors(nil))
	for n := range b {
		_, err := plain.WithPredictors(b[:n])
		require.True(t, isTyped(err), "cut at %d: %v", n, err)
	}
	_, err = plain.WithPredictors(append(slices.Clone(b), 0))
	require.ErrorIs(t, err, quant.ErrCorrupt)
	for i := range b {
		v := slices.Clone(b)
		v[i] ^= 0x81
		if _, err := plain.WithPredictors(v); err != nil {
			require.True(t, isTyped(err), "%v", err)
		} else if i < 12 {
			t.Errorf("byte %d changed passes", i)
		}
	}
	v := slices.Clone(b)
	v[0] = 9
	_, err = plain.WithPredictors(v)
	require.ErrorIs(t, err, quant.ErrVersion)
}

func TestParams_Predicted(t *testing.T) {
	for _, ropes := range []Ropes{NewRopes(quant.Geometry{Layers: 4, Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 16, Theta: 1e4}}),
		NewRopes(layered())} {
		p := &Params{Fine: 1, Predict: true, Ropes: ropes}
		b := p.Append(nil)
		require.EqualValues(t, paramsPredicted, b[0])
		q, err := ParseParams(b)
		require.NoError(t, err)
		require.True(t, q.Predict)
		require.Equal(t, b, q.Append(nil))
		require.Equal(t, p.Ropes.of, q.Ropes.of)
		b[1] = 1 // predictors are a profile's
		_, err = ParseParams(b)
		require.ErrorIs(t, err, quant.ErrCorrupt)
	}
}
