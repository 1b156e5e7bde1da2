// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

const seedA, seedB = 0x6b76697374, 0xdecade

// source is a job's input and the packed rows that it must give.
type source struct {
	job  backend.EncodeJob // without Dst
	want quant.Rows        // the packed rows, rounded to the source's type
	raw  []byte            // the packed rows as elements of the source's type
}

// placeSource places rows as elements of a type in one of four ways: plain, with a stride, gathered
// by an index, or with both.
func placeSource(a *arena, x quant.Rows, dt quant.DType, way int, rng *rand.Rand) source {
	raw, y := toDType(x, dt)
	n, rowBytes := x.Len(), x.Dim*dt.Size()
	j := backend.EncodeJob{DType: dt, Rows: n, Dim: x.Dim}
	stride, total := rowBytes, n
	index := make([]int32, n)
	for i := range index {
		index[i] = int32(i)
	}
	if way&1 != 0 {
		stride += 3 * dt.Size()
		j.Stride = int64(stride)
	}
	if way&2 != 0 {
		total = 2*n + 1
		for i, p := range rng.Perm(total)[:n] {
			index[i] = int32(p)
		}
	}
	src := make([]byte, max(0, (total-1)*stride+rowBytes))
	for i := range src {
		src[i] = 0xff // gaps between rows, and rows that the index leaves out, hold NaNs
	}
	for r, at := range index {
		copy(src[int(at)*stride:], raw[r*rowBytes:(r+1)*rowBytes])
	}
	j.Src = a.put(src)
	if way&2 != 0 {
		j.Index = a.put(bytesOfI32(index))
	}
	return source{job: j, want: y, raw: raw}
}

func testEncode(t *testing.T, b backend.Backend) {
	for _, dim := range dims() {
		for ci, c := range codingsFor(b, backend.OpEncode, dim) {
			t.Run(fmt.Sprintf("coding=%s/head_dim=%d", c, dim), func(t *testing.T) {
				encodeMatrix(t, b, c, dim, ci)
			})
		}
	}
}

// encodeMatrix packs every row count and family in one batch.
func encodeMatrix(t *testing.T, b backend.Backend, c quant.Coding, dim, ci int) {
	a := newArena(t, b)
	defer a.free()
	rng := rand.New(rand.NewPCG(uint64(dim), uint64(ci)))
	dtypes := []quant.DType{quant.Float32, quant.Float16, quant.BFloat16}
	var jobs []backend.EncodeJob
	var wants [][]byte
	var names []string
	for ri, rows := range rowCounts() {
		for fi, fam := range quanttest.Finite() {
			if rows > 40 && (fi+ci)%5 != 0 {
				continue // the large count does not need every family in every coding
			}
			dt := dtypes[(ri+fi+ci)%3]
			s := placeSource(a, quanttest.Rows(fam, rows, dim, uint64(fi)), dt, ri+fi, rng)
			want := make([]byte, c.PackedBytes(rows, dim))
			if c.Format == dt.Format() {
				copy(want, s.raw)
			} else if err := quant.Encode(want, c, s.want, seedA); err != nil {
				continue // not representable: testEncodeRange
			}
			s.job.Dst = backend.Side{Coding: c, Data: a.room(len(want)), Seed: seedA}
			jobs, wants = append(jobs, s.job), append(wants, want)
			names = append(names, fmt.Sprintf("%s from %s, rows=%d", fam, dt, rows))
		}
	}
	require.Greater(t, len(jobs), len(rowCounts()))
	a.upload()
	require.NoError(t, b.Encode(context.Background(), jobs))
	a.check()
	for i, j := range jobs {
		require.Equal(t, wants[i], a.bytes(j.Dst.Data), names[i])
	}
}

// testEncodeSameType packs every bit pattern of a type, including NaNs with payloads.
func testEncodeSameType(t *testing.T, b backend.Backend) {
	for _, dt := range []quant.DType{quant.Float32, quant.Float16, quant.BFloat16} {
		t.Run(dt.String(), func(t *testing.T) {
			const dim = 64
			c := quant.Coding{Format: dt.Format()}
			if !b.Supports(backend.OpEncode, c, dim) {
				t.Skipf("%s is not supported", c)
			}
			raw := make([]byte, 1<<16*dt.Size())
			for i := range 1 << 16 {
				if dt == quant.Float32 {
					binary.LittleEndian.PutUint32(raw[4*i:], uint32(i)<<16|uint32(i)*2654435761>>16)
				} else {
					binary.LittleEndian.PutUint16(raw[2*i:], uint16(i))
				}
			}
			a := newArena(t, b)
			defer a.free()
			job := backend.EncodeJob{Src: a.put(raw), DType: dt, Rows: 1 << 16 / dim, Dim: dim,
				Dst: backend.Side{Coding: c, Data: a.room(len(raw))}}
			a.upload()
			require.NoError(t, b.Encode(context.Background(), []backend.EncodeJob{job}))
			a.check()
			require.Equal(t, raw, a.bytes(job.Dst.Data))
		})
	}
}

// testEncodeRange puts jobs that the coding cannot hold between good ones.
func testEncodeRange(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 9
	for _, c := range codingsFor(b, backend.OpEncode, dim) {
		for _, fam := range []quanttest.Family{quanttest.WithNaN, quanttest.WithInf, quanttest.Huge} {
			t.Run(fmt.Sprintf("coding=%s/family=%s", c, fam), func(t *testing.T) {
				x := quanttest.Rows(fam, rows, dim, 5)
				if fam == quanttest.Huge { // good rows before the bad one
					copy(x.Data, quanttest.Rows(quanttest.Gaussian, 6, dim, 6).Data)
				}
				want := make([]byte, c.PackedBytes(rows, dim))
				oracle := quant.Encode(want, c, x, seedA)
				a := newArena(t, b)
				defer a.free()
				good := placeSource(a, quanttest.Rows(quanttest.Gaussian, 4, dim, 7), quant.Float32, 0, nil)
				bad := placeSource(a, x, quant.Float32, 0, nil)
				jobs := []backend.EncodeJob{good.job, good.job, bad.job, good.job, bad.job}
				for i := range jobs {
					n := c.PackedBytes(jobs[i].Rows, dim)
					jobs[i].Dst = backend.Side{Coding: c, Data: a.room(n), Seed: seedA}
				}
				a.upload()
				err := b.Encode(context.Background(), jobs)
				a.check()
				if oracle == nil {
					require.NoError(t, err)
					require.Equal(t, want, a.bytes(jobs[2].Dst.Data))
					return
				}
				var row *quant.RowError
				require.ErrorAs(t, oracle, &row)
				var job *backend.JobError
				require.ErrorAs(t, err, &job)
				require.ErrorIs(t, err, quant.ErrRange)
				require.Equal(t, backend.OpEncode, job.Op)
				require.Equal(t, 2, job.Job, "the first job that fails")
				require.Equal(t, row.Row, job.Row)
			})
		}
	}
}

func testDecode(t *testing.T, b backend.Backend) {
	for _, dim := range dims() {
		for ci, c := range codingsFor(b, backend.OpDecode, dim) {
			t.Run(fmt.Sprintf("coding=%s/head_dim=%d", c, dim), func(t *testing.T) {
				a := newArena(t, b)
				defer a.free()
				var jobs []backend.DecodeJob
				var wants []quant.Rows
				for ri, rows := range rowCounts() {
					fam := quanttest.Finite()[(ri+ci)%len(quanttest.Finite())]
					seed := uint64(ri) * seedB
					packed := pack(t, c, quanttest.Rows(fam, rows, dim, 3), seed)
					wants = append(wants, unpack(t, c, packed, rows, dim, seed))
					jobs = append(jobs, backend.DecodeJob{
						Src:  backend.Side{Coding: c, Data: a.put(packed), Seed: seed},
						Rows: rows, Dim: dim, Dst: a.room(4 * rows * dim),
					})
				}
				a.upload()
				require.NoError(t, b.Decode(context.Background(), jobs))
				a.check()
				for i, j := range jobs {
					sameFloats(t, a.bytes(j.Dst), wants[i].Data, fmt.Sprintf("rows=%d", j.Rows))
				}
			})
		}
	}
}

// testDecodeAnyBytes decodes random bytes: any bytes of the right length are valid.
func testDecodeAnyBytes(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 37
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range codingsFor(b, backend.OpDecode, dim) {
		a := newArena(t, b)
		packed := make([]byte, c.PackedBytes(rows, dim))
		for i := range packed {
			packed[i] = byte(rng.Uint32())
		}
		want := unpack(t, c, packed, rows, dim, seedA)
		job := backend.DecodeJob{Src: backend.Side{Coding: c, Data: a.put(packed), Seed: seedA},
			Rows: rows, Dim: dim, Dst: a.room(4 * rows * dim)}
		a.upload()
		require.NoError(t, b.Decode(context.Background(), []backend.DecodeJob{job}))
		a.check()
		sameFloats(t, a.bytes(job.Dst), want.Data, c.String())
		a.free()
	}
}

func testDemote(t *testing.T, b backend.Backend) {
	for _, dim := range dims() {
		for _, c := range codingsFor(b, backend.OpDemote, dim) {
			t.Run(fmt.Sprintf("coding=%s/head_dim=%d", c, dim), func(t *testing.T) {
				demoteMatrix(t, b, c, dim)
			})
		}
	}
}

// demoteMatrix demotes every row count to every width, in place and to a copy, in one batch.
func demoteMatrix(t *testing.T, b backend.Backend, c quant.Coding, dim int) {
	a := newArena(t, b)
	defer a.free()
	var jobs []backend.DemoteJob
	var wants [][]byte
	for ri, rows := range rowCounts() {
		fam := quanttest.Finite()[(ri*3+dim)%len(quanttest.Finite())]
		packed := pack(t, c, quanttest.Rows(fam, rows, dim, 11), seedA)
		for to := c; to.Format >= quant.LM1; to.Format-- {
			n := to.PackedBytes(rows, dim)
			want := make([]byte, n)
			require.NoError(t, quant.Demote(want, to, packed, c, rows, dim))
			apart := backend.DemoteJob{Src: backend.Side{Coding: c, Data: a.put(packed)}, To: to,
				Rows: rows, Dim: dim, Dst: a.room(n)}
			place := apart
			place.Src.Data = a.inPlace(packed)
			place.Dst = place.Src.Data
			place.Dst.Len = int64(n)
			jobs, wants = append(jobs, apart, place), append(wants, want, want)
		}
	}
	a.upload()
	require.NoError(t, b.Demote(context.Background(), jobs))
	a.check()
	for i, j := range jobs {
		require.Equal(t, wants[i], a.bytes(j.Dst), "to %s rows=%d in place: %t", j.To, j.Rows, i%2 == 1)
	}
}
