// SPDX-License-Identifier: Apache-2.0

package quant_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func parse(t testing.TB, s string) quant.Coding {
	t.Helper()
	c, err := quant.ParseCoding(s)
	require.NoError(t, err)
	return c
}

func encode(t testing.TB, c quant.Coding, x quant.Rows) []byte {
	t.Helper()
	b := make([]byte, c.PackedBytes(x.Len(), x.Dim))
	require.NoError(t, quant.Encode(b, c, x, 7))
	return b
}

func decode(t testing.TB, c quant.Coding, b []byte, n, dim int) quant.Rows {
	t.Helper()
	y := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
	require.NoError(t, quant.Decode(y, c, b, 7))
	return y
}

// The suite holds the oracle to its own promises on guards, determinism and demotion in place.
func TestRunFormat_Oracle(t *testing.T) {
	quanttest.RunFormat(t,
		quanttest.Codec{Encode: quant.Encode, Decode: quant.Decode, Demote: quant.Demote})
}

func TestCoding_StringParse(t *testing.T) {
	for _, c := range quanttest.Codings() {
		got, err := quant.ParseCoding(c.String())
		require.NoError(t, err)
		require.Equal(t, c, got)
	}
	for _, bad := range []string{"", "lm5", "lm3+out2", "kivi2", "f16+s8", "lm3+len+len",
		"lm3+len+ip", "u8+len", "lm3+", "+len", "lm3+s8+s8", "LM3"} {
		_, err := quant.ParseCoding(bad)
		require.ErrorIs(t, err, quant.ErrUnsupported, bad)
	}
}

// Gaussian rows: error, length and inner-product slope against theory, for each rule.
func TestEncode_GaussianTheory(t *testing.T) {
	for _, dim := range quanttest.Dims() {
		if dim < 64 {
			continue // rows too short to be Gaussian
		}
		const n = 1000
		x := quanttest.Rows(quanttest.Gaussian, n, dim, 1)
		for _, c := range quanttest.Codings() {
			if c.CheckDim(dim) != nil {
				continue
			}
			y := decode(t, c, encode(t, c, x), n, dim)
			low, high := quanttest.Tolerance(c, dim)
			e := quanttest.NMSE(x.Data, y.Data)
			require.True(t, e >= low && e <= high, "%s head_dim=%d: NMSE %g outside [%g, %g]",
				c, dim, e, low, high)
			var xy, xx float64
			var length float64
			for r := range n {
				var a, b, ab float64
				for i, v := range x.Row(r) {
					w := float64(y.Row(r)[i])
					a += float64(v) * float64(v)
					b += w * w
					ab += float64(v) * w
				}
				xx, xy = xx+a, xy+ab
				length += math.Sqrt(b/a) / n
			}
			// A scale rounded to binary16 or 1/16 octave is off by at most 2^-11 or 2.2 %, evenly to
			// both sides: over 1000 rows the mean moves by less than a tenth of that.
			slack := 1e-4
			if c.Scale == quant.ScaleLog8 {
				slack = 0.0022
			}
			switch {
			case c.Rule == quant.LengthKeeping:
				require.InDelta(t, 1, length, slack, "%s: length", c)
			case c.Rule == quant.InnerProduct:
				require.InDelta(t, 1, xy/xx, slack, "%s: slope", c)
			case c.Format.Nested():
				// Least squares: <x,y> = |y|^2 = (1-e)|x|^2.
				require.InDelta(t, 1-e, xy/xx, 2*slack, "%s: slope", c)
			}
		}
	}
}

func TestDemote_WithinThreePercentOfDirect(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 200
	}
	for _, fam := range []quanttest.Family{quanttest.Gaussian, quanttest.Massive, quanttest.HeavyTails} {
		for _, dim := range quanttest.Dims() {
			if dim < 64 {
				continue
			}
			x := quanttest.Rows(fam, n, dim, 2)
			coded := map[quant.Coding]float64{} // directly
			for _, c := range quanttest.Codings() {
				if !c.Format.Nested() {
					continue
				}
				packed := encode(t, c, x)
				for to := c; to.Format >= quant.LM1; to.Format-- {
					d := make([]byte, to.PackedBytes(n, dim))
					require.NoError(t, quant.Demote(d, to, packed, c, n, dim))
					got := quanttest.NMSE(x.Data, decode(t, to, d, n, dim).Data)
					direct, ok := coded[to]
					if !ok {
						direct = quanttest.NMSE(x.Data, decode(t, to, encode(t, to, x), n, dim).Data)
						coded[to] = direct
					}
					// Rows that few values carry stay far from Gaussian behind the rotation.
					limit := 1.03
					if fam != quanttest.Gaussian {
						limit = 1.1
					}
					if fam != quanttest.Gaussian && to.Format == quant.LM1 {
						continue // no promise: one bit of such rows says little either way
					}
					require.LessOrEqual(t, got, limit*direct, "%s %s -> %s", fam, c, to)
				}
			}
		}
	}
}

// A demotion in steps ends where one jump ends, in codes; scales may differ by their rounding.
func TestDemote_Steps(t *testing.T) {
	x := quanttest.Rows(quanttest.Gaussian, 33, 64, 3)
	four, three, two := parse(t, "lm4+len"), parse(t, "lm3+len"), parse(t, "lm2+len")
	packed := encode(t, four, x)
	step := make([]byte, three.PackedBytes(33, 64))
	require.NoError(t, quant.Demote(step, three, packed, four, 33, 64))
	a, b := make([]byte, two.PackedBytes(33, 64)), make([]byte, two.PackedBytes(33, 64))
	require.NoError(t, quant.Demote(a, two, step, three, 33, 64))
	require.NoError(t, quant.Demote(b, two, packed, four, 33, 64))
	planes := len(a) - two.ScaleBytes(33)
	require.Equal(t, b[:planes], a[:planes])
	require.Equal(t, encode(t, two, x)[:planes], a[:planes],
		"the codes are those of direct encoding")
	err := quant.Demote(packed, four, step, three, 33, 64)
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorIs(t, quant.Demote(a, parse(t, "lm2"), packed, four, 33, 64), quant.ErrUnsupported)
}

func TestRotation_Orthogonal(t *testing.T) {
	for _, dim := range []int{8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256, 384, 576} {
		rot, err := quant.NewRotation(dim, 99)
		require.NoError(t, err)
		x := quanttest.Rows(quanttest.Gaussian, 2, dim, 4)
		a, b := append([]float32{}, x.Row(0)...), append([]float32{}, x.Row(1)...)
		rot.Forward(a)
		rot.Forward(b)
		var dot, dotRot float64
		for i := range a {
			dot += float64(x.Row(0)[i]) * float64(x.Row(1)[i])
			dotRot += float64(a[i]) * float64(b[i])
		}
		require.InDelta(t, dot, dotRot, 1e-4*math.Sqrt(float64(dim)),
			"inner products are kept, dim %d", dim)
		rot.Inverse(a)
		for i := range a {
			require.InDelta(t, x.Row(0)[i], a[i], 3e-6)
		}
		other, err := quant.NewRotation(dim, 100)
		require.NoError(t, err)
		c := append([]float32{}, x.Row(0)...)
		other.Forward(c)
		rot.Forward(a)
		require.NotEqual(t, a, c, "the seed matters")
	}
	for _, dim := range []int{0, -8, 4, 12, 100, quant.MaxDim + 8} {
		_, err := quant.NewRotation(dim, 1)
		require.ErrorIs(t, err, quant.ErrUnsupported)
	}
}

// Massive channels: the error of dims that are no power of two stays near that of Gaussian rows
// (0.0096) wherever the channel sits; without a rotation it is 5 times that.
func TestRotation_MassiveChannel(t *testing.T) {
	lm4 := parse(t, "lm4")
	for _, dim := range []int{64, 72, 80, 96, 112, 128, 192} {
		for _, channel := range []int{0, dim / 5, dim / 2, dim - 17, dim - 1} {
			x := quanttest.Rows(quanttest.Gaussian, 500, dim, 5)
			for r := range 500 {
				x.Row(r)[channel] += 30
			}
			e := quanttest.NMSE(x.Data, decode(t, lm4, encode(t, lm4, x), 500, dim).Data)
			require.Less(t, e, 0.0135, "head_dim %d channel %d", dim, channel)
			// The same rows in the basis where the channel stands alone.
			rot, err := quant.NewRotation(dim, 7)
			require.NoError(t, err)
			for r := range 500 {
				rot.Inverse(x.Row(r))
			}
			bare := quanttest.NMSE(x.Data, decode(t, lm4, encode(t, lm4, x), 500, dim).Data)
			require.Greater(t, bare, 2*e, "head_dim %d channel %d", dim, channel)
		}
	}
}

func TestEncode_PowerOfTwoScaling(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		exp := rapid.IntRange(-12, 12).Draw(rt, "exp")
		c := rapid.SampledFrom(quanttest.Codings()).Draw(rt, "coding")
		x := quanttest.Rows(quanttest.Gaussian, 9, 64, rapid.Uint64().Draw(rt, "seed"))
		z := quant.Rows{Dim: 64, Data: append([]float32{}, x.Data...)}
		for i := range z.Data {
			z.Data[i] = float32(math.Ldexp(float64(z.Data[i]), exp))
		}
		if c.Format.Exact() || !c.Format.Rotated() {
			return
		}
		a, b := encode(t, c, x), encode(t, c, z)
		codes := len(a) - c.ScaleBytes(9)
		if string(a[:codes]) != string(b[:codes]) {
			rt.Fatalf("%s: codes change under scaling by 2^%d", c, exp)
		}
	})
}

// encode(decode(encode(x))) keeps the codes of the exact formats and of ggml's.
func TestEncode_Idempotent(t *testing.T) {
	x := quanttest.Rows(quanttest.HeavyTails, 40, 64, 8)
	for _, s := range []string{"f32", "f16", "bf16"} {
		c := parse(t, s)
		b := encode(t, c, x)
		require.Equal(t, b, encode(t, c, decode(t, c, b, 40, 64)), s)
	}
}

func TestEncode_Refusals(t *testing.T) {
	for _, c := range quanttest.Codings() {
		for _, fam := range []quanttest.Family{quanttest.WithNaN, quanttest.WithInf} {
			x := quanttest.Rows(fam, 9, 64, 1)
			b := make([]byte, c.PackedBytes(9, 64))
			err := quant.Encode(b, c, x, 7)
			if c.Format.Exact() {
				require.NoError(t, err)
				y := decode(t, c, b, 9, 64)
				for i, v := range x.Data {
					require.Equal(t, math.IsNaN(float64(v)), math.IsNaN(float64(y.Data[i])))
					require.Equal(t, math.IsInf(float64(v), 0), math.IsInf(float64(y.Data[i]), 0))
				}
				continue
			}
			var re *quant.RowError
			require.ErrorAs(t, err, &re, "%s %s", c, fam)
			require.Equal(t, 4, re.Row)
			require.ErrorIs(t, err, quant.ErrRange)
		}
		huge := quanttest.Rows(quanttest.Huge, 3, 64, 1)
		err := quant.Encode(make([]byte, c.PackedBytes(3, 64)), c, huge, 7)
		if c.Format == quant.F32 || c.Format == quant.BF16 || c.Scale == quant.ScaleLog8 {
			require.NoError(t, err, c)
		} else {
			require.ErrorIs(t, err, quant.ErrRange, c)
		}
	}
	c := parse(t, "lm4+s8")
	over := quant.Rows{Dim: 8, Data: []float32{math.MaxFloat32, 0, 0, 0, 0, 0, 0, 0}}
	require.ErrorIs(t, quant.Encode(make([]byte, c.PackedBytes(1, 8)), c, over, 7), quant.ErrRange)
}

func TestArguments(t *testing.T) {
	c := parse(t, "lm3")
	x := quanttest.Rows(quanttest.Gaussian, 4, 64, 1)
	b := make([]byte, c.PackedBytes(4, 64))
	require.ErrorIs(t, quant.Encode(b[:10], c, x, 0), quant.ErrShape)
	require.ErrorIs(t, quant.Encode(b, c, quant.Rows{Dim: 63, Data: x.Data}, 0), quant.ErrShape)
	require.ErrorIs(t, quant.Encode(b, c, quant.Rows{Dim: 4, Data: x.Data}, 0),
		quant.ErrUnsupported)
	require.ErrorIs(t, quant.Encode(b, c, quant.Rows{}, 0), quant.ErrShape)
	require.ErrorIs(t, quant.Decode(x, c, b[1:], 0), quant.ErrShape)
	require.ErrorIs(t, quant.RowScales(make([]float32, 3), c, b, 4, 64), quant.ErrShape)
	require.ErrorIs(t, quant.Encode(b, quant.Coding{}, x, 0), quant.ErrUnsupported)
	require.ErrorIs(t, parse(t, "ggml-q4_0").CheckDim(80), quant.ErrUnsupported)
	for _, e := range []error{quant.ErrShape, quant.ErrCorrupt, quant.ErrVersion, quant.ErrUnsupported, quant.ErrRange} {
		require.False(t, errors.Is(e, quant.ErrClosed))
	}
}

// Hand-derived ggml groups. Values 0..31 minus 16 scaled by 1/4: the largest magnitude is -4 at
// index 0, so q4_0 has d = -4/-8 = 0.5 (0x3800) and codes trunc(x/0.5 + 8.5).
func TestGGML_FixedVectors(t *testing.T) {
	x := quant.Rows{Dim: 32, Data: make([]float32, 32)}
	for i := range x.Data {
		x.Data[i] = (float32(i) - 16) / 4
	}
	// x/d = (i-16)/2: i=0 -> -8 -> 0.5 -> 0; i=1 -> -7.5 -> 1.0 -> 1; i=2 -> -7 -> 1.5 -> 1; i=3 -> 2; ...
	// i=16 -> 0 -> 8.5 -> 8; i=17 -> 0.5 -> 9.0 -> 9; i=18 -> 1 -> 9.5 -> 9; i=31 -> 7.5 -> 16 -> min 15.
	want := "0038" + "809191a2a2b3b3c4c4d5d5e6e6f7f7f8"
	b := encode(t, parse(t, "ggml-q4_0"), x)
	require.Equal(t, want, hex.EncodeToString(b))

	// q8_0: d = 4/127 = 0.031496063 -> binary16 0x2808 (0.031494141); codes round(x*127/4), halves
	// away from zero: -127, -119 (-119.06), -111 (-111.125), -103 (-103.19), -95 (-95.25) ...
	q8 := encode(t, parse(t, "ggml-q8_0"), x)
	require.Equal(t, "0828", hex.EncodeToString(q8[:2]))
	for i := range 32 {
		exact := (float64(i) - 16) / 4 * 127 / 4
		require.Equal(t, int8(math.Round(exact)), int8(q8[2+i]), "value %d", i)
	}
	y := decode(t, parse(t, "ggml-q8_0"), q8, 1, 32)
	require.Equal(t, float32(-127)*0.031494140625, y.Data[0])

	zero := quant.Rows{Dim: 32, Data: make([]float32, 32)}
	// d = 0/-8 is minus zero, here as in ggml.
	require.Equal(t, "0080"+"88888888888888888888888888888888",
		hex.EncodeToString(encode(t, parse(t, "ggml-q4_0"), zero)))
	require.Equal(t, make([]byte, 34), encode(t, parse(t, "ggml-q8_0"), zero))
	// The sign of the scale follows the value of largest magnitude: +4 at the end gives d = -0.5.
	pos := quant.Rows{Dim: 32, Data: make([]float32, 32)}
	pos.Data[31] = 4
	got := encode(t, parse(t, "ggml-q4_0"), pos)
	require.Equal(t, "00b8", hex.EncodeToString(got[:2]))
	require.Equal(t, byte(0x08), got[17]&0xff,
		"x/d = -8 gives code 0 in the high nibble, 0 gives 8")
}

// A hand-derived lm block: one row of 8, drawn so that every step can be followed.
func TestLM_FixedVector(t *testing.T) {
	rot, err := quant.NewRotation(8, 7)
	require.NoError(t, err)
	// Rows whose rotation is known: y itself, taken back.
	y := []float32{1, -1, 2, -2, 0.25, -0.25, 0.5, 0}
	x := append([]float32{}, y...)
	rot.Inverse(x)
	c := parse(t, "lm2")
	b := encode(t, c, quant.Rows{Dim: 8, Data: x})
	// xx = 1+1+4+4+2*0.0625+0.25 = 10.375, sigma = sqrt(10.375/8) = 1.1388, threshold
	// 1.0499573*1.1388 = 1.1957: only +-2 lie beyond. Codes 2 1 3 0 2 1 2 2 (0 counts as positive, as
	// far as the rotation's rounding leaves it at or above 0).
	require.Len(t, b, 2*8+2)
	high, low := b[0], b[8]
	require.Equal(t, byte(0b01010101), high&0b01111111)
	require.Equal(t, byte(0b00100110), low&0b01111111)
	// xc = 37*(1+1+.25+.25+.5) + 121*4 = 595; cc = 6*37^2 + 2*121^2 = 37496; scale = 64*595/37496 = 1.0156.
	got := make([]float32, 1)
	require.NoError(t, quant.RowScales(got, c, b, 1, 8))
	require.InDelta(t, 64*595.0/37496, got[0], 6e-4)
}

// Mixed codings of K on Gaussian rows with peaked attention: the bias lowers the error.
// (On a real cache it falls below half: engine/kvfile.)
func TestRowBias_MixedCodings(t *testing.T) {
	const n, dim = 512, 64
	k := quanttest.Rows(quanttest.Gaussian, n, dim, 11)
	v := quanttest.Rows(quanttest.Gaussian, n, dim, 12)
	// The unbiased rule, for which the derivation of the bias holds exactly.
	fine, coarse := parse(t, "lm4+ip"), parse(t, "lm2+ip")
	kc, noise := make([]float32, n*dim), make([]float32, n)
	for _, c := range []quant.Coding{coarse, fine} {
		b := encode(t, c, k)
		y, s := decode(t, c, b, n, dim), make([]float32, n)
		require.NoError(t, quant.RowScales(s, c, b, n, dim))
		for r := range n {
			if (r%4 == 0) == (c == fine) {
				copy(kc[r*dim:], y.Row(r))
				noise[r] = s[r] * s[r] * float32(c.NoisePerScale2())
			}
		}
	}
	rng := rand.New(rand.NewPCG(13, 13))
	var with, without float64
	for range 200 {
		q := make([]float32, dim)
		target := rng.IntN(n/4) * 4
		var qq float32
		for i := range q { // a query that looks for one finely coded row, with scores of realistic spread
			q[i] = 2.5*float32(rng.NormFloat64()) + k.Row(target)[i]
			qq += q[i] * q[i]
		}
		exact := attend(q, k.Data, v.Data, nil, dim)
		bias := make([]float32, n)
		for r := range bias {
			bias[r] = quant.RowBias(0.125, qq, noise[r], 1)
		}
		without += sqDiff(exact, attend(q, kc, v.Data, nil, dim))
		with += sqDiff(exact, attend(q, kc, v.Data, bias, dim))
	}
	t.Logf("squared error with bias over without: %.3f", with/without)
	require.Less(t, with, 0.8*without)
}

func attend(q, k, v, bias []float32, dim int) []float64 {
	out, z := make([]float64, dim), 0.0
	for r := range len(k) / dim {
		s := 0.0
		for i := range dim {
			s += float64(q[i]) * float64(k[r*dim+i])
		}
		s *= 0.125
		if bias != nil {
			s += float64(bias[r])
		}
		p := math.Exp(s)
		z += p
		for i := range out {
			out[i] += p * float64(v[r*dim+i])
		}
	}
	for i := range out {
		out[i] /= z
	}
	return out
}

func sqDiff(a, b []float64) (e float64) {
	for i := range a {
		e += (a[i] - b[i]) * (a[i] - b[i])
	}
	return e
}

func FuzzParseCoding(f *testing.F) {
	for _, c := range quanttest.Codings() {
		f.Add(c.String())
	}
	f.Add("lm3+ip+s8")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := quant.ParseCoding(s)
		if err == nil && c.String() != s {
			if again, err := quant.ParseCoding(c.String()); err != nil || again != c {
				t.Fatalf("%q -> %s does not parse back", s, c)
			}
		}
	})
}

// Any packed bytes decode without a panic, and demote.
// DecodeRotated stops before the inverse rotation, bit by bit.
func TestDecodeRotated_BeforeInverse(t *testing.T) {
	const seed = 7
	for _, c := range quanttest.Codings() {
		for _, dim := range []int{64, 96} {
			x := quanttest.Rows(quanttest.Gaussian, 5, dim, 3)
			b := make([]byte, c.PackedBytes(5, dim))
			require.NoError(t, quant.Encode(b, c, x, seed))
			want, got := quant.Rows{Dim: dim, Data: make([]float32, 5*dim)},
				quant.Rows{Dim: dim, Data: make([]float32, 5*dim)}
			require.NoError(t, quant.Decode(want, c, b, seed))
			require.NoError(t, quanttest.DecodeRotated(got, c, b))
			if c.Format.Rotated() {
				require.NotEqual(t, want, got, c)
				rot, err := quant.NewRotation(dim, seed)
				require.NoError(t, err)
				for r := range 5 {
					rot.Inverse(got.Row(r))
				}
			}
			require.Equal(t, want, got, c)
			require.ErrorIs(t, quanttest.DecodeRotated(got, c, b[1:]), quant.ErrShape)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint8(8), uint8(0), uint8(3), []byte("0123456789abcdef0123456789abcdef"))
	f.Fuzz(func(t *testing.T, format, opts, rows uint8, data []byte) {
		c := quant.Coding{Format: quant.Format(format), Rule: quant.ScaleRule(opts & 3), Scale: quant.ScaleForm(opts >> 2)}
		if c.Validate() != nil {
			return
		}
		n, dim := int(rows%5), 32
		b := make([]byte, c.PackedBytes(n, dim))
		copy(b, data)
		y := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
		if err := quant.Decode(y, c, b, 1); err != nil {
			t.Fatal(err)
		}
		if c.Format.Nested() {
			to := c
			to.Format = quant.LM1
			_ = quant.Demote(make([]byte, to.PackedBytes(n, dim)), to, b, c, n, dim)
		}
	})
}

func ExampleEncode() {
	c, err := quant.ParseCoding("lm4+s8")
	if err != nil {
		fmt.Println(err)
		return
	}
	x := quant.Rows{Dim: 64, Data: make([]float32, 32*64)}
	for i := range x.Data {
		x.Data[i] = float32(math.Sin(float64(i)))
	}
	packed := make([]byte, c.PackedBytes(x.Len(), x.Dim))
	if err := quant.Encode(packed, c, x, 1); err != nil {
		fmt.Println(err)
		return
	}
	y := quant.Rows{Dim: 64, Data: make([]float32, len(x.Data))}
	if err := quant.Decode(y, c, packed, 1); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d bytes, %.2f bits/value, NMSE %.3f\n", len(packed),
		quant.BitsPerValue(int64(len(packed)), int64(len(x.Data))), quanttest.NMSE(x.Data, y.Data))
	// Output: 1060 bytes, 4.14 bits/value, NMSE 0.009
}

// Squares that pass the range of float32 give no infinity and no NaN.
func TestRowBias_Extremes(t *testing.T) {
	const most = math.MaxFloat32
	for _, c := range []struct{ scale, energy, noise, row, want float32 }{
		{0.125, 64, 0.1, 2, -0.2},
		{0.125, 64, 0.1, 1e19, -5e36},
		{0.125, 64, 0.1, 1e20, -most},
		{0.125, most, 1, most, -most},
		{0.125, 0, 0.1, 1e30, 0},
		{0.125, 64, 0, 1e30, 0},
		{0, 64, 0.1, 1e30, 0},
		{1, most, 4, 1e-15, -0.5 * 4 * most * 1e-30},
	} {
		got := quant.RowBias(c.scale, c.energy, c.noise, c.row)
		require.InDelta(t, float64(c.want), float64(got), 1e-6*math.Abs(float64(c.want)), "%+v", c)
	}
}
