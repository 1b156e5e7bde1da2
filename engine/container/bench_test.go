// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// BenchmarkRecord measures what the planner (size), the writer and the reader spend on a record
// of 512 tokens and 8 KV heads. Bytes per second are those of the packed payloads.
func BenchmarkRecord(b *testing.B) {
	lm := func(f quant.Format) Block {
		return Block{K: quant.Coding{Format: f}, V: quant.Coding{Format: f}}
	}
	kinds := []Block{lm(quant.U8), lm(quant.LM4), lm(quant.LM3), lm(quant.LM2)}
	for _, blocks := range []int{4, 16} {
		h := &Header{Kind: KindCache, Tokens: 512, SegmentTokens: 512, Layers: []int{0},
			KType: quant.Float16, VType: quant.Float16, Geometry: quant.Geometry{
				Layers: 1, Heads: 8, KVHeads: 8, HeadDim: 128, HeadDimV: 128}}
		rec := regular(h, blocks, kinds, rand.New(rand.NewPCG(1, 1)))
		f := &file{h: h, recs: []*Record{rec}}
		data := f.write(b)
		r, err := Open("x", bytes.NewReader(data), int64(len(data)), Limits{})
		require.NoError(b, err)
		run := func(op string, do func() error) {
			b.Run(fmt.Sprintf("op=%s/blocks=%d", op, blocks), func(b *testing.B) {
				b.SetBytes(r.Records()[0].Length)
				b.ReportAllocs()
				for b.Loop() {
					if err := do(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		run("size", func() error { _, err := RecordSize(h, rec); return err })
		var buf []byte
		run("write", func() (err error) { buf, err = appendRecord(buf[:0], h, rec); return err })
		run("read", func() error { _, err := r.ReadRecord(0); return err })
	}
}
