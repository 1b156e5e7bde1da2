// SPDX-License-Identifier: Apache-2.0

package input

import (
	"encoding/binary"
	"runtime"

	"github.com/kvist-project/kvist/engine/internal/half"
	"github.com/kvist-project/kvist/quant"
)

// Tensor is rows of one kind: [heads, rows, dim], row-major, wherever they are.
type Tensor interface {
	Name() string
	DType() quant.DType
	Dim() int      // values of a row
	RowBytes() int // bytes of a row
	Rows() int     // rows of a head
	// Read reads rows [first, first+n) of a head as they are, n*RowBytes() bytes.
	Read(head, first, n int, dst []byte) error
	// ReadExactly is Read, and refuses rows whose elements were of a wider type and would be rounded.
	ReadExactly(head, first, n int, dst []byte) error
	// ReadF32 reads them as float32, n*Dim() values.
	ReadF32(head, first, n int, dst []float32) error
}

// Layer is K, V and Q of a layer of a cache, or a tensor of activations, which is K alone.
type Layer struct {
	Name    string // "layer 9", `tensor "x"`
	Index   int    // among the layers at hand
	Number  int    // the model's number of the layer
	K, V, Q Tensor
	HasV    bool
	HasQ    bool
	Next    *Next // what comes after the tokens, nil where that is not known
	Heads   int   // KV heads
	Tokens  int
	Segment int // tokens of a segment
}

// Next is the tokens after those of a layer, to measure on: Q is [heads, Tokens, head_dim].
type Next struct {
	K, V, Q Tensor
	Heads   int // of Q
	Tokens  int
}

// Input is the layers of a cache, or tensors of activations.
type Data struct {
	Name   string // for messages
	Model  string // "" where it is not known
	KV     bool
	Geo    quant.Geometry // of a cache
	Layers []Layer
	Heads  int   // KV heads of all layers
	First  int64 // the position of the first token where Positions says nothing else
	// Positions reads the positions of tokens [first, first+len(dst)).
	Positions func(first int, dst []int64) error
	// Surprisal reads -log p of tokens [first, first+len(dst)); nil where it is not known.
	Surprisal func(first int, dst []float32) error
}

// Values returns the number of values of all rows: what bits a value divides by.
func (in *Data) Values() int64 {
	var n int64
	for i := range in.Layers {
		n += int64(in.Layers[i].Heads) * int64(in.Layers[i].Tokens) * int64(in.Layers[i].Dims())
	}
	return n
}

// measuredTokens bounds the tokens of all layers that are measured at a time: a head's rows are held while it
// is, as they are stored and as float32.
const measuredTokens = 1 << 20

// Workers returns how many layers are measured at a time.
func (in *Data) Workers() int {
	most := 1
	for i := range in.Layers {
		most = max(most, in.Layers[i].Tokens)
	}
	return max(1, min(runtime.GOMAXPROCS(0), measuredTokens/most))
}

// Dims returns the values of a row of K and of one of V.
func (l *Layer) Dims() int { return l.K.Dim() + l.DimV() }

// DimV returns the values of a row of V, 0 where there is none.
func (l *Layer) DimV() int {
	if l.HasV {
		return l.V.Dim()
	}
	return 0
}

// Segments returns the number of segments.
func (l *Layer) Segments() int { return (l.Tokens + l.Segment - 1) / l.Segment }

// Span returns the tokens [first, first+n) of a segment.
func (l *Layer) Span(segment int) (first, n int) {
	first = segment * l.Segment
	return first, min(l.Segment, l.Tokens-first)
}

// QueryBudget bounds the queries that calibrate a head: 64, fewer over long contexts, so that the
// cost stays that of a few attention passes. With 32, divergence of archives was 3 % higher over four
// calibration texts and 9 % over eight others, at 1.05 to 2 bits.
func QueryBudget(tokens int) int { return min(tokens, max(4, min(64, 1<<17/max(1, tokens)))) }

// Past returns the token from which on queries play the future: those of the last quarter.
func (l *Layer) Past() int {
	return l.Tokens - max(QueryBudget(l.Tokens), l.Tokens/4)
}

// exact returns the coding that keeps rows of t bit by bit.
func Exact(t Tensor) quant.Coding { return quant.Coding{Format: t.DType().Format()} }

// Finite reports whether no value is NaN or Inf.
func Finite(x []float32) bool { return half.Finite(x) }

// FiniteOf moves the rows of x, [rows * dim], that hold neither NaN nor Inf to its front, and returns them.
func FiniteOf(x []float32, dim int) []float32 {
	if Finite(x) {
		return x
	}
	kept := x[:0]
	for r := 0; r < len(x); r += dim {
		if row := x[r : r+dim]; Finite(row) {
			kept = append(kept, row...)
		}
	}
	return kept
}

// FiniteRow reports whether a raw row holds neither NaN nor Inf.
func FiniteRow(dt quant.DType, row []byte) bool {
	switch dt {
	case quant.Float32:
		for i := 0; i+4 <= len(row); i += 4 {
			if binary.LittleEndian.Uint32(row[i:])&0x7f800000 == 0x7f800000 {
				return false
			}
		}
	case quant.Float16:
		const exponents = 0x7c007c007c007c00 // of four values
		for ; len(row) >= 8; row = row[8:] {
			// Where an exponent is not all ones, what it lacks carries into the sign's place.
			lacks := binary.LittleEndian.Uint64(row)&exponents ^ exponents
			if (lacks+0x7fff7fff7fff7fff)&0x8000800080008000 != 0x8000800080008000 {
				return false
			}
		}
		for i := 0; i+2 <= len(row); i += 2 {
			if binary.LittleEndian.Uint16(row[i:])&0x7c00 == 0x7c00 {
				return false
			}
		}
	case quant.BFloat16:
		for i := 0; i+2 <= len(row); i += 2 {
			if binary.LittleEndian.Uint16(row[i:])&0x7f80 == 0x7f80 {
				return false
			}
		}
	}
	return true
}
