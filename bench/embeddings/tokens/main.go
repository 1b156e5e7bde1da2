// SPDX-License-Identifier: Apache-2.0

// Command tokens writes a set of embeddings to measure the index on: the token vectors of a language model.
// Tokens of Latin letters and tokens of other scripts are two kinds of text, so that a calibration on one can
// be tried on the other.
//
//	go run ./bench/embeddings/tokens MODEL.gguf FOLDER
//
// FOLDER gets base.npy (50,000 tokens of each kind, or as many as there are, mixed), latin.npy (those of
// Latin letters alone), latin-queries.npy and other-queries.npy (1,000 each, which are not in the base).
package main

import (
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"unicode"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

const (
	perKind = 50_000
	queries = 1_000
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: tokens MODEL.gguf FOLDER")
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func write(model, folder string) error {
	f, err := gguf.Open(model)
	if err != nil {
		return err
	}
	defer f.Close()
	t, ok := f.Tensor("token_embd.weight")
	names, _ := f.Meta("tokenizer.ggml.tokens")
	tokens, isList := names.Strings()
	if !ok || !isList || int64(len(tokens)) != t.Rows() {
		return fmt.Errorf("%s has no token vectors: %w", model, quant.ErrUnsupported)
	}
	all, err := f.Floats(t)
	if err != nil {
		return err
	}
	dim := int(t.Cols())
	latin, other := kinds(tokens)
	if len(latin) <= queries || len(other) <= queries {
		return fmt.Errorf("%s has %d tokens of Latin letters and %d of others, want more than %d of each: %w", model,
			len(latin), len(other), queries, quant.ErrUnsupported)
	}
	var base []int
	for i := range perKind {
		for _, list := range [][]int{latin, other} {
			if i+queries < len(list) {
				base = append(base, list[queries+i])
			}
		}
	}
	// Samples are evenly spread over a file: turns would put one kind into all of them.
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(base), func(i, j int) { base[i], base[j] = base[j], base[i] })
	for _, s := range []struct {
		name string
		list []int
	}{{"base", base}, {"latin", latin[queries:min(len(latin), queries+perKind)]}, {"latin-queries", latin[:queries]},
		{"other-queries", other[:queries]}} {
		if err := npy(filepath.Join(folder, s.name+".npy"), all, s.list, dim); err != nil {
			return err
		}
	}
	fmt.Printf("%d tokens of Latin letters and %d of others, %d values each\n", len(latin), len(other), dim)
	return nil
}

// kinds returns the tokens of Latin letters and those of other letters, each shuffled. Tokens without letters,
// and those that are no text, are of neither kind.
func kinds(tokens []string) (latin, other []int) {
	for i, t := range tokens {
		in, out := 0, 0
		for _, r := range t {
			switch {
			case unicode.Is(unicode.Latin, r):
				in++
			case unicode.IsLetter(r):
				out++
			case r == '<' || r == unicode.ReplacementChar: // <unused12>, <0x0A>
				in, out = 1, 1
			}
		}
		switch {
		case in > 0 && out == 0:
			latin = append(latin, i)
		case out > 0 && in == 0:
			other = append(other, i)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, list := range [][]int{latin, other} {
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	return latin, other
}

func npy(name string, all []float32, list []int, dim int) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w, err := capture.NewNpyWriter(f, capture.Decl{DTypeName: "F32", Shape: []int64{int64(len(list)), int64(dim)}})
	if err != nil {
		return err
	}
	row := make([]byte, 0, 4*dim)
	for i, t := range list {
		row = row[:0]
		for _, x := range all[t*dim : (t+1)*dim] {
			row = binary.LittleEndian.AppendUint32(row, math.Float32bits(x))
		}
		if err := w.WriteAt(w.Tensors()[0].Name, int64(i*len(row)), row); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}
