// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/quant"
)

// Restored says what Decompress brought back.
type Restored struct {
	Tensors int
	Bytes   int64
	// Lost names the records that a salvage could not read; their tokens are zeros and marked in
	// layers.N.kept. Empty for an intact file.
	Lost []string
	// DroppedRows counts rows of tokens that the plan dropped.
	DroppedRows int64
}

// Decompress writes the capture that a file stands for to w: k and v (or the rows) and the side
// tensors. layers.N.kept is written for layers with dropped or lost tokens, and layers.N.bias for
// files with a row bias (package capture). A merged row is written at each of its positions. With
// Options.Salvage, records may be missing or damaged. Several goroutines write ranges of w at once,
// as io.WriterAt allows.
//
// Errors: *container.CorruptError for a damaged record unless salvage; quant.ErrTooLarge for a file
// that promises more than 4096 times its size; those of w.
func Decompress(ctx context.Context, r *container.Reader, w io.WriterAt, o Options) (*Restored, error) {
	d := &decompressor{r: r, h: r.Header(), salvage: o.Salvage, say: o.Progress, res: &Restored{},
		workers: recordWorkers(r.Header())}
	var err error
	if d.codec, err = cold.OpenCodec(r, o.profiles()); err != nil &&
		!(o.Salvage && errors.Is(err, quant.ErrCorrupt)) {
		return nil, err
	}
	d.rowBias = blocks.RowBias(d.h) && (d.h.QueryEnergy != nil || d.codec != nil && d.h.Kind == container.KindCache)
	if err := checkExpansion(r); err != nil {
		return nil, err
	}
	if err := d.open(w); err != nil {
		return nil, err
	}
	for i := range d.h.Stored() {
		d.say.Say("decompressing", int64(i), int64(d.h.Stored()))
		for s := range int(d.h.Segments(i)) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			done, err := d.archivedAhead(ctx, i, s)
			if err == nil && !done {
				err = d.segment(i, s)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	d.say.Say("decompressing", int64(d.h.Stored()), int64(d.h.Stored()))
	if err := d.sides(); err != nil {
		return nil, err
	}
	d.res.Tensors, d.res.Bytes = len(d.out.Tensors()), d.out.Size()
	return d.res, d.out.Close()
}

type decompressor struct {
	r       *container.Reader
	h       *container.Header
	out     *capture.Writer
	salvage bool
	rowBias bool
	codec   *archive.Codec // nil without records in archive form
	ahead   *writtenAhead
	workers int
	rooms   cold.Rooms
	hot     bool         // records are in hot form
	kept    map[int]bool // layers that get a kept tensor
	say     progress.Func
	res     *Restored
}

// open scans what the output needs and declares its tensors.
func (d *decompressor) open(w io.WriterAt) error {
	if err := d.scan(); err != nil {
		return err
	}
	infos, err := d.r.Auxes()
	if err != nil && !d.salvage {
		return err
	}
	var decls []capture.Decl
	var inner error
	declare := func(name, dtype string, shape ...int64) {
		decls = append(decls, capture.Decl{Name: name, DTypeName: dtype, Shape: shape})
	}
	for _, a := range infos {
		if !cold.Internal(a.Name) {
			declare(a.Name, a.DType, a.Shape...)
		}
	}
	if d.h.Kind == container.KindRows {
		for _, t := range d.h.Tensors {
			declare(t.Name, t.DType, t.Shape...)
		}
		if d.h.Origin == "npy" && len(decls) == 1 {
			d.out, inner = capture.NewNpyWriter(w, decls[0])
			return inner
		}
		d.out, inner = capture.NewWriter(w, decls, d.h.Metadata)
		return inner
	}
	g, heads := d.h.Geometry, int64(d.h.Geometry.KVHeads)
	for i, n := range d.h.Layers {
		declare(tensorName(n, "k"), d.h.KType.String(), heads, d.h.Tokens, int64(g.HeadDim))
		declare(tensorName(n, "v"), d.h.VType.String(), heads, d.h.Tokens, int64(g.HeadDimV))
		if d.kept[i] {
			declare(tensorName(n, "kept"), "U8", heads, d.h.Tokens)
		}
		if d.rowBias {
			declare(tensorName(n, "bias"), "F32", heads, d.h.Tokens)
		}
	}
	shape, freqs := capture.KVFrequencies(g)
	if shape != nil {
		declare("rope_inv_freq", "F32", shape...)
	}
	meta := maps.Clone(d.h.Metadata)
	if len(meta) == 0 {
		meta = capture.KVMetadata(g, d.h.Model, d.h.First)
	}
	if d.out, inner = capture.NewWriter(w, decls, meta); inner != nil {
		return inner
	}
	if shape != nil {
		return d.out.WriteAt("rope_inv_freq", 0, input.AppendFloats(nil, freqs))
	}
	return nil
}

func tensorName(layer int, part string) string { return fmt.Sprintf("layers.%d.%s", layer, part) }

// scan finds the layers with dropped or lost tokens, which get a kept tensor. segment reads the
// records again.
func (d *decompressor) scan() error {
	d.kept = map[int]bool{}
	for i := range d.h.Stored() {
		for s := range int(d.h.Segments(i)) {
			rec, err := d.record(i, s)
			if err != nil {
				return err
			}
			if rec == nil {
				d.kept[i] = true
				continue
			}
			d.kept[i] = d.kept[i] || rec.Archive != nil && cold.Dropped(d.h, rec) > 0
			for _, h := range rec.Heads {
				for _, b := range h.Blocks {
					d.kept[i] = d.kept[i] || b.Level == quant.Dropped
				}
			}
		}
	}
	return nil
}

// record reads a record. It returns nil for one that a salvage does without.
func (d *decompressor) record(layer, segment int) (*container.Record, error) {
	at, ok := d.r.Find(layer, segment)
	if !ok {
		if d.salvage {
			return nil, nil
		}
		return nil, fmt.Errorf(
			"kvist/kvfile: record of layer index %d segment %d is not in the file: %w", layer,
			segment, quant.ErrCorrupt)
	}
	rec, err := d.r.ReadRecord(at)
	if err == nil && d.salvage && rec.Archive != nil {
		room := d.rooms.Take()
		defer d.rooms.Put(room)
		_, _, err = cold.Rows(d.codec, d.h, rec, room) // whether it can be read is known only then
	}
	if err != nil && d.salvage && errors.Is(err, quant.ErrCorrupt) {
		return nil, nil
	}
	return rec, err
}

// segment decodes one record and writes its rows.
func (d *decompressor) segment(layer, seg int) error {
	rec, err := d.record(layer, seg)
	if err != nil {
		return err
	}
	first, n := d.h.SegmentStart(seg), d.h.SegmentLen(layer, seg)
	if rec == nil {
		d.lose(fmt.Sprintf("%s segment %d (tokens %d to %d)", d.name(layer), seg, first, first+int64(n)))
		rec = &container.Record{
			Layer:   layer,
			Segment: seg,
			Heads:   make([]container.Head, d.h.KVHeads()),
		}
	}
	if rec.Archive != nil {
		return d.archiveSegment(rec)
	}
	kDim, vDim := d.h.Dims(layer)
	for hi := range rec.Heads {
		kept, bias := make([]byte, n), make([]float32, n)
		for side, dim := range []int{kDim, vDim} {
			if dim == 0 {
				continue
			}
			name, dt := d.sideTensor(layer, side)
			rows := make([]byte, n*dim*dt.Size())
			for bi := range rec.Heads[hi].Blocks {
				if err := d.block(rec, hi, &rec.Heads[hi].Blocks[bi], side, dim, dt, rows, kept); err != nil {
					return fmt.Errorf("kvist/kvfile: %s segment %d head %d block %d: %w",
						d.name(layer), seg, hi, bi, err)
				}
			}
			at := (int64(hi)*d.h.LayerTokens(layer) + first) * int64(dim*dt.Size())
			if err := d.out.WriteAt(name, at, rows); err != nil {
				return err
			}
		}
		if d.h.Kind == container.KindRows {
			continue
		}
		at := int64(hi)*d.h.Tokens + first
		if d.kept[layer] {
			if err := d.out.WriteAt(tensorName(d.h.Layers[layer], "kept"), at, kept); err != nil {
				return err
			}
		}
		if d.rowBias {
			if err := d.biases(rec, hi, kDim, layer, bias); err != nil {
				return err
			}
			if err := d.out.WriteAt(tensorName(d.h.Layers[layer], "bias"), 4*at, input.AppendFloats(nil, bias)); err != nil {
				return err
			}
		}
		for _, k := range kept {
			if k == 0 {
				d.res.DroppedRows++
			}
		}
	}
	return nil
}

func (d *decompressor) name(layer int) string {
	if d.h.Kind == container.KindRows {
		return fmt.Sprintf("tensor %q", d.h.Tensors[layer].Name)
	}
	return fmt.Sprintf("layer %d", d.h.Layers[layer])
}

// sideTensor returns the output tensor of side 0 (K, or the rows) or 1 (V), and its element type.
func (d *decompressor) sideTensor(layer, side int) (string, quant.DType) {
	if d.h.Kind == container.KindRows {
		return d.h.Tensors[layer].Name, d.h.Types(layer)[0]
	}
	if side == 0 {
		return tensorName(d.h.Layers[layer], "k"), d.h.KType
	}
	return tensorName(d.h.Layers[layer], "v"), d.h.VType
}

// block writes the rows of one side of a block to their tokens' places.
func (d *decompressor) block(rec *container.Record, head int, b *container.Block, side, dim int, dt quant.DType,
	rows, kept []byte) error {
	if b.Level == quant.Dropped {
		return nil
	}
	coding, data := b.K, b.KData
	if side == 1 {
		coding, data = b.V, b.VData
	}
	size := dim * dt.Size()
	packed := data // rows that kept their type are copied bit by bit
	if coding.Format != dt.Format() || side == 0 && b.Centered {
		var x quant.Rows
		var err error
		if side == 0 {
			x, err = blocks.DecodeK(d.h, rec, head, b)
		} else {
			x, err = blocks.Decode(coding, data, b.Rows(), dim, d.h.Seed)
		}
		if err != nil {
			return err
		}
		packed = make([]byte, b.Rows()*size)
		for r := range b.Rows() {
			blocks.PackRow(packed[r*size:(r+1)*size], dt, x.Row(r))
		}
	}
	eachToken(b, func(row int, token uint16) {
		copy(rows[int(token)*size:(int(token)+1)*size], packed[row*size:(row+1)*size])
		kept[token] = 1
	})
	return nil
}

// eachToken calls f for each token of a block, with the row that stands for it.
func eachToken(b *container.Block, f func(row int, token uint16)) {
	if b.Level == quant.Dropped {
		return
	}
	row, left := -1, 0
	for _, t := range b.Tokens {
		if b.Counts == nil {
			row++
		} else {
			if left == 0 {
				row++
				left = int(b.Counts[row])
			}
			left--
		}
		f(row, t)
	}
}

// biases computes the row bias of every token of a head. The mean energy of the head's queries takes
// the place of a query.
func (d *decompressor) biases(rec *container.Record, head, dim, layer int, bias []float32) error {
	if d.h.QueryEnergy == nil {
		return nil // what is left of an archive
	}
	scale := float32(d.h.Geometry.ScaleOf(d.h.Layers[layer]))
	energy := d.h.QueryEnergy[layer*d.h.KVHeads()+head]
	for bi := range rec.Heads[head].Blocks {
		b := &rec.Heads[head].Blocks[bi]
		noise := blocks.Noise(b.K, true)
		if b.Level == quant.Dropped || noise == 0 {
			continue
		}
		scales := make([]float32, b.Rows())
		if err := quant.RowScales(scales, b.K, b.KData, b.Rows(), dim); err != nil {
			return err
		}
		eachToken(b, func(row int, token uint16) {
			bias[token] = quant.RowBias(scale, energy, noise, scales[row])
		})
	}
	return nil
}

// sides writes the side tensors.
func (d *decompressor) sides() error {
	infos, err := d.r.Auxes()
	if err != nil && !d.salvage {
		return err
	}
	for _, info := range infos {
		if cold.Internal(info.Name) {
			continue
		}
		a, err := d.r.ReadAux(info.Name)
		if err != nil {
			if !d.salvage || !errors.Is(err, quant.ErrCorrupt) {
				return err
			}
			d.lose(fmt.Sprintf("side tensor %q", info.Name))
			a = &container.Aux{Name: info.Name, Data: make([]byte, info.Decoded)}
		}
		if err := d.out.WriteAt(info.Name, 0, a.Data); err != nil {
			return err
		}
	}
	return nil
}
