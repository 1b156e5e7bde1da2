// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant/trellis"
)

// chunkTiles is the number of tiles of a side tensor.
const chunkTiles = 64 * segmentTiles

// The places of numbers in the tensor of that name.
const (
	numDim = iota
	numMetric
	numRotated
	numHead
	numRows
	numDense
	numLength
	numSlope
	numTop
	numRatio
	numError
	numAdded
	numBounded
	numEnergy
	numDamage
	_
	numNumbers
)

// Save writes the index to a file, whole or not at all. It is the index at the time of the call.
//
// Errors: those of the file system.
func (x *Index) Save(path string) error {
	f, err := atomicfile.Create(path, true)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err = x.Write(w); err == nil {
		err = w.Flush()
	}
	if err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}

// Write writes the index as a .kvist file of kind vectors.
//
// Errors: those of w.
func (x *Index) Write(w io.Writer) error {
	s := x.state.Load()
	c := x.coding
	out, err := container.NewWriter(w, &container.Header{Kind: container.KindVectors, Seed: c.Seed, Config: c.String()})
	if err != nil {
		return err
	}
	for _, a := range c.tensors(s) {
		if err := out.WriteAux(a); err != nil {
			return err
		}
	}
	for first := 0; first*trellis.TileRows < s.rows; first += chunkTiles {
		for _, a := range c.chunk(s, first) {
			if err := out.WriteAux(a); err != nil {
				return err
			}
		}
	}
	return out.Close()
}

// String describes the coding in one line.
func (c *coding) String() string {
	kind := "calibrated"
	if c.Rotated {
		kind = "oblivious"
	}
	return fmt.Sprintf("%s dim=%d metric=%s bytes=%d", kind, c.Dim, c.params.Metric, c.rowBytes())
}

// tensors returns what describes the coding.
func (c *coding) tensors(s *state) []*container.Aux {
	numbers := make([]float64, numNumbers)
	numbers[numDim], numbers[numMetric], numbers[numHead] = float64(c.Dim), float64(c.params.Metric), float64(c.Head)
	numbers[numRows], numbers[numRotated], numbers[numDense] = float64(s.rows), flag(c.Rotated), flag(s.dense)
	numbers[numLength], numbers[numSlope] = float64(c.Length), float64(c.Slope)
	numbers[numTop], numbers[numRatio], numbers[numError] = c.Top, c.Ratio, c.Error
	numbers[numAdded], numbers[numBounded] = float64(s.stats.rows), float64(s.stats.bounded)
	numbers[numEnergy], numbers[numDamage] = s.stats.energy, s.stats.damage
	list := []*container.Aux{
		aux("numbers", "F64", bytesOf64(numbers), numNumbers),
		aux("cells", "U8", c.Cells, len(c.Cells)),
	}
	if c.Rotated {
		return list
	}
	axes := make([]byte, len(c.axes))
	for i, v := range c.axes {
		axes[i] = byte(v)
	}
	return append(list,
		aux("mean", "F32", bytesOf32(c.Mean), c.Dim),
		aux("axes", "I8", axes, len(c.scales), c.Dim),
		aux("axes.scale", "F32", bytesOf32(c.scales), len(c.scales)),
		aux("sd", "F32", bytesOf32(c.SD), len(c.SD)))
}

// chunk returns the tensors of the tiles from first on.
func (c *coding) chunk(s *state, first int) []*container.Aux {
	i := first / chunkTiles
	var head, tail, factors []byte
	var norms []float32
	var ids []uint64
	put := func(g segment) {
		head, tail, factors = append(head, g.head...), append(tail, g.tail...), append(factors, g.factors...)
		norms, ids = append(norms, g.norms...), append(ids, g.ids...)
	}
	for v := first / segmentTiles; v < min(len(s.segments), (first+chunkTiles)/segmentTiles); v++ {
		g, _ := s.view(c, v)
		put(g)
	}
	if n := s.tiles(); s.rows%trellis.TileRows > 0 && n >= first && n < first+chunkTiles {
		put(*s.last)
	}
	rows := len(factors) / c.factorBytes()
	tiles := rows / trellis.TileRows
	list := []*container.Aux{aux(fmt.Sprint("head.", i), "U8", head, tiles, c.parts[0].TileBytes())}
	if n := c.parts[1].TileBytes(); n > 0 {
		list = append(list, aux(fmt.Sprint("tail.", i), "U8", tail, tiles, n))
	}
	list = append(list, aux(fmt.Sprint("factor.", i), "U8", factors, rows, c.factorBytes()))
	if c.params.Metric == L2 {
		list = append(list, aux(fmt.Sprint("norm.", i), "F32", bytesOf32(norms), rows))
	}
	if !s.dense {
		b := make([]byte, 0, 8*len(ids))
		for _, id := range ids {
			b = binary.LittleEndian.AppendUint64(b, id)
		}
		list = append(list, aux(fmt.Sprint("id.", i), "U64", b, rows))
	}
	return list
}

func aux(name, dtype string, data []byte, shape ...int) *container.Aux {
	a := &container.Aux{Name: name, DType: dtype, Data: data, Plain: true}
	for _, n := range shape {
		a.Shape = append(a.Shape, int64(n))
	}
	return a
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func bytesOf32(x []float32) []byte {
	b := make([]byte, 0, 4*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func bytesOf64(x []float64) []byte {
	b := make([]byte, 0, 8*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return b
}
