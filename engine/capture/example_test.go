// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"fmt"
	"log"

	"github.com/kvist-project/kvist/engine/capture"
)

// Example reads one row of K from a KV capture.
func Example() {
	s, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	g := s.Info().Geometry
	fmt.Printf("%s: %d of %d layers, %d kv_heads, %d tokens, RoPE %s\n",
		s.Info().Model, len(s.Info().Layers), g.Layers, g.KVHeads, s.Info().Tokens, g.Rope.Layout)

	k, ok := s.KV(9, capture.K)
	if !ok {
		log.Fatal("layer 9 was not captured")
	}
	row := make([]float32, k.Dim())
	if err := k.ReadF32(0, 100, 1, row); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s %s [%d, %d, %d], %.4f ...\n",
		k.Name(), k.DType(), k.Heads(), k.Rows(), k.Dim(), row[:3])
	// Output:
	// SmolLM2-135M-Instruct: 4 of 30 layers, 3 kv_heads, 1024 tokens, RoPE half
	// layers.9.k F16 [3, 1024, 64], [-1.0322 0.4175 1.0898] ...
}
