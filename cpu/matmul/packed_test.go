// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// testForms are the forms of GGUF's types, and two that no type has.
var testForms = []struct {
	name string
	form Form
}{
	{"Q4_0", Form{Bits: 4, Offset: 8, Step: 32, Span: 32}},
	{"Q4_1", Form{Bits: 4, Step: 32, Span: 32, Mins: true}},
	{"Q5_0", Form{Bits: 5, Offset: 16, Step: 32, Span: 32}},
	{"Q5_1", Form{Bits: 5, Step: 32, Span: 32, Mins: true}},
	{"Q8_0", Form{Bits: 8, Offset: 128, Step: 32, Span: 32}},
	{"Q2_K", Form{Bits: 2, Step: 16, Span: 256, Mins: true}},
	{"Q3_K", Form{Bits: 3, Offset: 4, Step: 16, Span: 256}},
	{"Q4_K", Form{Bits: 4, Step: 32, Span: 256, Mins: true}},
	{"Q5_K", Form{Bits: 5, Step: 32, Span: 256, Mins: true}},
	{"Q6_K", Form{Bits: 6, Offset: 32, Step: 16, Span: 256}},
	{"IQ4_NL", Form{Bits: 4, Step: 32, Span: 32, Table: &testTable}},
	{"IQ4_XS", Form{Bits: 4, Step: 32, Span: 256, Table: &testTable}},
	{"MXFP4", Form{Bits: 4, Step: 32, Span: 32, Table: &testTable, Wide: true}},
	{"8 bits in 16", Form{Bits: 8, Offset: 128, Step: 16, Span: 16, Mins: true}},
	{"6 bits in 64", Form{Bits: 6, Offset: 1, Step: 16, Span: 64, Mins: true}},
}

var testTable = [16]int8{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// value returns a random v of a form, often an extreme one.
func (f Form) value(r *rand.Rand) int8 {
	c := r.IntN(1 << f.Bits)
	if e := r.IntN(8); e < 2 {
		c = e * (1<<f.Bits - 1)
	}
	if f.Table != nil {
		return f.Table[c]
	}
	return int8(c - f.Offset)
}

func randomRow(r *rand.Rand, f Form, k int) WeightRow {
	row := WeightRow{Codes: make([]int8, k)}
	for i := range row.Codes {
		row.Codes[i] = f.value(r)
	}
	bases := func() []float32 {
		v := normals(r, make([]float32, k/f.Span))
		for i := range v {
			if !f.Wide {
				v[i] = quant.F16ToF32(quant.F32ToF16(v[i]))
			}
		}
		return v
	}
	steps := func() []int8 {
		v := make([]int8, k/f.Step)
		for i := range v {
			v[i] = int8(r.Uint32())
		}
		return v
	}
	row.Scales = bases()
	if f.Mins {
		row.Mins = bases()
	}
	if f.Span > f.Step {
		row.Steps = steps()
		if f.Mins {
			row.MinStep = steps()
		}
	}
	return row
}

// randomMatrix makes a matrix whose arrays are in guarded memory.
func randomMatrix(t testing.TB, r *rand.Rand, f Form, n, k int, front bool) (*Matrix, []WeightRow) {
	w, err := NewMatrix(f, n, k)
	require.NoError(t, err)
	w.codes = moved(t, w.codes, front)
	if f.Wide {
		w.wide = moved(t, w.wide, front)
	} else {
		w.scales = moved(t, w.scales, front)
	}
	if f.Mins {
		w.mins = moved(t, w.mins, front)
	}
	if f.Span > f.Step {
		w.steps = moved(t, w.steps, front)
		if f.Mins {
			w.minSub = moved(t, w.minSub, front)
		}
	}
	rows := make([]WeightRow, n)
	for i := range rows {
		rows[i] = randomRow(r, f, k)
		require.NoError(t, w.SetRow(i, rows[i]))
	}
	return w, rows
}

// at returns the integer, the scale and the minimum of input j, from the row that was set.
func (r WeightRow) at(f Form, j int) (v int, scale, least float32) {
	scale = r.Scales[j/f.Span]
	if f.Span > f.Step {
		scale *= float32(r.Steps[j/f.Step])
	}
	if f.Mins {
		least = r.Mins[j/f.Span]
		if f.Span > f.Step {
			least *= float32(r.MinStep[j/f.Step])
		}
	}
	return int(r.Codes[j]), scale, least
}

func TestMatrix_Row(t *testing.T) {
	r := generator(30)
	for _, f := range testForms {
		w, rows := randomMatrix(t, r, f.form, 19, 512, false)
		require.Equal(t, [2]int{19, 512}, [2]int{w.N(), w.K()})
		for i := range rows { // once more, over what is there
			rows[i] = randomRow(r, f.form, 512)
			require.NoError(t, w.SetRow(i, rows[i]))
		}
		for i, row := range rows {
			got := make([]float32, 514)
			got[512] = 5
			w.Row(i, got)
			for j := range 512 {
				v, scale, least := row.at(f.form, j)
				p := float32(scale * float32(v))
				require.Equal(t, p+least, got[j], "%s row %d column %d", f.name, i, j)
			}
			require.Equal(t, []float32{5, 0}, got[512:])
		}
		short := []float32{9, 9}
		w.Row(-1, short)
		w.Row(19, short)
		require.Equal(t, []float32{9, 9}, short)
	}
}

// TestMatrix_Size: memory is close to what GGUF takes for the same weights.
func TestMatrix_Size(t *testing.T) {
	bits := map[string][2]float64{ // of a weight: here, in a GGUF file
		"Q4_0": {4.5, 4.5}, "Q4_1": {5, 5}, "Q5_0": {5.5, 5.5}, "Q5_1": {6, 6}, "Q8_0": {8.5, 8.5},
		"Q2_K": {3.125, 2.625}, "Q3_K": {3.5625, 3.4375}, "Q4_K": {4.625, 4.5}, "Q5_K": {5.625, 5.5},
		"Q6_K": {6.5625, 6.5625}, "IQ4_NL": {4.5, 4.5}, "IQ4_XS": {4.3125, 4.25}, "MXFP4": {5, 4.25}}
	for _, f := range testForms {
		want, ok := bits[f.name]
		if !ok {
			continue
		}
		w, err := NewMatrix(f.form, 32, 1024)
		require.NoError(t, err)
		require.InDelta(t, want[0], float64(8*w.SizeBytes())/(32*1024), 1e-9, f.name)
		require.Less(t, want[0]/want[1], 1.2, f.name)
	}
}

// matrixShapes are tile edges of every instruction set; k is a multiple of 256.
var matrixShapes = [][3]int{{1, 1, 256}, {1, 70, 512}, {2, 33, 256}, {3, 16, 768}, {17, 31, 256},
	{21, 48, 512}, {4, 40, 1024}, {50, 17, 256}, {2, 140, 256}}

// TestMatrix_Products compares exact and fast products of every form with float64 arithmetic on the
// rows that were set, and the vector instruction sets with each other.
func TestMatrix_Products(t *testing.T) {
	r := generator(31)
	list := engines(t, 2)
	for _, f := range testForms {
		for i, s := range matrixShapes {
			m, n, k := s[0], s[1], s[2]
			front := i%2 == 0
			w, rows := randomMatrix(t, r, f.form, n, k, front)
			o := &operands{m: m, n: n, k: k, a: normals(r, guarded[float32](t, m*k, front))}
			plain := o.rows(w.Row)
			var exact, fast []float32
			for _, e := range list {
				what := fmt.Sprintf("%s isa=%s m=%d n=%d k=%d", f.name, e.ISA(), m, n, k)
				ref, gotE, gotF := make([]float32, m*n), nans(t, m*n, front), nans(t, m*n, front)
				require.NoError(t, e.F32(ref, o.a, plain, m, n, k))
				require.NoError(t, e.Exact(gotE, o.a, w, m))
				require.NoError(t, e.Fast(gotF, o.a, w, m))
				same(t, ref, gotE, what+" exact")
				o.checkFloat(t, gotE, plain, what+" exact")
				o.checkFast(t, gotF, f.form, rows, what)
				if exact != nil && e.ISA() != "generic" {
					same(t, exact, gotE, what+" exact between instruction sets")
					same(t, fast, gotF, what+" fast between instruction sets")
				}
				exact, fast = gotE, gotF
			}
		}
	}
}

func nans(t testing.TB, n int, front bool) []float32 {
	v := guarded[float32](t, n, front)
	for i := range v {
		v[i] = float32(math.NaN())
	}
	return v
}

// checkFast compares c with the documented sum over steps in float64, and with the product of
// activations that are not quantized.
func (o *operands) checkFast(t *testing.T, c []float32, f Form, rows []WeightRow, what string) {
	t.Helper()
	for i := range o.m {
		var codes []int
		var scales []float32
		for g := 0; g < o.k; g += groupSize {
			q, s, _ := quantized(o.a[i*o.k+g : i*o.k+g+groupSize])
			codes, scales = append(codes, q...), append(scales, s)
		}
		for j, row := range rows {
			var want, size, exact, noise float64
			for s := 0; s < o.k; s += f.Step {
				var sum, total int
				_, sw, least := row.at(f, s)
				sa := float64(scales[s/groupSize])
				for l := s; l < s+f.Step; l++ {
					v, _, _ := row.at(f, l)
					sum += codes[l] * v
					total += codes[l]
					weight := float64(float32(sw*float32(v)) + least)
					exact += float64(o.a[i*o.k+l]) * weight
					noise += sa / 2 * math.Abs(weight)
				}
				p, q := float64(sum)*sa*float64(sw), float64(least)*sa*float64(total)
				want += p + q
				size += math.Abs(p) + math.Abs(q)
			}
			got := float64(c[i*o.n+j])
			bound := float64(2*o.k/f.Step+4) * ulp * size
			if d := math.Abs(got - want); !(d <= bound) {
				t.Fatalf("%s fast: c[%d,%d] = %v, want %v, off by %g, bound %g", what, i, j, got, want, d, bound)
			}
			bound += noise*(1+1e-4) + float64(o.k)*ulp*size
			if d := math.Abs(got - exact); !(d <= bound) {
				t.Fatalf("%s fast: c[%d,%d] = %v, unquantized %v, off by %g, bound %g", what, i, j, got, exact, d, bound)
			}
		}
	}
}

// TestMatrix_Kernels compares unpacking, scales and the sums of halves with plain Go on random
// bytes, binary16 infinities and NaN included.
func TestMatrix_Kernels(t *testing.T) {
	r := generator(32)
	plain := genericKernels()
	for _, k := range native() {
		for round := range 40 {
			groups, front := 1+r.IntN(9), round%2 == 0
			for bits := 2; bits <= 6; bits++ {
				src := randomBytes(r, guarded[uint8](t, groups*64*bits, front))
				var consts [16]uint8
				randomBytes(r, consts[:])
				if bits > 4 {
					consts = [16]uint8(slices.Repeat(consts[:1], 16))
				}
				want, got := make([]uint8, groups*panelBytes8), guarded[uint8](t, groups*panelBytes8, front)
				plain.unpack(want, src, bits, &consts, groups)
				k.unpack(got, src, bits, &consts, groups)
				require.Equal(t, want, got, "%s %d bits", k.isa, bits)
			}
			per := 1 << r.IntN(5)
			base := guarded[uint16](t, groups*panelWidth, front)
			for i := range base {
				base[i] = uint16(r.Uint32())
			}
			steps := guarded[int8](t, groups*per*panelWidth, front)
			for i := range steps {
				steps[i] = int8(r.Uint32())
			}
			for _, s := range [][]int8{nil, steps} {
				n, each := groups*per, per
				if s == nil {
					n, each = groups, 1
				}
				want, got := make([]float32, n*panelWidth), guarded[float32](t, n*panelWidth, front)
				plain.scales(want, base, s, n, each)
				k.scales(got, base, s, n, each)
				for i := range want {
					require.True(t, want[i] == got[i] || want[i] != want[i] && got[i] != got[i],
						"%s scale %d is %v, want %v", k.isa, i, got[i], want[i])
				}
			}
			checkHalves(t, r, plain, k, 1+r.IntN(16), groups, front)
		}
	}
}

func checkHalves(t *testing.T, r *rand.Rand, plain, k *kernels, rows, groups int, front bool) {
	made := func() tile {
		n := rows * groups
		return tile{rows: rows, groups: groups, codes: guarded[int8](t, n*groupSize, front),
			scale: guarded[float32](t, n, front), sum: make([]float32, n), bias: make([]int32, n),
			halfSum: guarded[float32](t, 2*n, front), halfBias: guarded[int32](t, 2*n, front)}
	}
	want, got := made(), made()
	for i := range want.codes {
		want.codes[i] = int8(r.Uint32())
	}
	normals(r, want.scale)
	copy(got.codes, want.codes)
	copy(got.scale, want.scale)
	for row := range rows {
		plain.halves(want, row)
		k.halves(got, row)
	}
	require.Equal(t, want.halfSum, got.halfSum, k.isa)
	require.Equal(t, want.halfBias, got.halfBias, k.isa)
}

func randomBytes(r *rand.Rand, b []uint8) []uint8 {
	for i := range b {
		b[i] = uint8(r.Uint32())
	}
	return b
}

// TestMatrix_WorkersSameBits: the bits do not depend on workers or on the other rows of a call, and a NaN
// stays in its row.
func TestMatrix_WorkersSameBits(t *testing.T) {
	r := generator(33)
	for _, f := range testForms {
		const m, n, k = 37, 90, 512
		w, _ := randomMatrix(t, r, f.form, n, k, false)
		a := normals(r, make([]float32, m*k))
		for _, one := range engines(t, 1) {
			products := func(e *Engine, a []float32, m int) [2][]float32 {
				c := [2][]float32{make([]float32, m*n), make([]float32, m*n)}
				require.NoError(t, e.Exact(c[0], a, w, m))
				require.NoError(t, e.Fast(c[1], a, w, m))
				return c
			}
			want := products(one, a, m)
			more, err := Open(Options{ISA: one.ISA(), Workers: 5})
			require.NoError(t, err)
			for p, c := range products(more, a, m) {
				same(t, want[p], c, fmt.Sprintf("%s %s workers, product %d", f.name, one.ISA(), p))
			}
			for _, row := range []int{0, 20, m - 1} {
				for p, c := range products(one, a[row*k:(row+1)*k], 1) {
					same(t, want[p][row*n:(row+1)*n], c, f.name+" one row "+one.ISA())
				}
			}
			bad := slices.Clone(a)
			bad[7*k+40] = float32(math.NaN())
			for i, v := range products(one, bad, m)[1] {
				require.Equal(t, i/n == 7, math.IsNaN(float64(v)), "%s %s element %d", f.name, one.ISA(), i)
			}
		}
	}
}

func TestMatrix_Errors(t *testing.T) {
	q4k := testForms[7].form
	for _, f := range []Form{{}, {Bits: 7, Step: 32, Span: 32}, {Bits: 4, Step: 8, Span: 32},
		{Bits: 4, Step: 32, Span: 16}, {Bits: 4, Step: 32, Span: 512}, {Bits: 4, Step: 32, Span: 96},
		{Bits: 8, Offset: 0, Step: 32, Span: 32}, {Bits: 4, Offset: 16, Step: 32, Span: 32},
		{Bits: 5, Step: 32, Span: 32, Table: &testTable}, {Bits: 4, Step: 32, Span: 64, Wide: true},
		{Bits: 4, Step: 32, Span: 32, Wide: true, Mins: true}} {
		_, err := NewMatrix(f, 1, 256)
		require.ErrorIs(t, err, quant.ErrUnsupported, "%+v", f)
	}
	for _, s := range [][2]int{{-1, 256}, {1, -256}, {1, 128}, {maxInt / 4, 256}, {maxInt / 256, 256}} {
		_, err := NewMatrix(q4k, s[0], s[1])
		require.ErrorIs(t, err, quant.ErrShape, "%v", s)
	}
	w, err := NewMatrix(q4k, 3, 256)
	require.NoError(t, err)
	r := generator(34)
	row := randomRow(r, q4k, 256)
	require.NoError(t, w.SetRow(1, row))
	want := make([]float32, 256)
	w.Row(1, want)
	for name, change := range map[string]func(*WeightRow){
		"codes":     func(r *WeightRow) { r.Codes = r.Codes[1:] },
		"scales":    func(r *WeightRow) { r.Scales = nil },
		"mins":      func(r *WeightRow) { r.Mins = nil },
		"steps":     func(r *WeightRow) { r.Steps = r.Steps[1:] },
		"min steps": func(r *WeightRow) { r.MinStep = nil },
	} {
		bad := randomRow(r, q4k, 256)
		change(&bad)
		require.ErrorIs(t, w.SetRow(1, bad), quant.ErrShape, name)
	}
	require.ErrorIs(t, w.SetRow(-1, row), quant.ErrShape)
	require.ErrorIs(t, w.SetRow(3, row), quant.ErrShape)
	bad := randomRow(r, q4k, 256)
	bad.Codes[255] = 16
	require.ErrorIs(t, w.SetRow(1, bad), quant.ErrRange)
	bad.Codes[255] = -1
	require.ErrorIs(t, w.SetRow(1, bad), quant.ErrRange)
	bad.Codes[255], bad.Scales[0] = 0, 1+0x1p-20
	require.ErrorIs(t, w.SetRow(1, bad), quant.ErrRange)
	got := make([]float32, 256)
	w.Row(1, got)
	require.Equal(t, want, got, "nothing written on an error")
	table, err := NewMatrix(testForms[10].form, 1, 32)
	require.NoError(t, err)
	require.ErrorIs(t, table.SetRow(0, WeightRow{Codes: make([]int8, 32), Scales: []float32{1}}), quant.ErrRange,
		"0 is not in the table")
	e, err := Open(Options{Workers: 1})
	require.NoError(t, err)
	c := make([]float32, 9)
	require.ErrorIs(t, e.Fast(c, nil, nil, 1), quant.ErrShape)
	require.ErrorIs(t, e.Exact(c, nil, nil, 1), quant.ErrShape)
	require.ErrorIs(t, e.Fast(c, make([]float32, 255), w, 1), quant.ErrShape)
	require.ErrorIs(t, e.Exact(c[:2], make([]float32, 256), w, 1), quant.ErrShape)
	empty, err := NewMatrix(q4k, 4, 0)
	require.NoError(t, err)
	c[3] = 1
	require.NoError(t, e.Fast(c, nil, empty, 1))
	require.Zero(t, c[3])
}

func TestMatrix_NoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop items at random")
	}
	r := generator(35)
	for _, f := range testForms {
		w, _ := randomMatrix(t, r, f.form, 64, 512, false)
		a, c := normals(r, make([]float32, 20*512)), make([]float32, 20*64)
		for _, e := range engines(t, 2) {
			run := func() {
				_ = e.Fast(c, a, w, 20)
				_ = e.Exact(c, a, w, 20)
			}
			run()
			require.Less(t, testing.AllocsPerRun(20, run), 1.0, "%s %s", f.name, e.ISA())
		}
	}
}
