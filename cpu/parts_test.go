// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// upload copies bytes to a new buffer.
func upload(t *testing.T, b *Backend, p []byte) backend.Span {
	t.Helper()
	m, err := b.Alloc(int64(len(p)))
	require.NoError(t, err)
	require.NoError(t, m.Upload(0, p))
	return backend.Span{Buf: m, Len: int64(len(p))}
}

// floatJob is a job that packs float32 rows.
func floatJob(t *testing.T, b *Backend, c quant.Coding, x quant.Rows) backend.EncodeJob {
	t.Helper()
	raw := make([]byte, 4*len(x.Data))
	for i, v := range x.Data {
		binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(v))
	}
	rows := len(x.Data) / x.Dim
	dst := make([]byte, c.PackedBytes(rows, x.Dim))
	for i := range dst {
		dst[i] = 0xa5 // what is not packed shows
	}
	return backend.EncodeJob{Src: upload(t, b, raw), DType: quant.Float32, Rows: rows, Dim: x.Dim,
		Dst: backend.Side{Coding: c, Seed: 3, Data: upload(t, b, dst)}}
}

// Jobs that workers share give the bytes and floats of package quant, together with jobs that they
// do not share, for any number of workers and for row lengths that do not end on whole words.
func TestEncodeDecode_Parts(t *testing.T) {
	for _, workers := range []int{1, 5} {
		b, err := Open(Options{Workers: workers})
		require.NoError(t, err)
		for _, name := range []string{"lm1", "lm3+s8", "lm4+len", "u8", "u8+s8", "f16"} {
			c, err := quant.ParseCoding(name)
			require.NoError(t, err)
			t.Run(fmt.Sprintf("workers=%d/coding=%s", workers, name), func(t *testing.T) {
				var jobs []backend.EncodeJob
				var all []quant.Rows
				for i, size := range [][2]int{{2500, 72}, {40, 64}, {2049, 64}, {5601, 24}} {
					x := quanttest.Rows(quanttest.MixedScales, size[0], size[1], uint64(i))
					jobs, all = append(jobs, floatJob(t, b, c, x)), append(all, x)
				}
				require.NoError(t, b.Encode(context.Background(), jobs))
				for i, j := range jobs {
					want := make([]byte, c.PackedBytes(j.Rows, j.Dim))
					require.NoError(t, quant.Encode(want, c, all[i], 3))
					got := make([]byte, len(want))
					require.NoError(t, j.Dst.Data.Buf.Download(0, got))
					require.True(t, bytes.Equal(want, got), "job %d", i)
					checkDecodeParts(t, b, j, want)
				}
			})
		}
		require.NoError(t, b.Close())
	}
}

func checkDecodeParts(t *testing.T, b *Backend, j backend.EncodeJob, packed []byte) {
	t.Helper()
	want := quant.Rows{Dim: j.Dim, Data: make([]float32, j.Rows*j.Dim)}
	require.NoError(t, quant.Decode(want, j.Dst.Coding, packed, 3))
	dst := upload(t, b, make([]byte, 4*len(want.Data)))
	require.NoError(t, b.Decode(context.Background(), []backend.DecodeJob{{Src: j.Dst, Rows: j.Rows,
		Dim: j.Dim, Dst: dst}}))
	got := make([]byte, dst.Len)
	require.NoError(t, dst.Buf.Download(0, got))
	for i, v := range want.Data {
		if math.Float32bits(v) != binary.LittleEndian.Uint32(got[4*i:]) {
			t.Fatalf("value %d of %s is not %g", i, j.Dst.Coding, v)
		}
	}
}

// For any number of workers, the error is that of the first failing job and names the row: rows
// that are refused in the last part, scales out of range, and jobs that fail as a whole.
func TestEncode_PartsThatFail(t *testing.T) {
	nan, far := float32(math.NaN()), float32(1e9)
	lm3, tq := quant.Coding{Format: quant.LM3}, quant.Coding{Format: quant.TQMSE3}
	type job struct {
		c    quant.Coding
		rows int
		bad  map[int]float32 // by row
	}
	for _, jobs := range [][]job{
		{{lm3, 5000, nil}, {lm3, 5000, map[int]float32{4999: nan}}},
		{{lm3, 5000, map[int]float32{17: far}}, {tq, 9, map[int]float32{3: nan}}},
		{{lm3, 9, nil}, {tq, 9, map[int]float32{3: nan}}, {lm3, 5000, map[int]float32{100: nan}}},
		{{lm3, 5000, map[int]float32{4000: nan, 30: nan}}, {lm3, 5000, map[int]float32{1: far}}},
	} {
		var want string
		for _, workers := range []int{1, 2, 5} {
			b, err := Open(Options{Workers: workers})
			require.NoError(t, err)
			var all []backend.EncodeJob
			for i, j := range jobs {
				x := quanttest.Rows(quanttest.Gaussian, j.rows, 64, uint64(i))
				for r, v := range j.bad {
					x.Row(r)[5] = v
				}
				all = append(all, floatJob(t, b, j.c, x))
			}
			err = b.Encode(context.Background(), all)
			require.Error(t, err)
			if want == "" {
				want = err.Error()
			}
			require.EqualError(t, err, want, "workers=%d", workers)
			require.NoError(t, b.Close())
		}
	}
}
