// SPDX-License-Identifier: Apache-2.0

package quanttest

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"github.com/kvist-project/kvist/quant"
)

// Codec is an implementation of the codings, with the signatures of package quant.
type Codec struct {
	Encode func(dst []byte, c quant.Coding, x quant.Rows, seed uint64) error
	Decode func(dst quant.Rows, c quant.Coding, src []byte, seed uint64) error
	Demote func(dst []byte, to quant.Coding, src []byte, from quant.Coding, rows, dim int) error
}

// RunFormat holds a codec against the oracle, bit by bit, over codings x dims x row counts x
// families, with guarded buffers.
func RunFormat(t *testing.T, codec Codec) {
	for _, c := range Codings() {
		for _, dim := range Dims() {
			if c.CheckDim(dim) != nil {
				continue
			}
			t.Run(fmt.Sprintf("coding=%s/head_dim=%d", c, dim), func(t *testing.T) {
				for _, rows := range RowCounts() {
					for i, fam := range append(Finite(), Huge) {
						if rows > 40 && i%3 != 0 {
							continue // the large counts need not meet every family
						}
						checkCodec(t, codec, c, Rows(fam, rows, dim, uint64(rows*100+i)), fam)
					}
				}
			})
		}
	}
}

func checkCodec(t *testing.T, codec Codec, c quant.Coding, x quant.Rows, fam Family) {
	t.Helper()
	const seed = 0x5eed
	name := fmt.Sprintf("%s rows=%d", fam, x.Len())
	want := make([]byte, c.PackedBytes(x.Len(), x.Dim))
	wantErr := quant.Encode(want, c, x, seed)
	got := NewGuarded(len(want))
	err := codec.Encode(got.Bytes, c, x, seed)
	got.Check(t)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%s: encode: error %v, oracle's %v", name, err, wantErr)
	}
	if err != nil {
		return
	}
	if !bytes.Equal(got.Bytes, want) {
		t.Fatalf("%s: packed bytes differ from the oracle's at %d", name,
			firstDiff(got.Bytes, want))
	}
	a := quant.Rows{Dim: x.Dim, Data: make([]float32, len(x.Data))}
	b := quant.Rows{Dim: x.Dim, Data: make([]float32, len(x.Data))}
	if err := quant.Decode(a, c, want, seed); err != nil {
		t.Fatalf("%s: oracle: decode: %v", name, err)
	}
	if err := codec.Decode(b, c, want, seed); err != nil {
		t.Fatalf("%s: decode: %v", name, err)
	}
	for i := range a.Data {
		if math.Float32bits(a.Data[i]) != math.Float32bits(b.Data[i]) {
			t.Fatalf("%s: decode: row %d value %d: got %g want %g", name, i/x.Dim, i%x.Dim,
				b.Data[i], a.Data[i])
		}
		if f := float64(a.Data[i]); math.IsNaN(f) || math.IsInf(f, 0) {
			t.Fatalf("%s: finite row %d decodes to %g", name, i/x.Dim, f)
		}
	}
	checkDemote(t, codec, c, want, x, name)
}

func checkDemote(t *testing.T, codec Codec, c quant.Coding, packed []byte, x quant.Rows,
	name string) {
	t.Helper()
	for to := c; c.Format.Nested() && to.Format >= quant.LM1; to.Format-- {
		want := make([]byte, to.PackedBytes(x.Len(), x.Dim))
		if err := quant.Demote(want, to, packed, c, x.Len(), x.Dim); err != nil {
			t.Fatalf("%s: oracle: demote to %s: %v", name, to, err)
		}
		apart := NewGuarded(len(want))
		if err := codec.Demote(apart.Bytes, to, packed, c, x.Len(), x.Dim); err != nil {
			t.Fatalf("%s: demote to %s: %v", name, to, err)
		}
		apart.Check(t)
		inPlace := NewGuarded(len(packed))
		copy(inPlace.Bytes, packed)
		if err := codec.Demote(inPlace.Bytes[:len(want)], to, inPlace.Bytes, c, x.Len(), x.Dim); err != nil {
			t.Fatalf("%s: demote to %s in place: %v", name, to, err)
		}
		inPlace.Check(t)
		if !bytes.Equal(apart.Bytes, want) || !bytes.Equal(inPlace.Bytes[:len(want)], want) {
			t.Fatalf("%s: demoted to %s, bytes differ from the oracle's", name, to)
		}
	}
}

func firstDiff(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
