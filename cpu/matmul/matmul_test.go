// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const ulp = 0x1p-24 // half a unit in the last place of float32, relative

// engines opens every instruction set of this machine. Those named in KVIST_REQUIRE must be
// available.
func engines(t testing.TB, workers int) []*Engine {
	t.Helper()
	have := Supported()
	for _, want := range strings.FieldsFunc(os.Getenv("KVIST_REQUIRE"), func(r rune) bool {
		return r == ',' || r == ' '
	}) {
		if want == "avx2" || want == "avx512" {
			require.Contains(t, have, want, "KVIST_REQUIRE")
		}
	}
	var list []*Engine
	for _, isa := range have {
		e, err := Open(Options{ISA: isa, Workers: workers})
		require.NoError(t, err)
		require.Equal(t, isa, e.ISA())
		list = append(list, e)
	}
	return list
}

func generator(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x6b76697374)) }

func normals(r *rand.Rand, v []float32) []float32 {
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

// operands are the inputs of one product, in guarded memory, with every form of weights.
type operands struct {
	m, n, k int
	a, b    []float32
	w8      *Q8Matrix
	w4      *Q4Matrix
}

func makeOperands(t testing.TB, r *rand.Rand, m, n, k int, front bool) *operands {
	o := &operands{m: m, n: n, k: k}
	o.a = normals(r, guarded[float32](t, m*k, front))
	o.b = normals(r, guarded[float32](t, n*k, front))
	if k%groupSize != 0 {
		return o
	}
	c8, c4 := make([]int8, n*k), make([]uint8, n*k)
	for i := range c8 {
		c8[i], c4[i] = int8(r.Uint32()), uint8(r.Uint32()&15)
	}
	scales := normals(r, make([]float32, n*k/groupSize))
	mins := normals(r, make([]float32, n*k/groupSize))
	var err error
	o.w8, err = NewQ8(n, k, c8, scales)
	require.NoError(t, err)
	o.w4, err = NewQ4(n, k, c4, scales, mins)
	require.NoError(t, err)
	o.w8.codes = moved(t, o.w8.codes, front)
	o.w8.scales = moved(t, o.w8.scales, front)
	o.w4.codes = moved(t, o.w4.codes, front)
	o.w4.scales = moved(t, o.w4.scales, front)
	o.w4.mins = moved(t, o.w4.mins, front)
	return o
}

// moved copies v into guarded memory.
func moved[T any](t testing.TB, v []T, front bool) []T {
	g := guarded[T](t, len(v), front)
	copy(g, v)
	return g
}

// rows returns the weights that row expands, [n, k].
func (o *operands) rows(row func(i int, dst []float32)) []float32 {
	w := make([]float32, o.n*o.k)
	for i := range o.n {
		row(i, w[i*o.k:(i+1)*o.k])
	}
	return w
}

// checkFloat compares c with the float64 product. The bound holds for any order of sums.
func (o *operands) checkFloat(t *testing.T, c, w []float32, what string) {
	t.Helper()
	for i := range o.m {
		for j := range o.n {
			var want, size float64
			for l := range o.k {
				p := float64(o.a[i*o.k+l]) * float64(w[j*o.k+l])
				want += p
				size += math.Abs(p)
			}
			bound := float64(o.k+2) * ulp * size
			if d := math.Abs(float64(c[i*o.n+j]) - want); !(d <= bound) {
				t.Fatalf("%s: c[%d,%d] = %v, want %v, off by %g, bound %g",
					what, i, j, c[i*o.n+j], want, d, bound)
			}
		}
	}
}

// quantized quantizes one group of activations as the package comment says, independently of the
// kernels.
func quantized(x []float32) (codes []int, scale float32, sum int) {
	var largest float32
	for _, v := range x {
		largest = max(largest, float32(math.Abs(float64(v))))
	}
	codes = make([]int, len(x))
	if largest < 0x1p-100 {
		return codes, 0, 0
	}
	inv := 127 / largest
	for i, v := range x {
		codes[i] = int(math.RoundToEven(float64(v * inv)))
		sum += codes[i]
	}
	return codes, largest / 127, sum
}

// checkInteger compares c with the documented sum over groups in float64, and checks the documented
// distance to the product of unquantized activations.
func (o *operands) checkInteger(t *testing.T, c, w []float32, what string,
	code func(row, col int) (code int, scale, least float32)) {
	t.Helper()
	for i := range o.m {
		for j := range o.n {
			var want, size, exact, noise, weight float64
			for g := 0; g < o.k; g += groupSize {
				codes, sa, total := quantized(o.a[i*o.k+g : i*o.k+g+groupSize])
				sum := 0
				var sw, least float32
				weight = 0
				for l, x := range codes {
					var y int
					y, sw, least = code(j, g+l)
					sum += x * y
					exact += float64(o.a[i*o.k+g+l]) * float64(w[j*o.k+g+l])
					weight += math.Abs(float64(w[j*o.k+g+l]))
				}
				p := float64(sum) * float64(sa) * float64(sw)
				q := float64(least) * float64(sa) * float64(total)
				want += p + q
				size += math.Abs(p) + math.Abs(q)
				noise += float64(sa) / 2 * weight
			}
			got := float64(c[i*o.n+j])
			bound := float64(2*o.k/groupSize+4) * ulp * size
			if d := math.Abs(got - want); !(d <= bound) {
				t.Fatalf("%s: c[%d,%d] = %v, want %v, off by %g, bound %g",
					what, i, j, got, want, d, bound)
			}
			// Rounding of a*inv may add an ulp or two of a code to the half step.
			bound += noise*(1+1e-4) + float64(o.k)*ulp*size
			if d := math.Abs(got - exact); !(d <= bound) {
				t.Fatalf("%s: c[%d,%d] = %v, unquantized %v, off by %g, bound %g",
					what, i, j, got, exact, d, bound)
			}
		}
	}
}

func (o *operands) code8(row, col int) (int, float32, float32) {
	p := (row/panelWidth*(o.k/groupSize) + col/groupSize)
	v := o.w8.codes[p*panelBytes8+col%groupSize/4*64+row%panelWidth*4+col%4]
	return int(int8(v)), o.w8.scales[p*panelWidth+row%panelWidth], 0
}

func (o *operands) code4(row, col int) (int, float32, float32) {
	p := (row/panelWidth*(o.k/groupSize) + col/groupSize)
	in := col % groupSize
	v := o.w4.codes[p*panelBytes4+in%16/4*64+row%panelWidth*4+in%4] >> (in / 16 * 4) & 15
	at := p*panelWidth + row%panelWidth
	return int(v), o.w4.scales[at], o.w4.mins[at]
}

// shapes covers every tile edge and random sizes up to 70.
func shapes(r *rand.Rand) [][3]int {
	list := [][3]int{{1, 1, 32}, {70, 70, 64}, {13, 33, 576}, {3, 49, 1536}, {1, 64, 1536},
		{17, 16, 384}, {29, 32, 416}, {12, 48, 800}, {50, 31, 32}}
	for m := 1; m <= 70; m += 1 + m/17 {
		list = append(list, [3]int{m, 1 + r.IntN(70), 32 * (1 + r.IntN(5))})
	}
	for n := 1; n <= 70; n += 1 + n/24 {
		list = append(list, [3]int{1 + r.IntN(70), n, 32 * (1 + r.IntN(3))})
	}
	return list
}

// same requires equal bits.
func same(t *testing.T, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i := range want {
		if math.Float32bits(want[i]) != math.Float32bits(got[i]) {
			t.Fatalf("%s: element %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

// TestProducts compares every product on every instruction set with float64, and the vector
// instruction sets with each other, bit for bit. Outputs start as NaN, so that every element must
// be written.
func TestProducts(t *testing.T) {
	r := generator(1)
	list := engines(t, 2)
	for i, s := range shapes(r) {
		o := makeOperands(t, r, s[0], s[1], s[2], i%2 == 0)
		w8, w4 := o.rows(o.w8.Row), o.rows(o.w4.Row)
		var first map[string][]float32
		for _, e := range list {
			out := map[string][]float32{}
			do := func(name string, f func(c []float32) error) {
				c := guarded[float32](t, o.m*o.n, i%2 == 0)
				for j := range c {
					c[j] = float32(math.NaN())
				}
				require.NoError(t, f(c))
				out[name] = c
			}
			do("F32", func(c []float32) error { return e.F32(c, o.a, o.b, o.m, o.n, o.k) })
			do("F32w8", func(c []float32) error { return e.F32(c, o.a, w8, o.m, o.n, o.k) })
			do("F32w4", func(c []float32) error { return e.F32(c, o.a, w4, o.m, o.n, o.k) })
			do("Q8Exact", func(c []float32) error { return e.Q8Exact(c, o.a, o.w8, o.m) })
			do("Q4Exact", func(c []float32) error { return e.Q4Exact(c, o.a, o.w4, o.m) })
			do("Q8", func(c []float32) error { return e.Q8(c, o.a, o.w8, o.m) })
			do("Q4", func(c []float32) error { return e.Q4(c, o.a, o.w4, o.m) })
			what := fmt.Sprintf("isa=%s m=%d n=%d k=%d", e.ISA(), o.m, o.n, o.k)
			o.checkFloat(t, out["F32"], o.b, what+" F32")
			same(t, out["F32w8"], out["Q8Exact"], what+" Q8Exact")
			same(t, out["F32w4"], out["Q4Exact"], what+" Q4Exact")
			o.checkFloat(t, out["Q8Exact"], w8, what+" Q8Exact")
			o.checkFloat(t, out["Q4Exact"], w4, what+" Q4Exact")
			o.checkInteger(t, out["Q8"], w8, what+" Q8", o.code8)
			o.checkInteger(t, out["Q4"], w4, what+" Q4", o.code4)
			if first != nil && e.ISA() != "generic" {
				for name, c := range out {
					same(t, first[name], c, what+" against "+list[0].ISA()+" "+name)
				}
			}
			first = out
		}
	}
}

// TestF32_AnyK tests every k from 0 to 67 and some that cross a block of k.
func TestF32_AnyK(t *testing.T) {
	r := generator(2)
	for _, e := range engines(t, 2) {
		for k := 0; k <= 70; k++ {
			kk := k
			if k > 67 {
				kk = []int{383, 385, 1537}[k-68]
			}
			o := makeOperands(t, r, 1+r.IntN(20), 1+r.IntN(40), kk, k%2 == 0)
			c := normals(r, guarded[float32](t, o.m*o.n, k%2 == 0))
			require.NoError(t, e.F32(c, o.a, o.b, o.m, o.n, o.k))
			o.checkFloat(t, c, o.b, fmt.Sprintf("isa=%s m=%d n=%d k=%d", e.ISA(), o.m, o.n, kk))
		}
	}
}

// TestInteger_ExactValues uses values for which every float operation is exact. All instruction
// sets must give the integers, including extremes.
func TestInteger_ExactValues(t *testing.T) {
	r := generator(3)
	const m, n, k = 21, 35, 96
	pick := func(extreme bool, low, high int) int {
		if extreme {
			return []int{low, high}[r.IntN(2)]
		}
		return low + r.IntN(high-low+1)
	}
	for _, extreme := range []bool{false, true} {
		a := make([]float32, m*k)
		for i := range a {
			a[i] = float32(pick(extreme, -127, 127))
			if i%groupSize == 0 {
				a[i] = 127 // fixes the group's scale at 1
			}
		}
		c8, c4 := make([]int8, n*k), make([]uint8, n*k)
		for i := range c8 {
			c8[i], c4[i] = int8(pick(extreme, -128, 127)), uint8(pick(extreme, 0, 15))
		}
		scales, mins := make([]float32, n*k/groupSize), make([]float32, n*k/groupSize)
		for i := range scales {
			scales[i], mins[i] = []float32{0.5, 1, 2}[i%3], float32(i%7-3)
		}
		w8, err := NewQ8(n, k, c8, scales)
		require.NoError(t, err)
		w4, err := NewQ4(n, k, c4, scales, mins)
		require.NoError(t, err)
		for _, e := range engines(t, 1) {
			got8, got4 := make([]float32, m*n), make([]float32, m*n)
			require.NoError(t, e.Q8(got8, a, w8, m))
			require.NoError(t, e.Q4(got4, a, w4, m))
			for i := range m {
				for j := range n {
					var want8, want4 float64
					for l := range k {
						x, g := float64(a[i*k+l]), (j*k+l)/groupSize
						want8 += x * float64(scales[g]) * float64(c8[j*k+l])
						want4 += x * (float64(scales[g])*float64(c4[j*k+l]) + float64(mins[g]))
					}
					require.Equal(t, float32(want8), got8[i*n+j], "%s Q8 %d,%d", e.ISA(), i, j)
					require.Equal(t, float32(want4), got4[i*n+j], "%s Q4 %d,%d", e.ISA(), i, j)
				}
			}
		}
	}
}

// TestQuantize compares the activation quantizer of every instruction set with plain Go, on values
// that test rounding, overflow and NaN.
func TestQuantize(t *testing.T) {
	r := generator(4)
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	special := []float32{0, float32(math.Copysign(0, -1)), math.MaxFloat32, -math.MaxFloat32,
		math.SmallestNonzeroFloat32, 0x1p-100, 0x1p-101, 0x1.fffffep-101, inf, -inf, nan, 1, 0.5, 127}
	for round := range 400 {
		rows, groups := 1+r.IntN(16), 1+r.IntN(4)
		src := make([]float32, groups*groupSize)
		scale := float32(math.Exp2(float64(r.IntN(250) - 125)))
		for i := range src {
			src[i] = float32(r.NormFloat64()) * scale
			if round%4 == 1 { // many ties of the rounding
				src[i] = float32(r.IntN(509)-254) / 2 * scale
			}
			if round%4 == 2 {
				src[i] = 0
			}
		}
		if round%4 >= 2 {
			for range 1 + r.IntN(2) {
				src[r.IntN(len(src))] = special[r.IntN(len(special))]
			}
		}
		var want tile
		for i, k := range append([]*kernels{genericKernels()}, native()...) {
			n := rows * groups
			got := tile{rows: rows, groups: groups,
				codes: guarded[int8](t, n*groupSize, false), scale: guarded[float32](t, n, false),
				sum: guarded[float32](t, n, false), bias: guarded[int32](t, n, false)}
			for row := range rows {
				k.quantize(got, row, moved(t, src, row%2 == 0))
			}
			if i == 0 {
				want = got
				continue
			}
			require.Equal(t, want.codes, got.codes, "%s round %d", k.isa, round)
			require.Equal(t, want.bias, got.bias, "%s round %d", k.isa, round)
			same(t, want.scale, got.scale, k.isa+" scale")
			same(t, want.sum, got.sum, k.isa+" sum")
		}
	}
}

// TestNotFinite: a NaN or an infinity in an activation changes its row of c and no other.
func TestNotFinite(t *testing.T) {
	r := generator(5)
	for _, e := range engines(t, 2) {
		for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			o := makeOperands(t, r, 19, 33, 96, false)
			o.a[7*o.k+40] = float32(bad)
			for _, f := range []func(c []float32) error{
				func(c []float32) error { return e.Q8(c, o.a, o.w8, o.m) },
				func(c []float32) error { return e.Q4(c, o.a, o.w4, o.m) },
			} {
				c := make([]float32, o.m*o.n)
				require.NoError(t, f(c))
				for i, v := range c {
					require.Equal(t, i/o.n == 7, math.IsNaN(float64(v)), "%s %d", e.ISA(), i)
				}
			}
		}
	}
}

// all runs every product that o supports, by name.
func (o *operands) all(t *testing.T, e *Engine) map[string][]float32 {
	out := map[string][]float32{}
	do := func(name string, f func(c []float32) error) {
		out[name] = make([]float32, o.m*o.n)
		if err := f(out[name]); err != nil { // not require: may run in a goroutine
			t.Error(err)
		}
	}
	do("F32", func(c []float32) error { return e.F32(c, o.a, o.b, o.m, o.n, o.k) })
	do("Q8", func(c []float32) error { return e.Q8(c, o.a, o.w8, o.m) })
	do("Q4", func(c []float32) error { return e.Q4(c, o.a, o.w4, o.m) })
	do("Q8Exact", func(c []float32) error { return e.Q8Exact(c, o.a, o.w8, o.m) })
	do("Q4Exact", func(c []float32) error { return e.Q4Exact(c, o.a, o.w4, o.m) })
	return out
}

// TestWorkers_SameBits: the bits do not depend on the number of workers or on the other rows of a call.
func TestWorkers_SameBits(t *testing.T) {
	r := generator(6)
	for _, s := range [][3]int{{200, 50, 64}, {130, 33, 96}, {5, 700, 416}, {1, 900, 192}} {
		o := makeOperands(t, r, s[0], s[1], s[2], false)
		for _, one := range engines(t, 1) {
			want := o.all(t, one)
			for _, workers := range []int{2, 3, 7, 32} {
				e, err := Open(Options{ISA: one.ISA(), Workers: workers})
				require.NoError(t, err)
				for name, c := range o.all(t, e) {
					same(t, want[name], c, fmt.Sprintf("isa=%s workers=%d %s", e.ISA(), workers, name))
				}
			}
			for _, row := range []int{0, o.m / 2, o.m - 1} {
				single := *o
				single.m, single.a = 1, o.a[row*o.k:(row+1)*o.k]
				for name, c := range single.all(t, one) {
					same(t, want[name][row*o.n:(row+1)*o.n], c, one.ISA()+" one row "+name)
				}
			}
		}
	}
}

// TestConcurrent: one Engine, many goroutines, small and large products at once.
func TestConcurrent(t *testing.T) {
	r := generator(7)
	for _, e := range engines(t, 3) {
		list := []*operands{makeOperands(t, r, 1, 300, 96, false),
			makeOperands(t, r, 60, 70, 64, false), makeOperands(t, r, 3, 5, 32, false)}
		var want []map[string][]float32
		for _, o := range list {
			want = append(want, o.all(t, e))
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 6 {
					which := (g + i) % len(list)
					for name, c := range list[which].all(t, e) {
						for j, v := range want[which][name] {
							if v != c[j] {
								t.Errorf("%s %s: element %d is %v, want %v", e.ISA(), name, j, c[j], v)
								return
							}
						}
					}
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, e.workers-1, e.helpers.Load(), "helpers given back")
	}
}

func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop items at random")
	}
	r := generator(8)
	o := makeOperands(t, r, 20, 256, 128, false)
	c := make([]float32, o.m*o.n)
	for _, e := range engines(t, 2) {
		run := func() {
			_ = e.F32(c, o.a, o.b, o.m, o.n, o.k)
			_ = e.Q4(c, o.a, o.w4, o.m)
			_ = e.Q8Exact(c, o.a, o.w8, o.m)
		}
		require.Less(t, testing.AllocsPerRun(100, run), 1.0, e.ISA())
	}
}
