// SPDX-License-Identifier: Apache-2.0

package vectors_test

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

var set = flag.String("set", "", "folder with base.npy and queries.npy to measure on")

// npy reads a float32 matrix in the layout that numpy writes.
func npy(t testing.TB, path string) quant.Rows {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	n := int(binary.LittleEndian.Uint16(b[8:]))
	head, b := string(b[10:10+n]), b[10+n:]
	var rows, dim int
	for i := range head {
		if _, err := sscan(head[i:], &rows, &dim); err == nil {
			break
		}
	}
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	for i := range x.Data {
		x.Data[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return x
}

func exact(base, queries quant.Rows, k int) [][]int {
	out := make([][]int, queries.Len())
	for q := range out {
		var keys []float32
		var at []int
		for r := range base.Len() {
			var s float32
			for i, v := range base.Row(r) {
				s += v * queries.Row(q)[i]
			}
			if len(at) == k && s <= keys[k-1] {
				continue
			}
			keys, at = append(keys, s), append(at, r)
			for i := len(at) - 1; i > 0 && keys[i] > keys[i-1]; i-- {
				keys[i], keys[i-1], at[i], at[i-1] = keys[i-1], keys[i], at[i-1], at[i]
			}
			if len(at) > k {
				keys, at = keys[:k], at[:k]
			}
		}
		out[q] = at
	}
	return out
}

func recall(want [][]int, got [][]vectors.Hit, k int) float64 {
	n := 0
	for q := range want {
		in := map[uint64]bool{}
		for _, r := range want[q][:k] {
			in[uint64(r)] = true
		}
		for _, h := range got[q] {
			if in[h.ID] {
				n++
			}
		}
	}
	return float64(n) / float64(k*len(want))
}

func TestMeasure(t *testing.T) {
	dir := *set
	if dir == "" {
		t.Skip("no -set")
	}
	base, queries := npy(t, dir+"/base.npy"), npy(t, dir+"/queries.npy")
	var want [][]int
	if top, err := os.ReadFile(dir + "/top10.npy"); err == nil {
		n := int(binary.LittleEndian.Uint16(top[8:]))
		top = top[10+n:]
		for i := range queries.Len() {
			var row []int
			for j := range 10 {
				row = append(row, int(binary.LittleEndian.Uint32(top[4*(10*i+j):])))
			}
			want = append(want, row)
		}
	} else {
		want = exact(base, queries, 10)
	}
	sample := quant.Rows{Dim: base.Dim, Data: base.Data[:2000*base.Dim]}
	run := func(name string, x *vectors.Index) {
		start := time.Now()
		require.NoError(t, x.Add(context.Background(), nil, base))
		added := time.Since(start)
		for _, ex := range []bool{true, false} {
			start = time.Now()
			got, err := x.Search(context.Background(), queries, 10, vectors.SearchOptions{Exhaustive: ex})
			require.NoError(t, err)
			t.Logf("%s exhaustive %v: recall %.4f, add %v, search %v", name, ex, recall(want, got, 10), added, time.Since(start))
		}
	}
	for _, b := range []float64{52, 100, 148, 196} {
		start := time.Now()
		x, err := vectors.Calibrate(sample, vectors.Options{Bytes: b, Rows: 60000})
		require.NoError(t, err)
		t.Logf("calibrate %v", time.Since(start))
		run("calibrated", x)
	}
	for bits := 1; bits <= 4; bits++ {
		x, err := vectors.Oblivious(base.Dim, bits, vectors.InnerProduct, 1)
		require.NoError(t, err)
		run("oblivious", x)
	}
}

func sscan(s string, rows, dim *int) (int, error) { return fmt.Sscanf(s, "(%d, %d)", rows, dim) }

// spectrum returns rows of 256 values whose standard deviations fall by a factor of e^-fall.
func spectrum(n int, fall float64, seed uint64) quant.Rows {
	const dim = 256
	rng := rand.New(rand.NewPCG(seed, 1))
	x := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
	for i := range x.Data {
		x.Data[i] = float32(rng.NormFloat64() * math.Exp(-fall*float64(i%dim)/dim))
	}
	return x
}

// kinds returns rows of spectrum around two centers, which most of their variance tells apart.
func kinds(n int, fall float64, seed uint64) quant.Rows {
	x := spectrum(n, fall, seed)
	for r := range n {
		for i := range 8 {
			x.Row(r)[i] += float32(12 * (r % 2))
		}
	}
	return x
}

// TestCalibrate_Head holds that what is compared first finds nearly all that whole rows find, or that there is
// no such part: rows of even variance would lose a fifth of the ten best.
func TestCalibrate_Head(t *testing.T) {
	for _, c := range []struct {
		fall float64
		head bool
		rows func(n int, fall float64, seed uint64) quant.Rows
	}{{3, true, spectrum}, {0.3, false, spectrum}, {0, false, spectrum}, {0.3, false, kinds}} {
		x, err := vectors.Calibrate(c.rows(1000, c.fall, 1), vectors.Options{Bytes: 64, Metric: vectors.Cosine})
		require.NoError(t, err)
		require.NoError(t, x.Add(context.Background(), nil, c.rows(6000, c.fall, 2)))
		require.Equal(t, c.head, x.Stats().Head < 256, "fall %g, head %d", c.fall, x.Stats().Head)
		queries := c.rows(64, c.fall, 3)
		all, err := x.Search(context.Background(), queries, 10, vectors.SearchOptions{Exhaustive: true})
		require.NoError(t, err)
		first, err := x.Search(context.Background(), queries, 10, vectors.SearchOptions{})
		require.NoError(t, err)
		want := make([][]int, len(all))
		for i, hits := range all {
			for _, h := range hits {
				want[i] = append(want[i], int(h.ID))
			}
		}
		require.GreaterOrEqual(t, recall(want, first, 10), 0.98, "fall %g", c.fall)
	}
}
