// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"encoding/binary"
	"fmt"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// layerInput is a layer of a KV capture, or a tensor of activations (without v and q).
// tensor shortens signatures.
type tensor = capture.Tensor

type layerInput struct {
	name    string // "layer 9", `tensor "x"`
	index   int    // among the stored layers
	number  int    // the model's number of the layer
	k, v, q capture.Tensor
	hasV    bool
	hasQ    bool
	heads   int
	tokens  int
	segment int // tokens of a segment
}

// input is a capture as compression sees it.
type input struct {
	src    *capture.Source
	kv     bool
	geo    quant.Geometry
	layers []layerInput
	heads  int // KV heads of all layers
}

// rowSegmentValues is the size of a segment of general activations: it bounds memory, and is
// large enough that tables vanish.
const rowSegmentValues = 1 << 20

func newInput(src *capture.Source, segment int) (*input, error) {
	in := &input{src: src, kv: src.Kind() == capture.KV}
	if !in.kv {
		acts := src.ActTensors()
		// All tensors of a file share one segment length.
		most := 1
		for _, a := range acts {
			most = max(most, a.Dim)
		}
		seg := min(max(rowSegmentValues/most, 32), 32768)
		for i, a := range acts {
			in.layers = append(
				in.layers,
				layerInput{name: fmt.Sprintf("tensor %q", a.Name), index: i, number: i,
					k: a.Tensor, heads: 1, tokens: a.Rows, segment: seg},
			)
		}
		in.heads = len(acts)
		if len(acts) == 0 {
			return nil, src.NoRows()
		}
		return in, nil
	}
	in.geo = src.Geometry()
	for i, n := range src.Layers() {
		l := layerInput{name: fmt.Sprintf("layer %d", n), index: i, number: n, hasV: true,
			heads: in.geo.KVHeads, tokens: src.Tokens(), segment: segment}
		l.k, _ = src.KV(n, capture.K)
		l.v, _ = src.KV(n, capture.V)
		l.q, l.hasQ = src.KV(n, capture.Q)
		in.layers = append(in.layers, l)
		in.heads += l.heads
	}
	if len(in.layers) == 0 {
		return nil, fmt.Errorf("kvist/offline: %s holds no layers: %w", src.Name(), quant.ErrShape)
	}
	return in, nil
}

// values returns the number of values of all rows: what bits a value divides by.
func (in *input) values() int64 {
	var n int64
	for i := range in.layers {
		n += int64(in.layers[i].heads) * int64(in.layers[i].tokens) * int64(in.layers[i].dims())
	}
	return n
}

func (l *layerInput) dims() int { return l.k.Dim() + l.dimV() }

func (l *layerInput) dimV() int {
	if l.hasV {
		return l.v.Dim()
	}
	return 0
}

func (l *layerInput) segments() int { return (l.tokens + l.segment - 1) / l.segment }

// span returns the tokens [first, first+n) of a segment.
func (l *layerInput) span(segment int) (first, n int) {
	first = segment * l.segment
	return first, min(l.segment, l.tokens-first)
}

// exact returns the coding that keeps rows of t bit by bit.
func exact(t capture.Tensor) quant.Coding { return quant.Coding{Format: t.DType().Format()} }

// finiteRows moves the rows of x, [rows * dim], that hold neither NaN nor Inf to its front, and returns them.
func finiteRows(x []float32, dim int) []float32 {
	if finiteValues(x) {
		return x
	}
	kept := x[:0]
	for r := 0; r < len(x); r += dim {
		if row := x[r : r+dim]; finiteValues(row) {
			kept = append(kept, row...)
		}
	}
	return kept
}

// finiteRow reports whether a raw row holds neither NaN nor Inf.
func finiteRow(dt quant.DType, row []byte) bool {
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
