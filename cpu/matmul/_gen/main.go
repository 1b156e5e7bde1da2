// SPDX-License-Identifier: Apache-2.0

// Command _gen writes the assembly of package matmul.
//
// Run it with `go generate` in the folder above. It is a module of its own so that avo
// never becomes a dependency of kvist.
package main

import (
	"strings"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("amd64,!noasm")

	for _, rows := range []int{12, 4, 3, 2, 1} {
		f32Tile512(rows)
	}
	for _, rows := range []int{6, 4, 3, 2, 1} {
		f32Tile256(rows)
	}
	pack8()
	expand512(8)
	expand512(4)
	row512(8)
	row512(4)
	expand256(8)
	expand256(4)
	quantize512()
	quantize256()
	for _, rows := range []int{16, 4, 1} {
		q4Tile512(rows)
		q8Tile512(rows)
	}
	for _, rows := range []int{4, 1} {
		q4Tile256(rows)
		q8Tile256(rows)
	}
	dot512()
	dot256()
	axpy512()
	axpy256()
	packed()
	softmax(wide)
	softmax(narrow)
	Generate()
}

// function starts a routine. Its comment is doc, wrapped at 90 columns, and the Go loop that it equals.
func function(name, signature, doc string) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape") // no routine keeps a pointer
	var lines []string
	line := ""
	for _, word := range strings.Fields(doc) {
		if line != "" && len(line)+1+len(word) > 87 {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	lines = append(lines, line)
	if l := loop(name); l != nil {
		lines = append(lines, "")
		for _, line := range l {
			lines = append(lines, "\t"+line)
		}
	}
	Doc(lines...)
}

func load(name string) Register { return Load(Param(name), GP64()) }

// zmms and ymms return n fresh vector registers.
func zmms(n int) []VecVirtual {
	v := make([]VecVirtual, n)
	for i := range v {
		v[i] = ZMM()
	}
	return v
}

func ymms(n int) []VecVirtual {
	v := make([]VecVirtual, n)
	for i := range v {
		v[i] = YMM()
	}
	return v
}

// rowPointers addresses rows row-major rows with ceil(rows/3) base registers and one
// stride register, so that up to 12 rows fit the general registers.
func rowPointers(base, stride Register, rows int) func(row, disp int) Mem {
	bases := []Register{base}
	for r := 3; r < rows; r += 3 {
		p := GP64()
		LEAQ(Mem{Base: bases[len(bases)-1], Index: stride, Scale: 2}, p)
		ADDQ(stride, p)
		bases = append(bases, p)
	}
	return func(row, disp int) Mem {
		m := Mem{Base: bases[row/3], Disp: disp}
		if row%3 != 0 {
			m.Index, m.Scale = stride, uint8(row%3)
		}
		return m
	}
}

// advance moves every base register of rowPointers by n bytes. The bases are found again
// from the operands.
func advance(at func(row, disp int) Mem, rows, n int) {
	for r := 0; r < rows; r += 3 {
		ADDQ(Imm(uint64(n)), at(r, 0).Base)
	}
}
