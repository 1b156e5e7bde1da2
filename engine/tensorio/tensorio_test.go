// SPDX-License-Identifier: Apache-2.0

package tensorio_test

import (
	"math"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/engine/tensorio"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func dense(dims ...int) *tensor.Dense {
	n := 1
	for _, d := range dims {
		n *= d
	}
	data := make([]float32, n)
	for i := range data {
		data[i] = float32(i)
	}
	return tensor.New(tensor.WithShape(dims...), tensor.WithBacking(data))
}

// Rows, tensor and rows again are one memory.
func TestDense_SharesMemory(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dims := rapid.SliceOfN(rapid.IntRange(1, 5), 0, 4).Draw(rt, "dims")
		dims = append(dims, rapid.IntRange(1, 70).Draw(rt, "dim"))
		x := dense(dims...)
		rows, got, err := tensorio.FromDense(x)
		require.NoError(rt, err)
		require.Equal(rt, dims, got)
		require.Equal(rt, dims[len(dims)-1], rows.Dim)
		require.Equal(rt, x.Shape().TotalSize(), len(rows.Data))
		require.Equal(rt, len(rows.Data), cap(rows.Data), "an append reaches the tensor's memory")
		require.Equal(rt, x.Uintptr(), uintptr(unsafe.Pointer(&rows.Data[0])))
		rows.Data[len(rows.Data)-1] = -7
		require.Equal(rt, float32(-7), x.Data().([]float32)[len(rows.Data)-1])

		back, err := tensorio.ToDense(rows, dims...)
		require.NoError(rt, err)
		require.Equal(rt, dims, []int(back.Shape()))
		require.Equal(rt, x.Uintptr(), back.Uintptr())
		flat, err := tensorio.ToDense(rows)
		require.NoError(rt, err)
		require.Equal(rt, []int{rows.Len(), rows.Dim}, []int(flat.Shape()))
		again, _, err := tensorio.FromDense(flat)
		require.NoError(rt, err)
		require.Equal(rt, rows, again)
	})
}

// Neither direction allocates anything that grows with the values.
func TestDense_DoesNotCopy(t *testing.T) {
	x := dense(64, 1024)
	bytes := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rows, dims, err := tensorio.FromDense(x)
			require.NoError(b, err)
			_, err = tensorio.ToDense(rows, dims...)
			require.NoError(b, err)
		}
	}).AllocedBytesPerOp()
	require.Less(t, bytes, int64(4096), "the tensor has 256 KiB")
}

func TestFromDense_Refuses(t *testing.T) {
	view, err := dense(4, 8).Slice(tensor.S(1, 3))
	require.NoError(t, err)
	columns, err := dense(4, 8).Slice(nil, tensor.S(0, 4))
	require.NoError(t, err)
	transposed := dense(4, 8)
	require.NoError(t, transposed.T())
	f64 := tensor.New(tensor.WithShape(2, 8), tensor.WithBacking(make([]float64, 16)))
	for name, x := range map[string]struct {
		t      *tensor.Dense
		reason string
	}{
		"view":         {view.(*tensor.Dense), "a view"},
		"columns":      {columns.(*tensor.Dense), "a view"},
		"transposed":   {transposed, "transposed"},
		"masked":       {tensor.New(tensor.WithShape(1, 8), tensor.WithBacking(make([]float32, 8), make([]bool, 8))), "masked"},
		"column-major": {tensor.New(tensor.WithShape(4, 8), tensor.AsFortran(make([]float32, 32))), "row-major"},
		"float64":      {f64, "want float32"},
		"int32":        {tensor.New(tensor.WithShape(8), tensor.WithBacking(make([]int32, 8))), "want float32"},
		"no type":      {new(tensor.Dense), "want float32"},
	} {
		t.Run(name, func(t *testing.T) {
			rows, dims, err := tensorio.FromDense(x.t)
			var layout *tensorio.LayoutError
			require.ErrorAs(t, err, &layout)
			require.ErrorIs(t, err, quant.ErrUnsupported)
			require.NotErrorIs(t, err, quant.ErrShape)
			require.Contains(t, layout.Reason, x.reason)
			require.Contains(t, err.Error(), x.reason)
			require.Zero(t, rows)
			require.Nil(t, dims)
		})
	}
}

func TestFromDense_RefusesShapes(t *testing.T) {
	for name, x := range map[string]*tensor.Dense{
		"nil":      nil,
		"scalar":   tensor.New(tensor.FromScalar(float32(3))),
		"long row": dense(1, quant.MaxDim+1),
	} {
		_, _, err := tensorio.FromDense(x)
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
}

// What the package comment tells callers to do makes rows of the tensors that are refused.
func TestFromDense_Materialized(t *testing.T) {
	x := dense(2, 3)
	require.NoError(t, x.T())
	require.NoError(t, x.Transpose())
	rows, dims, err := tensorio.FromDense(x)
	require.NoError(t, err)
	require.Equal(t, []int{3, 2}, dims)
	require.Equal(t, []float32{0, 3, 1, 4, 2, 5}, rows.Data)

	view, err := dense(2, 3).Slice(nil, tensor.S(1, 3))
	require.NoError(t, err)
	rows, dims, err = tensorio.FromDense(view.Materialize().(*tensor.Dense))
	require.NoError(t, err)
	require.Equal(t, []int{2, 2}, dims)
	require.Equal(t, []float32{1, 2, 4, 5}, rows.Data)
}

func TestToDense_Refuses(t *testing.T) {
	rows := quant.Rows{Dim: 8, Data: make([]float32, 32)}
	for name, x := range map[string]struct {
		rows quant.Rows
		dims []int
	}{
		"no rows":       {quant.Rows{Dim: 8}, nil},
		"torn row":      {quant.Rows{Dim: 8, Data: make([]float32, 9)}, nil},
		"no dim":        {quant.Rows{Data: make([]float32, 8)}, nil},
		"too few":       {rows, []int{3, 8}},
		"too many":      {rows, []int{5, 8}},
		"another row":   {rows, []int{8, 4}},
		"negative":      {rows, []int{-4, -8}},
		"negative rows": {rows, []int{-4, 8}},
		"overflow":      {rows, []int{math.MaxInt, 8}},
		"wraps around":  {rows, []int{1 << 31, 1 << 31, 4, 8}},
		"zero":          {rows, []int{0, 8}},
	} {
		got, err := tensorio.ToDense(x.rows, x.dims...)
		require.ErrorIs(t, err, quant.ErrShape, name)
		require.Nil(t, got, name)
	}
}

// A coding's bytes do not depend on where its rows lie.
func TestDense_CodesLikeRows(t *testing.T) {
	for _, c := range quanttest.Codings() {
		x := quanttest.Rows(quanttest.Gaussian, 6, 64, 5)
		in, err := tensorio.ToDense(x, 3, 2, 64)
		require.NoError(t, err)
		rows, _, err := tensorio.FromDense(in)
		require.NoError(t, err)
		want, got := make([]byte, c.PackedBytes(6, 64)), make([]byte, c.PackedBytes(6, 64))
		require.NoError(t, quant.Encode(want, c, x, 1))
		require.NoError(t, quant.Encode(got, c, rows, 1))
		require.Equal(t, want, got, c)

		out := tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(3, 2, 64))
		dst, _, err := tensorio.FromDense(out)
		require.NoError(t, err)
		require.NoError(t, quant.Decode(dst, c, got, 1))
		plain := quant.Rows{Dim: 64, Data: make([]float32, 6*64)}
		require.NoError(t, quant.Decode(plain, c, got, 1))
		require.Equal(t, plain.Data, out.Data().([]float32), c)
	}
}

// Programs that link kvist without tensorio do not link Gorgonia.
func TestTensor_IsLinkedHereOnly(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command to list packages with")
	}
	const module = "github.com/kvist-project/kvist"
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}: {{join .Deps \" \"}}", module+"/...").Output()
	require.NoError(t, err)
	found := false
	for line := range strings.Lines(string(out)) {
		path, deps, _ := strings.Cut(line, ":")
		here := path == module+"/engine/tensorio"
		require.Equal(t, here, strings.Contains(deps, "gorgonia.org/"), path)
		found = found || here
	}
	require.True(t, found)
}
