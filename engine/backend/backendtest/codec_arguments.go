// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func testEncodeArguments(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 5
	a := newArena(t, b)
	defer a.free()
	c := mustCoding(t, "lm3")
	s := placeSource(a, quanttest.Rows(quanttest.Gaussian, rows, dim, 1), quant.Float32, 0, nil)
	good := s.job
	good.Dst = backend.Side{Coding: c, Data: a.room(c.PackedBytes(rows, dim) + 64)}
	good.Dst.Data.Len -= 64
	index := func(x ...int32) backend.Span { return a.put(bytesOfI32(x)) }
	type edit struct {
		name string
		want error
		f    func(j *backend.EncodeJob)
	}
	edits := []edit{
		{"destination too short", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data.Len--
		}},
		{"destination too long", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data.Len++
		}},
		{"destination not given", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data = backend.Span{}
		}},
		{"destination before the buffer", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data.Off = -16
		}},
		{"destination past the buffer", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data.Off = j.Dst.Data.Buf.Len()
		}},
		{"destination offset overflows", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data.Off = math.MaxInt64 - 15
		}},
		{"destination not on 16", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data.Off += 8
		}},
		{"destination is the source", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Dst.Data.Off = j.Src.Off
		}},
		{"source too short", quant.ErrShape, func(j *backend.EncodeJob) { j.Src.Len -= 4 }},
		{"source not given", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Src = backend.Span{}
		}},
		{"source length negative", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Src.Len = -4
		}},
		{"source past the buffer", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Src.Off = j.Src.Buf.Len() - 4
		}},
		{"source not on 4", quant.ErrShape, func(j *backend.EncodeJob) { j.Src.Off += 2 }},
		{"stride below a row", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Stride = dim*4 - 4
		}},
		{"stride negative", quant.ErrShape, func(j *backend.EncodeJob) { j.Stride = -dim * 4 }},
		{"stride beyond the source", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Stride = dim*4 + 4
		}},
		{"stride of no element", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Stride, j.Rows = dim*4+2, 1
			j.Dst.Data.Len = int64(c.PackedBytes(1, dim))
		}},
		{"stride overflows", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Stride = math.MaxInt64 - 3
		}},
		{"rows negative", quant.ErrShape, func(j *backend.EncodeJob) { j.Rows = -1 }},
		{"more rows", quant.ErrShape, func(j *backend.EncodeJob) { j.Rows++ }},
		{"index beyond", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Index = index(0, 1, 2, 5, 4)
		}},
		{"index negative", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Index = index(0, 1, -1, 3, 4)
		}},
		{"index too short", quant.ErrShape, func(j *backend.EncodeJob) {
			j.Index = index(0, 1, 2, 3)
		}},
		{"no element type", quant.ErrUnsupported, func(j *backend.EncodeJob) { j.DType = 0 }},
		{"unknown element type", quant.ErrUnsupported, func(j *backend.EncodeJob) {
			j.DType = 77
		}},
		{"no coding", quant.ErrUnsupported, func(j *backend.EncodeJob) {
			j.Dst.Coding = quant.Coding{}
		}},
		{"dim that the coding has not", quant.ErrUnsupported, func(j *backend.EncodeJob) {
			j.Dim = 63
		}},
	}
	bad := make([]backend.EncodeJob, len(edits))
	for i, e := range edits {
		bad[i] = good
		e.f(&bad[i])
	}
	a.upload()
	for i, e := range edits {
		err := b.Encode(context.Background(), []backend.EncodeJob{good, bad[i]})
		requireJob(t, err, e.want, 1, e.name)
	}
	a.unchanged()
	err := b.Encode(context.Background(), []backend.EncodeJob{good})
	require.NoError(t, err, "the job itself is good")
	require.NoError(t, b.Encode(context.Background(), nil))
}

func requireJob(t testing.TB, err, want error, job int, name string) {
	t.Helper()
	var je *backend.JobError
	require.ErrorIs(t, err, want, name)
	require.ErrorAs(t, err, &je, name)
	require.Equal(t, job, je.Job, name)
}

func testDecodeArguments(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 5
	a := newArena(t, b)
	defer a.free()
	c := mustCoding(t, "u8+s8")
	packed := pack(t, c, quanttest.Rows(quanttest.Gaussian, rows, dim, 1), 0)
	good := backend.DecodeJob{Src: backend.Side{Coding: c, Data: a.put(packed)}, Rows: rows, Dim: dim,
		Dst: a.room(4 * rows * dim)}
	a.upload()
	for _, e := range []struct {
		name string
		want error
		f    func(j *backend.DecodeJob)
	}{
		{"source too short", quant.ErrShape, func(j *backend.DecodeJob) { j.Src.Data.Len-- }},
		{"source not on 16", quant.ErrShape, func(j *backend.DecodeJob) {
			j.Src.Data.Off += 4
		}},
		{"destination too long", quant.ErrShape, func(j *backend.DecodeJob) { j.Dst.Len += 4 }},
		{"destination not given", quant.ErrShape, func(j *backend.DecodeJob) {
			j.Dst = backend.Span{}
		}},
		{"destination not on 4", quant.ErrShape, func(j *backend.DecodeJob) { j.Dst.Off -= 2 }},
		{"destination over the source", quant.ErrShape, func(j *backend.DecodeJob) {
			j.Dst.Off = j.Src.Data.Off + 32
		}},
		{"rows negative", quant.ErrShape, func(j *backend.DecodeJob) { j.Rows = -5 }},
		{"rows beyond the buffer", quant.ErrShape, func(j *backend.DecodeJob) {
			j.Rows = 1 << 20
		}},
		{"dim zero", quant.ErrUnsupported, func(j *backend.DecodeJob) { j.Dim = 0 }},
		{"format unknown", quant.ErrUnsupported, func(j *backend.DecodeJob) {
			j.Src.Coding.Format = 250
		}},
	} {
		bad := good
		e.f(&bad)
		err := b.Decode(context.Background(), []backend.DecodeJob{good, bad})
		requireJob(t, err, e.want, 1, e.name)
	}
	a.unchanged()
	err := b.Decode(context.Background(), []backend.DecodeJob{good})
	require.NoError(t, err, "the job itself is good")
	require.NoError(t, b.Decode(context.Background(), nil))
}

func testDemoteArguments(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 5
	a := newArena(t, b)
	defer a.free()
	c, to := mustCoding(t, "lm4"), mustCoding(t, "lm2")
	packed := pack(t, c, quanttest.Rows(quanttest.Gaussian, rows, dim, 1), 0)
	good := backend.DemoteJob{Src: backend.Side{Coding: c, Data: a.put(packed)}, To: to, Rows: rows,
		Dim: dim, Dst: a.room(to.PackedBytes(rows, dim))}
	a.upload()
	for _, e := range []struct {
		name string
		want error
		f    func(j *backend.DemoteJob)
	}{
		{"source too short", quant.ErrShape, func(j *backend.DemoteJob) {
			j.Src.Data.Len -= 2
		}},
		{"destination too long", quant.ErrShape, func(j *backend.DemoteJob) { j.Dst.Len += 2 }},
		{"destination within the source", quant.ErrShape, func(j *backend.DemoteJob) {
			j.Dst.Off = j.Src.Data.Off + 16
		}},
		{"destination runs into the source", quant.ErrShape, func(j *backend.DemoteJob) {
			j.Dst.Off = j.Src.Data.Off - 16
		}},
		{"rows negative", quant.ErrShape, func(j *backend.DemoteJob) { j.Rows = -1 }},
		{"more bits", quant.ErrUnsupported, func(j *backend.DemoteJob) { *j = promote(*j) }},
		{"another rule", quant.ErrUnsupported, func(j *backend.DemoteJob) {
			j.To.Rule = quant.InnerProduct
		}},
		{"not nested", quant.ErrUnsupported, func(j *backend.DemoteJob) {
			j.To.Format = quant.F16
		}},
		{"dim", quant.ErrUnsupported, func(j *backend.DemoteJob) { j.Dim = 60 }},
	} {
		bad := good
		e.f(&bad)
		err := b.Demote(context.Background(), []backend.DemoteJob{good, bad})
		requireJob(t, err, e.want, 1, e.name)
	}
	a.unchanged()
	err := b.Demote(context.Background(), []backend.DemoteJob{good})
	require.NoError(t, err, "the job itself is good")
	require.NoError(t, b.Demote(context.Background(), nil))
}

// promote returns the demotion with source and destination swapped.
func promote(j backend.DemoteJob) backend.DemoteJob {
	j.Src.Coding, j.To = j.To, j.Src.Coding
	j.Src.Data, j.Dst = j.Dst, j.Src.Data
	return j
}
