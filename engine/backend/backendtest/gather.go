// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// testGather packs rows of several sides into new ones. The bytes equal those of package quant.
func testGather(t *testing.T, b backend.Backend) {
	for _, dim := range dims() {
		for ci, c := range codingsFor(b, backend.OpGather, dim) {
			t.Run(fmt.Sprintf("coding=%s/head_dim=%d", c, dim), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(ci), uint64(dim)))
				a := newArena(t, b)
				defer a.free()
				var jobs []backend.GatherJob
				var want [][]byte
				for n := range 5 {
					j, w := drawGather(a, rng, c, dim, n)
					jobs, want = append(jobs, j), append(want, w)
				}
				a.upload()
				require.NoError(t, b.Gather(context.Background(), jobs))
				a.check()
				for i := range jobs {
					require.Equal(t, want[i], a.bytes(jobs[i].Dst.Data), "job %d", i)
				}
			})
		}
	}
}

// drawGather draws a job of n sources and returns what it must write.
func drawGather(a *arena, rng *rand.Rand, c quant.Coding, dim, n int) (backend.GatherJob, []byte) {
	j := backend.GatherJob{Dim: dim, Dst: backend.Side{Coding: c, Seed: seedA}}
	var src []quant.Packed
	rows := 0
	for i := range n {
		x := quanttest.Rows(quanttest.Gaussian, rng.IntN(70), dim, rng.Uint64())
		for k := range x.Data {
			x.Data[k] *= float32(i + 1) // so that the bases of logarithms differ
		}
		p := quant.Packed{Data: pack(a.t, c, x, seedA), Rows: x.Len()}
		if p.Rows > 0 && rng.IntN(3) > 0 {
			p.Take = []int32{}
			for range rng.IntN(2 * p.Rows) {
				p.Take = append(p.Take, int32(rng.IntN(p.Rows)))
			}
		}
		src = append(src, p)
		rows += p.Len()
		j.Src = append(j.Src, backend.GatherRows{Rows: p.Rows, Take: p.Take,
			Side: backend.Side{Coding: c, Seed: seedA, Data: a.put(p.Data)}})
	}
	want := make([]byte, c.PackedBytes(rows, dim))
	require.NoError(a.t, quant.Gather(want, c, dim, src))
	j.Dst.Data = a.room(len(want))
	return j, want
}

// testGatherArguments makes one part of a job wrong.
func testGatherArguments(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 9
	c := mustCoding(t, "lm3+s8")
	if !b.Supports(backend.OpGather, c, dim) {
		t.Skip("lm3+s8 is not supported")
	}
	a := newArena(t, b)
	defer a.free()
	x := pack(t, c, quanttest.Rows(quanttest.Gaussian, rows, dim, 1), seedA)
	data := a.put(x)
	dst := a.room(c.PackedBytes(3, dim))
	spare := a.room(c.PackedBytes(rows, dim))
	a.upload()
	good := func() backend.GatherJob {
		return backend.GatherJob{Dim: dim, Dst: backend.Side{Coding: c, Seed: seedA, Data: dst},
			Src: []backend.GatherRows{{Side: backend.Side{Coding: c, Seed: seedA, Data: data}, Rows: rows,
				Take: []int32{8, 0, 4}}}}
	}
	for _, w := range []struct {
		name string
		want error
		f    func(j *backend.GatherJob)
	}{
		{"row beyond", quant.ErrShape, func(j *backend.GatherJob) { j.Src[0].Take[1] = rows }},
		{"row negative", quant.ErrShape, func(j *backend.GatherJob) { j.Src[0].Take[1] = -1 }},
		{"too many rows", quant.ErrShape, func(j *backend.GatherJob) { j.Src[0].Take = nil }},
		{"source too short", quant.ErrShape, func(j *backend.GatherJob) { j.Src[0].Side.Data.Len-- }},
		{"rows negative", quant.ErrShape, func(j *backend.GatherJob) { j.Src[0].Rows = -1 }},
		{"another seed", quant.ErrShape, func(j *backend.GatherJob) { j.Src[0].Side.Seed++ }},
		{"another coding", quant.ErrShape, func(j *backend.GatherJob) {
			j.Dst.Coding.Format = quant.LM4
		}},
		{"dim", quant.ErrUnsupported, func(j *backend.GatherJob) { j.Dim = 63 }},
		{"in place", quant.ErrShape, func(j *backend.GatherJob) {
			j.Dst.Data, j.Src[0].Take = data, nil
		}},
		{"destination missing", quant.ErrShape, func(j *backend.GatherJob) {
			j.Dst.Data = backend.Span{}
		}},
	} {
		j := good()
		w.f(&j)
		ok := good()
		ok.Dst.Data, ok.Src[0].Take = spare, nil
		err := b.Gather(context.Background(), []backend.GatherJob{ok, j})
		require.ErrorIs(t, err, w.want, w.name)
		var je *backend.JobError
		require.ErrorAs(t, err, &je, w.name)
		require.Equal(t, 1, je.Job, w.name)
	}
	a.unchanged()
	require.NoError(t, b.Gather(context.Background(), []backend.GatherJob{good()}))
	a.check()
	want := make([]byte, dst.Len)
	require.NoError(t, quant.Gather(want, c, dim, []quant.Packed{{Data: x, Rows: rows, Take: []int32{8, 0, 4}}}))
	require.Equal(t, want, a.bytes(dst))
}
