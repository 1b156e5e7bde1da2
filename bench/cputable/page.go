// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/bench/readme"
)

var markers = readme.Markers{Name: "cpu table", Command: "make bench-cpu"}

// short returns the tables of the page.
func (r *results) short() string {
	var b strings.Builder
	read, _ := r.median("BenchmarkRead/set=memory/workers=1", "cpu-GB/s")
	fmt.Fprintf(&b, "%s, one core. Attention: ns of processor time per row of K and V, head_dim 64,\nfor 1 and for 3 query "+
		"heads. From memory: beside it the share of the %s GB/s that a core reads in\nthe same run.\n\n", r.machine, digits(read))
	b.WriteString("| coding | AVX-512, in cache | AVX2 | plain Go | AVX-512, from memory, 1 head | 3 heads |\n|---|---|---|---|---|---|\n")
	pair := func(isa, f string) string {
		return r.cell(attendName(isa, f, "64", "1"), "cpu-ns/pair") + ", " +
			r.cell(attendName(isa, f, "64", "3"), "cpu-ns/pair")
	}
	memory := func(f, group string) string {
		part := strings.Split(r.memoryCell(r.memoryName(f, "64", group, 1), read), " / ")
		return strings.Join(slices.Compact([]string{part[0], part[len(part)-1]}), ", ")
	}
	for _, f := range formats {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f, pair("avx512", f), pair("avx2", f), pair("generic", f),
			memory(f, "1"), memory(f, "3"))
	}
	b.WriteString("\n| G values/s, rows of 64 | AVX-512 | AVX2 | plain Go |\n|---|---|---|---|\n")
	line := func(what string, name func(isa string) string) {
		fmt.Fprintf(&b, "| %s |", what)
		for _, isa := range isas {
			fmt.Fprintf(&b, " %s |", r.cell(name(isa), "cpu-Gvalues/s"))
		}
		b.WriteString("\n")
	}
	line("Hadamard", func(isa string) string { return "BenchmarkHadamard/backend=cpu-" + isa + "/head_dim=64" })
	for _, op := range []string{"encode", "decode", "demote"} {
		line(op+" lm3, 8-bit scales", func(isa string) string {
			return fmt.Sprintf("BenchmarkCodec/op=%s/backend=cpu-%s/format=lm3+s8/head_dim=64/tokens=4096", op, isa)
		})
	}
	return b.String()
}
