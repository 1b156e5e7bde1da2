// SPDX-License-Identifier: Apache-2.0

// Command _gen writes the assembly of the kernel families below cpu/internal.
//
// Run it with `go generate` in a family's folder. It is a module of its own so that avo never
// becomes a dependency of kvist.
package main

import (
	"flag"
	"log"
	"math"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

var family = flag.String("family", "", "attend or codec")

func main() {
	flag.Parse()
	ConstraintExpr("amd64,!noasm")
	switch *family {
	case "attend":
		attend512()
		attend256()
	case "codec":
		codec512()
		codec256()
	default:
		log.Fatalf("no family %q", *family)
	}
	Generate()
}

// attend512 writes the kernels of attention for AVX-512 with VBMI and GFNI.
func attend512() {
	for _, r := range []exactRows{f16Rows, bf16Rows, f32Rows} {
		unpackExact512(r)
	}
	unpackU8Rows512()
	for bits := 1; bits <= 4; bits++ {
		for _, quads := range []bool{false, true} {
			unpackPlanes512(bits, quads, true)
			unpackPlanes512(bits, quads, false)
		}
	}
	scalesF16512()
	scalesLog8512()
	for heads := 1; heads <= 4; heads++ {
		dotQuads512(heads)
		dotRows512(heads)
	}
	for heads := 1; heads <= 3; heads++ {
		accumulate512(heads)
	}
	for heads := 1; heads <= 3; heads++ {
		softmax512(heads, false)
		softmax512(heads, true)
		softmaxTile512(heads)
	}
	probs512()
	bytes512()
	fold512()
	square512()
	mix("AVX512", zmms(2), ZMM, 64)
	prefetch()
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

// param returns the address of a parameter.
func param(name string) Mem {
	a, err := Param(name).Resolve()
	if err != nil {
		log.Fatal(err)
	}
	return a.Addr
}

// zmms returns n fresh vector registers.
func zmms(n int) []VecVirtual {
	v := make([]VecVirtual, n)
	for i := range v {
		v[i] = ZMM()
	}
	return v
}

var constants = map[string]Mem{}

// constant returns a read-only table of 64-bit words.
func constant(name string, words ...uint64) Mem {
	if m, ok := constants[name]; ok {
		return m
	}
	m := GLOBL(name, RODATA|NOPTR)
	for i, w := range words {
		DATA(8*i, U64(w))
	}
	constants[name] = m
	return m
}

// bytesConstant returns a read-only table of bytes, a multiple of 8 of them.
func bytesConstant(name string, b []byte) Mem {
	words := make([]uint64, len(b)/8)
	for i, x := range b {
		words[i/8] |= uint64(x) << (8 * (i % 8))
	}
	return constant(name, words...)
}

// dwordsConstant returns a read-only table of 32-bit words, an even number of them.
func dwordsConstant(name string, d []uint32) Mem {
	words := make([]uint64, len(d)/2)
	for i, x := range d {
		words[i/2] |= uint64(x) << (32 * (i % 2))
	}
	return constant(name, words...)
}

// floatsConstant returns a read-only table of float32, an even number of them.
func floatsConstant(name string, f []float32) Mem {
	d := make([]uint32, len(f))
	for i, x := range f {
		d[i] = math.Float32bits(x)
	}
	return dwordsConstant(name, d)
}

// at returns the place n bytes behind m.
func at(m Mem, n int) Mem {
	m.Disp += n
	return m
}

// times runs body n times, n in a register that is used up. n is at least 1.
func times(label string, n Register, body func()) {
	Label(label)
	body()
	SUBQ(Imm(1), n)
	JNZ(LabelRef(label))
}

// mix writes the kernels that make a weighted sum of rows of 32 values, or of their squares: acc are the
// vectors that such a row fills, of so many bytes.
func mix(isa string, acc []VecVirtual, vector func() VecVirtual, bytes int) {
	for _, squares := range []bool{false, true} {
		name, doc := "mix"+isa, "writes the sum of n rows of 32 values, each times its weight; n is 1 at least."
		if squares {
			name, doc = "mixSquares"+isa, "is mix"+isa+" of the squares of the values."
		}
		function(name, "func(dst, w, rows *float32, n int)", name+" "+doc)
		dst, w, rows, n := load("dst"), load("w"), load("rows"), load("n")
		for _, a := range acc {
			if bytes == 64 {
				VPXORD(a, a, a)
			} else {
				VXORPS(a, a, a)
			}
		}
		f := vector()
		times("row", n, func() {
			VBROADCASTSS(Mem{Base: w}, f)
			for i, a := range acc {
				at := Mem{Base: rows, Disp: bytes * i}
				if squares {
					v := vector()
					VMOVUPS(at, v)
					VMULPS(v, v, v)
					VFMADD231PS(f, v, a)
				} else {
					VFMADD231PS(at, f, a)
				}
			}
			ADDQ(Imm(4), w)
			ADDQ(U32(128), rows)
		})
		for i, a := range acc {
			VMOVUPS(a, Mem{Base: dst, Disp: bytes * i})
		}
		VZEROUPPER()
		RET()
	}
}
