// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
)

// errAssembly means that the assembly is not the one that the loops below were written for.
var errAssembly = errors.New("the assembly has other loops")

// loop names a loop of a routine, by its label, with the rows that one turn of it is about; without
// a label, the whole routine.
type loop struct {
	part           part
	routine, label string
	rows           float64
	times          float64 // how often a row pair needs it
}

// part is what a loop is for.
type part int

const (
	partK part = iota
	partSoftmax
	partV
	parts
)

// pair lists the loops that a row of K and V of 64 values goes through with three query heads. The
// last sums of a tile of 32 rows, where they stand behind a loop, are not in them.
func pair(format string) []loop {
	switch format {
	case "f16":
		return []loop{
			{partK, "unpackF16AVX512", "loop", 1, 4}, // 16 values a turn
			{partK, "dotRows3AVX512", "block", 4, 1},
			{partSoftmax, "softmax3AVX512", "", 32, 1},
			{partV, "unpackF16AVX512", "loop", 1, 4},
			{partV, "accumulate3AVX512", "pair", 2, 1},
		}
	case "u8":
		return []loop{
			{partK, "unpackU8KeysAVX512", "block", 8, 1},
			{partK, "dotBytes3AVX512", "block", 16, 1},
			{partSoftmax, "softmaxCut3AVX512", "", 32, 1},
			{partV, "unpackU8ValuesAVX512", "block", 4, 1},
			{partV, "addBytes3AVX512", "quad0", 4, 1},
			{partV, "addBytes3AVX512", "quad1", 4, 1},
		}
	}
	name := strings.ToUpper(format)
	return []loop{
		{partK, "dot" + name + "Heads3AVX512", "", 32, 1},
		{partSoftmax, "softmaxCut3AVX512", "", 32, 1},
		{partV, "add" + name + "Heads3AVX512", "", 32, 1},
	}
}

// count returns the instructions between a label of a routine and the first jump back to it, or
// of the whole routine.
func count(code, routine, label string) (int, error) {
	_, body, ok := strings.Cut(code, "TEXT ·"+routine+"(SB)")
	if !ok {
		return 0, fmt.Errorf("no routine %s: %w", routine, errAssembly)
	}
	if label == "" {
		_, body, _ = strings.Cut(body, "\n") // the rest of the TEXT line
		body, _, _ = strings.Cut(body, "\nTEXT ")
	} else if _, body, ok = strings.Cut(body, "\n"+label+":\n"); !ok {
		return 0, fmt.Errorf("no label %s in %s: %w", label, routine, errAssembly)
	}
	n := 0
	for line := range strings.Lines(body) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasSuffix(fields[0], ":") || strings.HasPrefix(fields[0], "//") {
			continue
		}
		n++
		if strings.HasPrefix(fields[0], "J") && fields[1] == label || fields[0] == "RET" && label == "" {
			return n, nil
		}
	}
	return 0, fmt.Errorf("no jump to %s in %s: %w", label, routine, errAssembly)
}

func writeInstructions(w *strings.Builder, code string) error {
	fmt.Fprintf(w, "\n## Instructions per row pair, from the assembly\n\navx512, head_dim 64, GQA 3: the "+
		"loops that rows go through.\n\n"+
		"| coding | K: unpack, inner products | softmax | V: unpack, weighted sum | all |\n"+
		"|---|---:|---:|---:|---:|\n")
	for _, f := range []string{"f16", "u8", "lm4", "lm3", "lm2", "lm1"} {
		var sums [parts]float64
		for _, l := range pair(f) {
			n, err := count(code, l.routine, l.label)
			if err != nil {
				return err
			}
			sums[l.part] += float64(n) / l.rows * l.times
		}
		k, soft, v := sums[partK], sums[partSoftmax], sums[partV]
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", f, digits(k), digits(soft), digits(v),
			digits(k+soft+v))
	}
	return nil
}
