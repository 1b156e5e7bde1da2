// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/kvist-project/kvist/bench/readme"
)

var markers = readme.Markers{Name: "cpu table", Command: "make bench-cpu"}

// short returns the tables of the page.
func (r *results) short() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, one core. Attention: ns of processor time per row of K and V, head_dim 64,\nfor 1 and for 3 query "+
		"heads.\n\n", r.machine)
	b.WriteString("| coding | AVX-512 | AVX2 | plain Go |\n|---|---|---|---|\n")
	pair := func(isa, f string) string {
		return r.cell(attendName(isa, f, "64", "1"), "cpu-ns/pair") + ", " +
			r.cell(attendName(isa, f, "64", "3"), "cpu-ns/pair")
	}
	for _, f := range formats {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", f, pair("avx512", f), pair("avx2", f), pair("generic", f))
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
