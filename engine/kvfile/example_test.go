// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

const exampleCapture = "../../testdata/smollm2-sqlite-1k.safetensors"

// A capture becomes a file of 3 bits a value, and a capture again.
func ExampleCompressFile() {
	dir, err := os.MkdirTemp("", "kvist")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, file := context.Background(), filepath.Join(dir, "cache.kvist")
	res, err := kvfile.CompressFile(ctx, exampleCapture, file, kvfile.Options{Bits: 3})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.2f bits/value, %.1f times smaller\n", res.BitsPerValue, res.Ratio)
	if _, err := kvfile.DecompressFile(ctx, file, filepath.Join(dir, "back.safetensors"), kvfile.Options{}); err != nil {
		log.Fatal(err)
	}
	// Output: 3.00 bits/value, 5.3 times smaller
}

// A program that holds K and V compresses them in memory and attends to them there.
func ExamplePack() {
	const layers, heads, kvHeads, tokens, dim = 2, 4, 2, 256, 64
	m := kvfile.Memory{Geometry: quant.Geometry{Layers: layers, Heads: heads, KVHeads: kvHeads, HeadDim: dim, HeadDimV: dim}}
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
		}
		return x
	}
	for range layers {
		m.K, m.V = append(m.K, random(kvHeads*tokens*dim)), append(m.V, random(kvHeads*tokens*dim))
	}
	kv, err := kvfile.Pack(context.Background(), &m, kvfile.Options{Bits: 3})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	q, out := random(heads*dim), make([]float32, heads*dim)
	if err := kv.Attend(context.Background(), 1, q, out); err != nil {
		log.Fatal(err)
	}
	fmt.Println(kv.Tokens(), "tokens in", kv.Bytes()*100/(2*2*layers*kvHeads*tokens*dim), "% of float16")
	// Output: 256 tokens in 18 % of float16
}

// A hot file is opened and attended to in place.
func ExampleOpen() {
	kv, err := kvfile.Open("../../testdata/golden/v1/pass-cache.kvist", kvfile.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	g := kv.Geometry()
	q, out := make([]float32, g.Heads*g.HeadDim), make([]float32, g.Heads*g.HeadDimV)
	if err := kv.Attend(context.Background(), 0, q, out); err != nil {
		log.Fatal(err)
	}
	fmt.Println(kv.Tokens(), "tokens,", len(out), "values of output")
	// Output: 75 tokens, 32 values of output
}
