// SPDX-License-Identifier: Apache-2.0

// Command modelspeed measures the runner of engine/model: tokens a second of a prompt and of decoding
// behind contexts of two lengths. It prints one line of JSON for llamacpp.py, which measures llama.cpp
// with the same tokens.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/kvist-project/kvist/engine/model"
)

type speeds struct {
	Prefill float64         `json:"prefill"` // tokens a second
	Decode  map[int]float64 `json:"decode"`  // by the length of the context
}

func main() {
	fast := flag.Bool("fast", false, "int8 activations")
	prompt := flag.Int("prompt", 128, "tokens of the prompt")
	steps := flag.Int("steps", 24, "tokens to decode")
	workers := flag.Int("workers", 0, "threads; 0: all processors")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: modelspeed [flags] MODEL.gguf")
		os.Exit(2)
	}
	s, err := measure(flag.Arg(0), model.Options{Fast: *fast, Workers: *workers}, *prompt, *steps)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "modelspeed:", err)
		os.Exit(1)
	}
}

// contexts are the lengths behind which tokens are decoded.
var contexts = []int{16, 1000}

// tokens are ids that every vocabulary of some thousand tokens has; llamacpp.py takes the same.
func tokens(n int) []int32 {
	t := make([]int32, n)
	for i := range t {
		t[i] = int32(300 + i*37%4000)
	}
	return t
}

func measure(path string, o model.Options, prompt, steps int) (speeds, error) {
	s := speeds{Decode: map[int]float64{}}
	m, err := model.Open(path, o)
	if err != nil {
		return s, err
	}
	ids := tokens(max(prompt, contexts[len(contexts)-1]) + steps)
	pass := func(from, to int, kv *model.ExactKV) error {
		_, err := m.Forward(ids[from:to], kv, from, model.ForwardOptions{})
		return err
	}
	kv, err := m.NewKV(model.KVOptions{})
	if err != nil {
		return s, err
	}
	for i := range 2 { // the first pass warms up
		start := time.Now()
		if err := pass(0, prompt, kv); err != nil {
			return s, err
		}
		if i == 1 {
			s.Prefill = float64(prompt) / time.Since(start).Seconds()
		}
		if err := kv.Truncate(0); err != nil {
			return s, err
		}
	}
	for _, n := range contexts {
		if err := kv.Truncate(0); err != nil {
			return s, err
		}
		if err := pass(0, n, kv); err != nil {
			return s, err
		}
		start := time.Now()
		for i := range steps {
			if err := pass(n+i, n+i+1, kv); err != nil {
				return s, err
			}
		}
		s.Decode[n] = float64(steps) / time.Since(start).Seconds()
	}
	return s, nil
}
