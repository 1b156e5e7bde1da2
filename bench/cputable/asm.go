// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
)

// errAssembly means that the assembly is not the one that the loops below were written for.
var errAssembly = errors.New("the assembly has other loops")

// loop names a loop of a routine, by its label, with the rows that one turn of it is about.
type loop struct {
	routine, label string
	rows           float64
	times          float64 // how often a row pair needs it
}

// pair lists the loops that a row of K and V of 64 values goes through with three query heads. The
// horizontal sums of the inner products, 16 rows at a time, are not in them.
func pair(format string) []loop {
	var loops []loop
	switch format {
	case "f16":
		loops = append(loops, loop{"unpackF16AVX512", "loop", 1, 2 * 4}) // 16 values a turn, K and V
	case "u8":
		loops = append(loops, loop{"unpackU8AVX512", "loop", 1, 2})
	default:
		loops = append(loops,
			loop{"unpack" + strings.ToUpper(format) + "Quads64AVX512", "group", 4, 1},
			loop{"unpack" + strings.ToUpper(format) + "Rows64AVX512", "group", 4, 1})
	}
	if format == "f16" || format == "u8" {
		loops = append(loops, loop{"dotRows3AVX512", "block", 4, 1})
	} else {
		loops = append(loops, loop{"dotQuads3AVX512", "block", 16, 1})
	}
	return append(loops, loop{"softmaxAVX512", "head", 32, 3}, loop{"accumulate3AVX512", "pair", 2, 1})
}

// count returns the instructions between a label of a routine and the first jump back to it.
func count(code, routine, label string) (int, error) {
	_, body, ok := strings.Cut(code, "TEXT ·"+routine+"(SB)")
	if !ok {
		return 0, fmt.Errorf("no routine %s: %w", routine, errAssembly)
	}
	_, body, ok = strings.Cut(body, "\n"+label+":\n")
	if !ok {
		return 0, fmt.Errorf("no label %s in %s: %w", label, routine, errAssembly)
	}
	n := 0
	for line := range strings.Lines(body) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasSuffix(fields[0], ":") {
			continue
		}
		n++
		if strings.HasPrefix(fields[0], "J") && fields[1] == label {
			return n, nil
		}
	}
	return 0, fmt.Errorf("no jump to %s in %s: %w", label, routine, errAssembly)
}

func writeInstructions(w *strings.Builder, code string) error {
	fmt.Fprintf(w, "\n## Instructions per row pair, from the assembly\n\navx512, head_dim 64, GQA 3: the "+
		"loops of unpacking, inner products, softmax and weighted sums.\n\n"+
		"| coding | unpack K, V | inner products | softmax | weighted sum | all |\n"+
		"|---|---:|---:|---:|---:|---:|\n")
	for _, f := range []string{"f16", "u8", "lm4", "lm3", "lm2", "lm1"} {
		var unpack, rest []float64
		var sum float64
		for _, l := range pair(f) {
			n, err := count(code, l.routine, l.label)
			if err != nil {
				return err
			}
			x := float64(n) / l.rows * l.times
			sum += x
			if strings.HasPrefix(l.routine, "unpack") {
				unpack = append(unpack, x)
			} else {
				rest = append(rest, x)
			}
		}
		var both float64
		for _, x := range unpack {
			both += x
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", f, digits(both), digits(rest[0]),
			digits(rest[1]), digits(rest[2]), digits(sum))
	}
	return nil
}
