// SPDX-License-Identifier: Apache-2.0

// Command _gen writes the assembly of package scan.
//
// Run it with `go generate` in the folder above. It is a module of its own so that avo
// never becomes a dependency of kvist.
package main

import (
	"log"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("amd64,!noasm")
	for width := 1; width <= 6; width++ {
		scores512(width)
		unpack512(width)
		scores256(width)
		unpack256(width)
	}
	for _, n := range []int{8, 4} {
		dots512(n)
	}
	dots256(4)
	finish512()
	finish256()
	search512()
	search256()
	Generate()
}

// function starts a routine. Its comment is doc, wrapped at 90 columns, and the Go loop that it equals.
func function(name, signature, doc, loop string) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape") // no routine keeps a pointer
	var lines []string
	line := ""
	for _, word := range strings.Fields(name + " " + doc) {
		if line != "" && len(line)+1+len(word) > 87 {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	lines = append(lines, line, "")
	for _, l := range strings.Split(strings.Trim(loop, "\n"), "\n") {
		lines = append(lines, "\t"+l)
	}
	Doc(lines...)
}

const scoresLoop = `
for t := range n {
	sum[r] = start // of every row r
	for v := range 4 * cells {
		for j := range 4 {
			sum[r] += codes[4*v+j] * level(tile, r, v, j)
		}
	}
	out[16*t+r] += scale * sum[r]
	tile = tile[stride:]
}`

const unpackLoop = `
for v := range 4 * cells {
	for r := range 16 {
		for j := range 4 {
			dst[64*v+4*r+j] = level(tile, r, v, j)
		}
	}
}`

const scoresSignature = "func(out *float32, tile *byte, stride, n, cells, prev int, mask uint64, " +
	"codes *int8, start int32, scale float32, table *byte)"

const unpackSignature = "func(dst, tile *byte, cells, prev int, mask uint64, table *byte)"

func load(name string) Register { return Load(Param(name), GP64()) }

// param returns the address of a parameter.
func param(name string) Mem {
	a, err := Param(name).Resolve()
	if err != nil {
		log.Fatal(err)
	}
	return a.Addr
}

var constants = map[string]Mem{}

// bytesConstant returns a read-only table of bytes, a multiple of 8 of them.
func bytesConstant(name string, b []byte) Mem {
	if m, ok := constants[name]; ok {
		return m
	}
	m := GLOBL(name, RODATA|NOPTR)
	for i := 0; i < len(b); i += 8 {
		var w uint64
		for j := range 8 {
			w |= uint64(b[i+j]) << (8 * j)
		}
		DATA(i, U64(w))
	}
	constants[name] = m
	return m
}

// repeated returns n copies of a byte.
func repeated(v byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = v
	}
	return b
}
