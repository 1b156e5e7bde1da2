// SPDX-License-Identifier: Apache-2.0

package container_test

import (
	"bytes"
	"fmt"
	"log"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// A file of one layer with one segment of four tokens: two are kept, two are merged to one row. A
// real program takes the payloads from quant.Encode or a backend.
func Example() {
	h := &container.Header{
		Kind:   container.KindCache,
		Layers: []int{0}, Tokens: 4, SegmentTokens: 512,
		Geometry: quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8},
		KType:    quant.Float16, VType: quant.Float16,
	}
	f16, lm3 := quant.Coding{Format: quant.F16}, quant.Coding{Format: quant.LM3}
	rec := &container.Record{Heads: []container.Head{{Blocks: []container.Block{
		{
			Level: quant.Full, K: f16, V: lm3, Tokens: []uint16{0, 3},
			KData: make([]byte, f16.PackedBytes(2, 8)), VData: make([]byte, lm3.PackedBytes(2, 8)),
		},
		{
			Level: quant.Chunks, K: lm3, V: lm3, Tokens: []uint16{1, 2}, Counts: []uint16{2},
			KData: make([]byte, lm3.PackedBytes(1, 8)), VData: make([]byte, lm3.PackedBytes(1, 8)),
		},
	}}}}

	var file bytes.Buffer
	w, err := container.NewWriter(&file, h)
	if err != nil {
		log.Fatal(err)
	}
	if err := w.WriteRecord(rec); err != nil {
		log.Fatal(err)
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}

	r, err := container.Open("example.kvist", bytes.NewReader(file.Bytes()), int64(file.Len()),
		container.Limits{})
	if err != nil {
		log.Fatal(err)
	}
	if err := r.Verify(nil); err != nil {
		log.Fatal(err)
	}
	for i := range r.Records() {
		rec, err := r.ReadRecord(i)
		if err != nil {
			log.Fatal(err)
		}
		for _, b := range rec.Heads[0].Blocks {
			fmt.Println(b.Level, b.K, b.V, b.Tokens, b.Rows())
		}
	}
	// Output:
	// FULL f16 lm3 [0 3] 2
	// CHUNKS lm3 lm3 [1 2] 1
}
