// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Rows of K are coded without the mean of their segment and head, which costs nothing to attend to: q.mean
// is the same for all of them. It takes most of the energy of K, and so of its error. The mean is that of
// the rows that are exact when the first of them are coded. Exact rows keep it, and rows of V too: where V
// is small and read much, its mean would add to the error. There is no metric: K of which some rotary pairs are far
// larger than queries care for loses more here than in a file.

// centered reports whether the rows of K are coded without the mean of their segment.
func (b *block) centered() bool { return b.rung[sideK] != f16 && b.rung[sideK] != gone }

// centering is the scratch memory for taking means off.
type centering struct {
	rows []byte    // [32, head_dim] binary16
	out  []byte    // [32, head_dim] float32
	sums []float64 // [head_dim]
	mean []byte    // [head_dim] binary16
	wide []float32 // [head_dim]
}

// floats returns w.mean as float32.
func (w *centering) floats() []float32 {
	for i := range w.wide {
		w.wide[i] = quant.F16ToF32(binary.LittleEndian.Uint16(w.mean[2*i:]))
	}
	return w.wide
}

// centeringBytes returns the bytes of newCentering.
func (c *memory) centeringBytes() int64 { return int64(c.geo.HeadDim) * (6*pageTokens + 14) }

func (c *memory) newCentering() centering {
	d := c.geo.HeadDim
	return centering{make([]byte, 2*pageTokens*d), make([]byte, 4*pageTokens*d), make([]float64, d), make([]byte, 2*d), make([]float32, d)}
}

// load fills w.mean with the mean of K of a segment, in head layer*kv_heads + kv_head. Where no row is
// coded yet, it is that of the exact rows of whole pages before position end.
func (w *centering) load(c *memory, s *segment, head int, end int64) error {
	blocks := s.blocks[head*s.pages : (head+1)*s.pages]
	at := c.arena.at(s.mean[head], int64(len(w.mean)))
	for i := range blocks {
		if blocks[i].centered() {
			return at.Buf.Download(at.Off, w.mean)
		}
	}
	clear(w.sums)
	n := 0
	for i := range blocks {
		b := &blocks[i]
		if b.at[sideK] == 0 || b.rung[sideK] != f16 || !s.closed && b.pos == 0 && s.lo+int64((i+1)*s.per) > end {
			continue
		}
		rows, err := w.fetch(c, b)
		if err != nil {
			return err
		}
		n += rows
		for r := range rows {
			row := w.rows[2*len(w.sums)*r:][:2*len(w.sums)]
			for i := range w.sums {
				if v := float64(quant.F16ToF32(binary.LittleEndian.Uint16(row[2*i:]))); !math.IsInf(v, 0) && v == v {
					w.sums[i] += v
				}
			}
		}
	}
	if err := frame.PutMeanOfSums(w.mean, w.sums, n); err != nil {
		return err
	}
	return at.Buf.Upload(at.Off, w.mean)
}

// fetch reads the exact rows of K of a block and returns how many there are.
func (w *centering) fetch(c *memory, b *block) (rows int, err error) {
	rows = pageTokens
	if b.pos != 0 {
		rows = int(b.rows)
	}
	at := c.side(b, sideK, rows).Data
	return rows, at.Buf.Download(at.Off, w.rows[:at.Len])
}

// center uploads the exact rows of K of a block without w.mean as float32, and returns their number and
// mean energy.
func (w *centering) center(c *memory, b *block, to backend.Span) (rows int, energy float32, err error) {
	if rows, err = w.fetch(c, b); err != nil {
		return 0, 0, err
	}
	d, sum := len(w.sums), 0.0
	mean := w.floats()
	for r := range rows {
		row, out := w.rows[2*d*r:][:2*d], w.out[4*d*r:][:4*d]
		for i, m := range mean {
			v := quant.F16ToF32(binary.LittleEndian.Uint16(row[2*i:])) - m
			sum += float64(v * v)
			binary.LittleEndian.PutUint32(out[4*i:], math.Float32bits(v))
		}
	}
	energy = float32(min(sum/float64(rows), math.MaxFloat32))
	return rows, energy, to.Buf.Upload(to.Off, w.out[:4*rows*d])
}

// uncenter adds w.mean to rows of float32.
func (w *centering) uncenter(rows int, at backend.Span) error {
	p := w.out[:4*rows*len(w.sums)]
	if err := at.Buf.Download(at.Off, p); err != nil {
		return err
	}
	mean := w.floats()
	for r := range rows {
		row := p[4*len(mean)*r:][:4*len(mean)]
		for i, m := range mean {
			v := math.Float32frombits(binary.LittleEndian.Uint32(row[4*i:])) + m
			binary.LittleEndian.PutUint32(row[4*i:], math.Float32bits(v))
		}
	}
	return at.Buf.Upload(at.Off, p)
}
