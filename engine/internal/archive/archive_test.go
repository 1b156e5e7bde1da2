// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// source returns a codec whose tables are fitted to rows of independent Gaussian values, and these.
func source(t testing.TB, rows, dim int, s float64, e Effort) (c *Codec, p *Prepared, x []float32, s8 int) {
	rng := rand.New(rand.NewPCG(1, 2))
	x = make([]float32, rows*dim)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	m := NewMoments(dim, false)
	m.Add(x)
	set := &Set{Tables: DefaultTables(), Heads: 1, Sides: 1, Layers: []int{0},
		Transforms: [][]*Transform{{FitTransform(m, nil, false)}}}
	set.Tables.Prior = 64 << 12 // rows do not differ
	params := &Params{Set: set, Own: true}
	s8 = params.SetStep(s)
	seg := &Segment{Pos: make([]int64, rows), Rows: [][]float32{slices.Clone(x)}, Dims: []int{dim},
		Class: [][]uint8{make([]uint8, rows)}, Step8: []int{0}}
	for i := range seg.Pos {
		seg.Pos[i] = int64(i)
	}
	for round := range 4 {
		var err error
		c, err = NewCodec(params, true)
		require.NoError(t, err)
		if round == 0 {
			p, err = c.Prepare(seg)
			require.NoError(t, err)
		}
		if round < 3 {
			var f Fit
			c.Fit(&f, p, s8, e)
			set.Tables = f.Tables(set.Tables)
		}
	}
	return c, p, x, s8
}

func decode(t testing.TB, c *Codec, like *Segment, b []byte) [][]float32 {
	out := emptyLike(like)
	require.NoError(t, c.Decode(out, b, nil))
	return out.Rows
}

func emptyLike(like *Segment) *Segment {
	out := &Segment{Layer: like.Layer, First: like.First, Pos: make([]int64, len(like.Pos)), Dims: like.Dims}
	for _, r := range like.Rows {
		out.Rows = append(out.Rows, make([]float32, len(r)))
	}
	return out
}

// TestGaussian_NearTheBound: an entropy-coded uniform quantizer lies 1.42 times above the distortion
// bound 2^(-2R) at high rates (pi*e/6), and below that at low ones; a twentieth is left for the coder. Bits
// are those of the payload, all of it.
func TestGaussian_NearTheBound(t *testing.T) {
	const rows, dim = 1024, 64
	e := Effort{Lambda: 0.12}
	for _, want := range []float64{1, 2} {
		low, high := -16.0, 16.0
		for range 9 { // bisect the step for the rate
			mid := (low + high) / 2
			c, p, _, s8 := source(t, rows, dim, mid, e)
			if c.Cost(p, s8, e)/rows/dim > want {
				low = mid
			} else {
				high = mid
			}
		}
		c, p, x, s8 := source(t, rows, dim, high, e)
		b := c.Encode(nil, p, s8, e)
		ideal := c.Cost(p, s8, e)
		var sum float64
		for i, v := range decode(t, c, p.seg, b)[0] {
			d := float64(v) - float64(x[i])
			sum += d * d
		}
		bits := 8 * float64(len(b)) / rows / dim
		over := sum / rows / dim / math.Exp2(-2*bits)
		t.Logf("%.4f bits (the model's: %.4f), distortion %.4f, %.3f times the bound", bits,
			ideal/rows/dim, sum/rows/dim, over)
		require.InDelta(t, want, bits, 0.02)
		require.Less(t, over, 1.47)
		require.Less(t, 8*float64(len(b)), 1.01*ideal, "the coder is within 1 %% of its model")
	}
}

func TestRope_UndoneAndRedone(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	scaled := make([]float32, 16)
	for i := range scaled {
		scaled[i] = float32(math.Pow(500000, -float64(i)/16)) / 4
	}
	for name, r := range map[string]quant.Rope{
		"half":        {Layout: quant.RopeHalf, RotaryDim: 64, Theta: 100000},
		"interleaved": {Layout: quant.RopeInterleaved, RotaryDim: 64, Theta: 10000},
		"partial":     {Layout: quant.RopeHalf, RotaryDim: 32, Theta: 10000},
		"inv_freq":    {Layout: quant.RopeInterleaved, RotaryDim: 32, InvFreq: scaled},
		"none":        {},
	} {
		rope := NewRope(r)
		pos := []int64{0, 1, 2, 100, 5000, 5001, 1 << 20}
		x := make([]float32, len(pos)*64)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
		}
		y := slices.Clone(x)
		rope.Undo(y, 64, pos)
		if name != "none" {
			require.NotEqual(t, x, y)
		}
		// What RoPE does, in float64 and by the book.
		freq := r.Frequencies()
		back := make([]float64, len(x))
		for i, v := range y {
			back[i] = float64(v)
		}
		for k, p := range pos {
			for i, f := range freq {
				a, b := 64*k+i, 64*k+i+len(freq)
				if r.Layout == quant.RopeInterleaved {
					a, b = 64*k+2*i, 64*k+2*i+1
				}
				sin, cos := math.Sincos(float64(p) * f)
				back[a], back[b] = back[a]*cos-back[b]*sin, back[b]*cos+back[a]*sin
			}
		}
		for i := range x {
			require.InDelta(t, x[i], back[i], 1e-6, "%s: value %d", name, i)
		}
		rope.Redo(y, 64, pos)
		for i := range x {
			require.InDelta(t, x[i], y[i], 1e-6, "%s: value %d", name, i)
		}
	}
}

func TestSincos_AgainstTheLibrary(t *testing.T) {
	for i := range 20000 {
		x := float64(i*i) * 0.004
		s, c := sincos(x)
		ws, wc := math.Sincos(x)
		require.InDelta(t, ws, s, 1e-14, "%g", x)
		require.InDelta(t, wc, c, 1e-14, "%g", x)
	}
}

// cache returns a codec for two heads of K and V with correlated components, and a segment.
func cache(t testing.TB, tokens, chunks int) (*Codec, *Segment) {
	const dim = 16
	rng := rand.New(rand.NewPCG(7, 8))
	rope := quant.Rope{Layout: quant.RopeHalf, RotaryDim: dim, Theta: 10000}
	p := &Params{Fine: 1, Ropes: NewRopes(quant.Geometry{Rope: rope}), Own: true}
	for k := range p.Class8 {
		p.Class8[k] = int8(4 * (7 - k))
	}
	seg := &Segment{Layer: 3, First: 10, Dims: []int{dim, dim}, Step8: []int{-12, -9, -14, -8}, Chunks: chunks}
	set := &Set{Tables: DefaultTables(), Heads: 2, Sides: 2, Layers: []int{3}, Transforms: [][]*Transform{nil}}
	for i := range tokens {
		seg.Pos = append(seg.Pos, 10+int64(i)+int64(i/7)*3)
	}
	for lane := range 4 {
		x := make([]float32, tokens*dim)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
			if i%dim > 0 {
				x[i] = 0.7*x[i-1] + 0.3*x[i]
			}
			if rng.IntN(200) == 0 {
				x[i] *= 1000 // what escapes are for
			}
		}
		m := NewMoments(dim, true)
		m.Add(x)
		metric := identity(dim)
		metric[0] = 9
		set.Transforms[0] = append(set.Transforms[0], FitTransform(m, metric, lane != 3))
		if lane%2 == 0 {
			rope := p.Ropes.Of(seg.Layer)
			rope.Redo(x, dim, seg.Pos)
			class := make([]uint8, tokens)
			for i := range class {
				class[i] = uint8(rng.IntN(NumTokenClasses))
			}
			seg.Class = append(seg.Class, class)
		}
		seg.Rows = append(seg.Rows, x)
	}
	p.Set = set
	c, err := NewCodec(p, true)
	require.NoError(t, err)
	return c, seg
}

func clone(seg *Segment) *Segment {
	s := *seg
	s.Rows = nil
	for _, r := range seg.Rows {
		s.Rows = append(s.Rows, slices.Clone(r))
	}
	return &s
}

func encode(t testing.TB, c *Codec, seg *Segment) []byte {
	p, err := c.Prepare(clone(seg))
	require.NoError(t, err)
	return c.Encode(nil, p, 0, Effort{Lambda: 0.12})
}

func TestRecord_ComesBackWithinItsSteps(t *testing.T) {
	for _, tokens := range []int{1, 2, 7, 8, 33} {
		for _, chunks := range []int{1, 4} {
			c, seg := cache(t, tokens, chunks)
			b := encode(t, c, seg)
			out := emptyLike(seg)
			noise := make([][]float32, 4)
			noise[0] = make([]float32, tokens)
			require.NoError(t, c.Decode(out, b, noise))
			require.Equal(t, seg.Pos, out.Pos)
			require.Equal(t, seg.Class, out.Class)
			require.Equal(t, seg.Step8, out.Step8)
			p, err := c.Prepare(clone(seg))
			require.NoError(t, err)
			q, err := c.Prepare(clone(&Segment{Layer: 3, First: seg.First, Pos: out.Pos, Rows: out.Rows,
				Dims: out.Dims, Class: out.Class, Step8: out.Step8}))
			require.NoError(t, err)
			for i := range p.y {
				_, steps := c.lane(p.seg, i, &p.told, seg.Step8[i])
				for j := range p.y[i] {
					// A component that is not coded lies within what made it so.
					require.InDelta(t, p.y[i][j], q.y[i][j], 1.01*float64(steps[j/16])+1e-2*math.Abs(float64(p.y[i][j])),
						"lane %d value %d", i, j)
				}
			}
		}
	}
}

// TestRecord_SameOnEveryMachine holds payload and decoded rows of a record, to the bit. The rows
// are the promise; the payload may change with the encoder, when this hash is to be replaced.
func TestRecord_SameOnEveryMachine(t *testing.T) {
	c, seg := goldenCache(t)
	b := goldenPayload(t)
	out := emptyLike(seg)
	require.NoError(t, c.Decode(out, b, nil))
	h := sha256.New()
	for _, r := range out.Rows {
		for _, v := range r {
			u := math.Float32bits(v)
			h.Write([]byte{byte(u), byte(u >> 8), byte(u >> 16), byte(u >> 24)})
		}
	}
	require.Equal(t, goldenRows, hex.EncodeToString(h.Sum(nil)))
}

func TestDecode_EveryBitAndLength(t *testing.T) {
	c, seg := cache(t, 9, 2)
	b := encode(t, c, seg)
	want := decode(t, c, seg, b)
	try := func(b []byte) (changed bool) {
		out := emptyLike(seg)
		if err := c.Decode(out, b, nil); err != nil {
			var ce *CorruptError
			require.ErrorAs(t, err, &ce)
			require.ErrorIs(t, err, quant.ErrCorrupt)
			return false
		}
		for i := range want {
			if !slices.Equal(want[i], out.Rows[i]) {
				return true
			}
		}
		return false
	}
	for n := range b {
		require.False(t, try(b[:n]), "cut at %d", n)
	}
	passed := 0
	for i := range b {
		for bit := range 8 {
			d := slices.Clone(b)
			d[i] ^= 1 << bit
			if try(d) {
				passed++ // the record's checksum is for those
			}
		}
	}
	t.Logf("%d of %d flipped bits are for the checksum to find", passed, 8*len(b))
	// What is stored as it is (low bits of large coefficients, deviations, coarser steps) takes any value.
	require.Less(t, passed, len(b))
}

func TestParams_RoundTripAndDamage(t *testing.T) {
	c, seg := cache(t, 5, 1)
	b := c.Params.Append(nil)
	p, err := ParseParams(b)
	require.NoError(t, err)
	require.Equal(t, b, p.Append(nil))
	d, err := NewCodec(p, false)
	require.NoError(t, err)
	x := encode(t, c, seg)
	require.Equal(t, decode(t, c, seg, x), decode(t, d, seg, x))
	for n := range b {
		_, err := ParseParams(b[:n])
		require.ErrorIs(t, err, quant.ErrCorrupt, "cut at %d", n)
	}
	for i := 0; i < len(b); i += 1 + i/64 {
		v := slices.Clone(b)
		v[i] ^= 0x81
		if p, err := ParseParams(v); err == nil {
			if d, err := NewCodec(p, false); err == nil {
				_ = d.Decode(emptyLike(seg), x, nil) // must not panic
			}
		} else {
			require.True(t, isTyped(err), "%v", err)
		}
	}
}

func TestEigen_Reconstructs(t *testing.T) {
	const d = 12
	rng := rand.New(rand.NewPCG(9, 9))
	m := make([]float64, d*d)
	for i := range d {
		for j := range i + 1 {
			m[i*d+j] = rng.NormFloat64()
			m[j*d+i] = m[i*d+j]
		}
	}
	w, v := eigen(m, d)
	require.True(t, slices.IsSortedFunc(w, func(a, b float64) int { return -cmpFloat(a, b) }))
	s := make([]float64, d*d)
	for i := range d {
		for k := range d {
			s[i*d+k] = v[i*d+k] * w[k]
		}
	}
	for i, x := range multiply(s, transpose(v, d), d) {
		require.InDelta(t, m[i], x, 1e-9)
	}
	inv, ok := invert(m, d)
	require.True(t, ok)
	for i, x := range multiply(m, inv, d) {
		require.InDelta(t, identity(d)[i], x, 1e-9)
	}
}

func cmpFloat(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// TestDecodeOne_AsDefined holds the fast decoder of a lane against the one that defines it.
func TestDecodeOne_AsDefined(t *testing.T) {
	for _, tokens := range []int{1, 2, 7, 64, 65} {
		c, seg := cache(t, tokens, 1)
		b := encode(t, c, seg)
		p, err := parse(b, 4)
		require.NoError(t, err)
		out := emptyLike(seg)
		require.NoError(t, c.Decode(out, b, nil))
		std, err := c.decodeSide(out, c.Set.Transforms[0], nil, p.side)
		require.NoError(t, err)
		for i := range 4 {
			l, _ := c.lane(out, i, std, out.Step8[i])
			fast, slow := make([]float32, tokens*16), make([]float32, tokens*16)
			require.True(t, c.c.decodeOne(l, p.lanes[i].b, fast))
			d := newRansDecoder(p.lanes[i].b)
			for r := 0; r < tokens; r += 2 {
				c.c.decodeRows(&d, l, r, min(2, tokens-r), slow)
			}
			require.True(t, d.done())
			require.Equal(t, slow, fast)
			cut := p.lanes[i].b[:len(p.lanes[i].b)/2]
			require.False(t, c.c.decodeOne(l, cut, fast))
		}
	}
}

// TestLevels_AsDefined holds the fast encoder of a lane against the one that defines it, at steps
// from all zeros to escapes and above all tables, and for levels that bits are worth more or less in.
func TestLevels_AsDefined(t *testing.T) {
	slow := 0
	for _, tokens := range []int{1, 2, 7, 64, 65} {
		for _, lambda := range []float32{0, 0.12, 2} {
			for _, step8 := range []int{-200, -60, -20, 0, 30, 100} {
				c, seg := cache(t, tokens, 1)
				p, err := c.Prepare(clone(seg))
				require.NoError(t, err)
				q := c.c.quantizer(lambda)
				var quick levels
				for i := range p.y {
					l, steps := c.lane(seg, i, &p.told, seg.Step8[i]+step8)
					var sink laneSink
					want := q.encode(l, p.y[i], steps, &sink)
					quick.quantize(q, l, p.y[i], steps)
					slow += len(quick.slow[0]) + len(quick.slow[1])
					got := quick.encode([]byte{7}, q, l)
					require.Equal(t, ransEncode([]byte{7}, sink.syms, sink.state, probBits), got)
					// Both add up in float32, the fast one 4096 costs of at most 60 bits at a time.
					quick.quantize(q, l, p.y[i], steps)
					require.InDelta(t, want, quick.bits(q), 1e-3+4096*0x1p-24*want)
				}
			}
		}
	}
	require.Positive(t, slow, "no escapes were met")
}

// TestEncodeSymbol_IsADivision holds the reciprocals at every frequency against the division.
func TestEncodeSymbol_IsADivision(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for freq := uint32(1); freq < probOne; freq++ {
		start := uint32(rng.IntN(int(probOne - freq + 1)))
		s := newEncodeSymbol(newInterval(start, freq))
		for _, x := range []uint32{ransLow, ransLow + 1, s.most - 1, s.most - freq, ransLow + rng.Uint32N(s.most)} {
			if x < ransLow || x >= s.most {
				continue
			}
			d, _ := bits.Mul64(uint64(x), s.reciprocal)
			require.Equal(t, x/freq<<probBits+x%freq+start, x+s.bias+uint32(d)*s.more, "%d / %d", x, freq)
		}
	}
}

// TestMoments_AgainstSums holds the moments against sums in float64, for rows far from zero too.
func TestMoments_AgainstSums(t *testing.T) {
	for _, d := range []int{1, 3, 64, 80} {
		for _, n := range []int{1, 7, momentRows, 2*momentRows + 5} {
			rng := rand.New(rand.NewPCG(uint64(d), uint64(n)))
			x := make([]float32, n*d)
			for i := range x {
				x[i] = float32(30*float64(i%d) + rng.NormFloat64())
			}
			m := NewMoments(d, true)
			m.Add(x)
			require.Equal(t, float64(n), m.N)
			for i := range d {
				for j := range i + 1 {
					var second, cov, si, sj float64
					for r := range n {
						a, b := float64(x[r*d+i]), float64(x[r*d+j])
						second, si, sj = second+a*b, si+a, sj+b
					}
					cov = second/float64(n) - si/float64(n)*sj/float64(n)
					got := m.Second[i*d+j]/m.N - m.Sum[i]/m.N*m.Sum[j]/m.N
					// Deviations are 1; float64 leaves little of a second moment of up to 30^2 dim^2.
					require.InDelta(t, cov, got, 1e-5+0x1p-48*second/float64(n), "%d, %d of %d rows", i, j, n)
				}
				// Rows about their mean are rounded to float32; they lie within 8.
				require.InDelta(t, m.Sum[i], sumOf(x, i, d), float64(n)*8*0x1p-24)
			}
		}
	}
}

func sumOf(x []float32, i, d int) (s float64) {
	for ; i < len(x); i += d {
		s += float64(x[i])
	}
	return s
}

// TestExpectedGain_IsTheGain holds the determinant against the basis.
func TestExpectedGain_IsTheGain(t *testing.T) {
	const dim, rows = 16, 400
	rng := rand.New(rand.NewPCG(4, 4))
	x := make([]float32, rows*dim)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
		if i%dim > 0 {
			x[i] = 0.9*x[i-1] + 0.3*x[i]
		}
	}
	m := NewMoments(dim, true)
	m.Add(x)
	metric := identity(dim)
	for i := range dim {
		metric[i*dim+i] = 1 + float64(i%3)
	}
	for _, metric := range [][]float64{nil, metric} {
		without, with := FitTransform(m, metric, false), FitTransform(m, metric, true)
		want := BasisGain(with, without, 0.05)
		got, ok := ExpectedGain(m, metric, without, 0.05)
		require.True(t, ok)
		require.Greater(t, want, 5.0)
		// Deviations are kept in eighths of an octave: a component is off by 1/16 of a bit at most.
		require.InDelta(t, want, got, float64(dim)/16)
	}
	metric[1] = 0.5
	_, ok := ExpectedGain(m, metric, FitTransform(m, metric, false), 0.05)
	require.False(t, ok)
}

// TestSorted_StrongComponentsFirst: without a basis, too, the streams that go first are those of the
// weakest components, wherever these stand in the row.
func TestSorted_StrongComponentsFirst(t *testing.T) {
	const dim, rows, chunks = 16, 64, 4
	rng := rand.New(rand.NewPCG(6, 6))
	x, energy := make([]float32, rows*dim), make([]float64, dim)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * math.Exp2(float64(i*5%dim)/2))
		energy[i*5%dim] += float64(x[i]) * float64(x[i]) // by strength
	}
	m := NewMoments(dim, false)
	m.Add(x)
	tr := FitTransform(m, nil, false)
	require.True(t, slices.IsSortedFunc(tr.Std8, func(a, b int16) int { return int(b) - int(a) }))
	set := &Set{Tables: DefaultTables(), Heads: 1, Sides: 1, Layers: []int{0}, Transforms: [][]*Transform{{tr}}}
	p, err := ParseParams((&Params{Fine: 1, Set: set, Own: true}).Append(nil))
	require.NoError(t, err)
	require.Equal(t, tr.Order, p.Set.Transforms[0][0].Order)
	require.Equal(t, tr.Std8, p.Set.Transforms[0][0].Std8)
	c, err := NewCodec(p, true)
	require.NoError(t, err)
	seg := &Segment{Pos: make([]int64, rows), Rows: [][]float32{slices.Clone(x)}, Dims: []int{dim},
		Class: [][]uint8{make([]uint8, rows)}, Step8: []int{-40}, Chunks: chunks}
	for i := range seg.Pos {
		seg.Pos[i] = int64(i)
	}
	for i, v := range decode(t, c, seg, encode(t, c, seg))[0] {
		require.InDelta(t, x[i], v, 0x1p-5*1.01, "value %d", i) // what steps of 2^-5 leave
	}
}

// Where all components turn, what QueryMetric looks at is on the diagonal: moments without covariances say the
// same.
func TestQueryMetric_WithoutCovariances(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 8))
	for _, layout := range []quant.RopeLayout{quant.RopeHalf, quant.RopeInterleaved} {
		for _, rotary := range []int{16, 12} {
			rope := NewRope(quant.Rope{Layout: layout, RotaryDim: rotary, Theta: 1e4})
			full, few := NewMoments(16, true), NewQueryMoments(16, rope)
			x := make([]float32, 16*700)
			for i := range x {
				x[i] = float32(rng.NormFloat64()) + float32(i%16)
			}
			full.Add(x)
			few.Add(x)
			if got, want := len(few.Second), 16; (rotary == 16) != (got == want) {
				t.Fatalf("%d of 16 components turn: %d moments", rotary, got)
			}
			got, want := QueryMetric(few, rope), QueryMetric(full, rope)
			for i := range want {
				if math.Abs(got[i]-want[i]) > 1e-5*math.Abs(want[i]) {
					t.Fatalf("%d of 16 components turn: entry %d is %v, want %v", rotary, i, got[i], want[i])
				}
			}
		}
	}
}
