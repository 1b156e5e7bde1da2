// SPDX-License-Identifier: Apache-2.0

package tensorio_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"

	"gorgonia.org/tensor"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/tensorio"
	"github.com/kvist-project/kvist/quant"
)

// The rows of a tensor are packed in 4 bits a value, and unpacked into another tensor.
func Example() {
	in := tensor.New(tensor.WithBacking(tensor.Range(tensor.Float32, 0, 128)), tensor.WithShape(2, 64))
	rows, dims, err := tensorio.FromDense(in)
	if err != nil {
		log.Fatal(err)
	}
	coding, seed := quant.Coding{Format: quant.LM4}, uint64(1)
	packed := make([]byte, coding.PackedBytes(rows.Len(), rows.Dim))
	if err := quant.Encode(packed, coding, rows, seed); err != nil {
		log.Fatal(err)
	}

	out := tensor.New(tensor.Of(tensor.Float32), tensor.WithShape(dims...))
	dst, _, err := tensorio.FromDense(out) // the same memory as out
	if err != nil {
		log.Fatal(err)
	}
	if err := quant.Decode(dst, coding, packed, seed); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes instead of %d, shape %v\n", len(packed), 4*len(rows.Data), out.Shape())
	// Output:
	// 68 bytes instead of 512, shape (2, 64)
}

// A backend packs the rows of a tensor. Uploading copies them once, into the backend's memory.
func ExampleFromDense_backend() {
	be, err := cpu.Open(cpu.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := be.Close(); err != nil {
			log.Fatal(err)
		}
	}()
	k := tensor.New(tensor.WithBacking(tensor.Range(tensor.Float32, 0, 4*64)), tensor.WithShape(4, 64))
	rows, _, err := tensorio.FromDense(k)
	if err != nil {
		log.Fatal(err)
	}
	raw, err := binary.Append(nil, binary.LittleEndian, rows.Data)
	if err != nil {
		log.Fatal(err)
	}
	coding := quant.Coding{Format: quant.LM3}
	n := int64(coding.PackedBytes(rows.Len(), rows.Dim))
	src, err := be.Alloc(int64(len(raw)))
	if err != nil {
		log.Fatal(err)
	}
	dst, err := be.Alloc(n)
	if err != nil {
		log.Fatal(err)
	}
	if err := src.Upload(0, raw); err != nil {
		log.Fatal(err)
	}
	err = be.Encode(context.Background(), []backend.EncodeJob{{
		Src: backend.Span{Buf: src, Len: src.Len()}, DType: quant.Float32, Rows: rows.Len(), Dim: rows.Dim,
		Dst: backend.Side{Coding: coding, Data: backend.Span{Buf: dst, Len: n}, Seed: 1},
	}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "bytes for", rows.Len(), "rows")
	// Output:
	// 104 bytes for 4 rows
}
