// SPDX-License-Identifier: Apache-2.0

package blocks

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/half"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// RowBias reports whether the plan of a file counts on the row bias. The config is read for that
// one field only: a file outlives the version that wrote its other fields.
func RowBias(h *container.Header) bool {
	return !slices.Contains(strings.Fields(h.Config), "row-bias=false")
}

// Noise returns what Block.Noise is for a coding of K: NoisePerScale2 where the row bias is on.
// 8 bits and more need no bias.
func Noise(c quant.Coding, rowBias bool) float32 {
	if !rowBias || !c.Format.Nested() {
		return 0
	}
	return float32(c.NoisePerScale2())
}

// Load uploads the blocks of a record, per head. first is the position of the segment.
func Load(up *input.Uploader, h *container.Header, rec *container.Record, number int,
	rowBias bool) ([][]backend.Block, error) {
	heads := make([][]backend.Block, len(rec.Heads))
	base := h.SegmentStart(rec.Segment)
	for hi := range rec.Heads {
		var mean backend.Span
		if rec.Heads[hi].Centered() {
			var err error
			if mean, err = up.Upload(rec.Heads[hi].MeanK); err != nil {
				return nil, err
			}
		}
		for bi := range rec.Heads[hi].Blocks {
			b := &rec.Heads[hi].Blocks[bi]
			if b.Level == quant.Dropped {
				continue
			}
			var err error
			put := func(data []byte) (s backend.Span) {
				if err == nil {
					s, err = up.Upload(data)
				}
				return s
			}
			blk := backend.Block{
				Layer:  int32(number),
				KVHead: int32(hi),
				Rows:   int32(b.Rows()),
				Base:   base,
				K:      backend.Side{Coding: b.K, Data: put(b.KData), Seed: h.Seed},
				V:      backend.Side{Coding: b.V, Data: put(b.VData), Seed: h.Seed},
			}
			if blk.Metric = h.MetricOf(rec.Layer, hi, b); b.Centered {
				blk.MeanK = mean
			}
			blk.Noise = Noise(b.K, rowBias)
			blk.Pos = put(Shorts(FirstTokens(b.Tokens, b.Counts)))
			if b.Counts != nil {
				blk.Count = put(Shorts(b.Counts))
			}
			if err != nil {
				return nil, err
			}
			heads[hi] = append(heads[hi], blk)
		}
	}
	return heads, nil
}

// FirstTokens returns the first token of every row; counts are nil where each token is a row.
func FirstTokens(tokens, counts []uint16) []uint16 {
	if counts == nil {
		return tokens
	}
	at, first := 0, make([]uint16, 0, len(counts))
	for _, n := range counts {
		first = append(first, tokens[at])
		at += int(n)
	}
	return first
}

func Shorts(x []uint16) []byte {
	b := make([]byte, 2*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint16(b[2*i:], v)
	}
	return b
}

// Decode unpacks one side of a block to float32 rows.
func Decode(c quant.Coding, data []byte, rows, dim int, seed uint64) (quant.Rows, error) {
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	return x, quant.Decode(x, c, data, seed)
}

// DecodeK unpacks the rows of K of a block of a head of a record, out of their metric and with their mean.
func DecodeK(h *container.Header, rec *container.Record, head int, b *container.Block) (quant.Rows, error) {
	dim, _ := h.Dims(rec.Layer)
	x, err := Decode(b.K, b.KData, b.Rows(), dim, h.Seed)
	metric := h.MetricOf(rec.Layer, head, b)
	if err != nil || !b.Centered && metric == nil {
		return x, err
	}
	var mean []byte
	if b.Centered {
		mean = rec.Heads[head].MeanK
	}
	if err := frame.Uncenter(x, x, mean, metric); err != nil {
		return x, fmt.Errorf("kvist/blocks: K with its mean: %w (%w)", err, quant.ErrCorrupt)
	}
	return x, nil
}

// PackRow stores a decoded row in the element type of the original. A value that rounding pushed
// past the type's largest is held there: what was finite stays finite.
func PackRow(dst []byte, dt quant.DType, row []float32) {
	if dt == quant.Float16 { // most rows
		half.Narrow(dst, row)
		return
	}
	for i, v := range row {
		switch dt {
		case quant.Float32:
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
		case quant.BFloat16:
			h := quant.F32ToBF16(v)
			if h&0x7fff == 0x7f80 && !math.IsInf(float64(v), 0) {
				h--
			}
			binary.LittleEndian.PutUint16(dst[2*i:], h)
		}
	}
}
