// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"fmt"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
)

// BenchmarkReadRowsF32 reads and converts from memory. It counts the stored bytes.
func BenchmarkReadRowsF32(b *testing.B) {
	const rows, dim = 4096, 128
	for _, dtype := range []string{"F32", "F16", "BF16"} {
		f := &file{}
		f.add("x", dtype, rows, dim)
		s := mustOpen(b, f.bytes(b))
		x := s.ActTensors()[0].Tensor
		b.Run(fmt.Sprintf("dtype=%s/rows=%d/dim=%d", dtype, rows, dim), func(b *testing.B) {
			dst := make([]float32, rows*dim)
			b.SetBytes(int64(rows * x.RowBytes()))
			b.ReportAllocs()
			for b.Loop() {
				if err := x.ReadF32(0, 0, rows, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen parses the header of a file with many tensors. It counts the bytes of the header.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{16, 16384} {
		f := &file{}
		for i := range n {
			f.add(fmt.Sprintf("t%d", i), "U8", 1, 0)
		}
		data := f.bytes(b)
		b.Run(fmt.Sprintf("tensors=%d", n), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := openBytes(data, capture.Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
