// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"io"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/engine/internal/segment"
	"github.com/kvist-project/kvist/quant"
)

// droppedCoding stands for values that are not stored, among codings.
const droppedCoding = "dropped"

// write encodes and writes the file.
func (hf *hotFile) write(ctx context.Context, w io.Writer, choice *plan.Plan) (*Result, error) {
	res := &Result{Values: hf.c.in.Values(), Codings: map[string]int64{}}
	var err error
	if res.Sections, err = hf.sections(choice); err != nil {
		return nil, err
	}
	out, err := container.NewWriter(w, hf.c.header)
	if err != nil {
		return nil, err
	}
	for _, a := range hf.c.aux {
		if err := out.WriteAux(a); err != nil {
			return nil, err
		}
	}
	var total, done int64
	for i := range hf.c.in.Layers {
		total += int64(hf.c.in.Layers[i].Segments())
	}
	err = hf.eachRecord(choice, func(rec *container.Record) error {
		hf.c.say.Say("encoding", done, total)
		done++
		if err := hf.encodeRecord(ctx, rec); err != nil {
			return err
		}
		kDim, vDim := hf.c.header.Dims(rec.Layer)
		for _, h := range rec.Heads {
			for _, b := range h.Blocks {
				if b.Level == quant.Dropped {
					res.Codings[droppedCoding] += int64(len(b.Tokens) * (kDim + vDim))
					continue
				}
				res.Codings[b.K.String()] += int64(len(b.Tokens) * kDim)
				if vDim > 0 {
					res.Codings[b.V.String()] += int64(len(b.Tokens) * vDim)
				}
			}
		}
		return out.WriteRecord(rec)
	})
	if err != nil {
		return nil, err
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	hf.c.say.Say("encoding", total, total)
	res.Bytes = out.Size()
	s := res.Sections
	if sum := s.Header + s.Payload + s.Tables + s.Side + s.Index; sum != res.Bytes {
		return nil, fmt.Errorf("kvist/kvfile: wrote %d bytes where %d were planned: %w",
			res.Bytes, sum, quant.ErrCorrupt)
	}
	res.BitsPerValue = quant.BitsPerValue(res.Bytes, res.Values)
	res.OriginalBytes = 2 * res.Values
	res.Ratio = float64(res.OriginalBytes) / float64(max(1, res.Bytes))
	res.made(hf.c.header)
	return res, nil
}

// encodeRecord fills the payloads of a record.
func (hf *hotFile) encodeRecord(ctx context.Context, rec *container.Record) error {
	l := &hf.c.in.Layers[rec.Layer]
	e := &recordEncoder{c: hf.c, l: l, rec: rec, up: &input.Uploader{Backend: hf.c.be}}
	defer e.up.Free()
	for h := range rec.Heads {
		if err := e.head(h); err != nil {
			return err
		}
	}
	if err := hf.c.be.Encode(ctx, e.jobs); err != nil {
		first, n := l.Span(rec.Segment)
		return fmt.Errorf("kvist/kvfile: encode %s segment %d (tokens %d to %d): %w", l.Name,
			rec.Segment, first, first+n, err)
	}
	for i, j := range e.jobs {
		if err := j.Dst.Data.Buf.Download(0, *e.into[i]); err != nil {
			return err
		}
	}
	return nil
}

// recordEncoder collects the jobs of a record.
type recordEncoder struct {
	c    *compressor
	l    *input.Layer
	rec  *container.Record
	up   *input.Uploader
	jobs []backend.EncodeJob
	into []*[]byte // where the packed bytes of each job go
}

// head adds the blocks of a head.
func (e *recordEncoder) head(h int) error {
	sides := []input.Tensor{e.l.K, e.l.V}[:1+min(1, e.l.DimV())]
	first, n := e.l.Span(e.rec.Segment)
	var spans [2]backend.Span
	for i, t := range sides {
		raw := make([]byte, n*t.RowBytes())
		if err := t.Read(h, first, n, raw); err != nil {
			return err
		}
		var err error
		if spans[i], err = e.up.Upload(raw); err != nil {
			return err
		}
	}
	var rows *segment.Rows
	for bi := range e.rec.Heads[h].Blocks {
		b := &e.rec.Heads[h].Blocks[bi]
		if b.Level == quant.Dropped {
			continue
		}
		moved := b.Centered || e.c.header.MetricOf(e.rec.Layer, h, b) != nil
		if (b.Counts != nil || moved) && rows == nil {
			var err error
			if rows, err = e.c.seg.Read(e.l, h, e.rec.Segment, e.l.Tokens); err != nil {
				return err
			}
		}
		if b.Centered {
			e.rec.Heads[h].MeanK = rows.Mean.Stored
		}
		if b.Counts != nil {
			if err := e.made(h, b, rows, 0, 1); err != nil {
				return err
			}
			continue
		}
		index, err := e.up.Upload(indexBytes(b.Tokens))
		if err != nil {
			return err
		}
		for i, t := range sides {
			if i == 0 && moved {
				if err := e.made(h, b, rows, 0); err != nil {
					return err
				}
				continue
			}
			job := backend.EncodeJob{Src: spans[i], DType: t.DType(), Index: index, Dim: t.Dim()}
			if err := e.add(b, i, job); err != nil {
				return err
			}
		}
	}
	return nil
}

// made adds sides of a block whose rows are not those of the capture: merged rows, and rows of K without their
// mean or in a metric. They go to the backend as float32.
func (e *recordEncoder) made(h int, b *container.Block, r *segment.Rows, sides ...int) error {
	view := e.c.seg.Head(e.l, h, e.c.seg.Weights[e.l.Index].Now[h], e.l.Tokens)
	of := segment.Cell{Level: b.Level, Tokens: b.Tokens, Counts: b.Counts}
	for _, i := range sides {
		x := [2]quant.Rows{r.K, r.V}[i]
		x.Data = view.RowsOf(r, &of, x, i)
		if i == 0 && !b.K.Format.Exact() {
			var err error
			if x, err = r.Center(x, b.Centered); err != nil {
				return err
			}
		}
		src, err := e.up.Upload(input.AppendFloats(nil, x.Data))
		if err != nil {
			return err
		}
		job := backend.EncodeJob{Src: src, DType: quant.Float32, Dim: x.Dim}
		if err := e.add(b, i, job); err != nil {
			return err
		}
	}
	return nil
}

// add adds the job of side 0 (K, or the rows) or 1 (V) of a block.
func (e *recordEncoder) add(b *container.Block, side int, job backend.EncodeJob) error {
	coding, data := b.K, &b.KData
	if side == 1 {
		coding, data = b.V, &b.VData
	}
	*data = make([]byte, coding.PackedBytes(b.Rows(), job.Dim))
	dst, err := e.up.Upload(*data)
	job.Rows = b.Rows()
	job.Dst = backend.Side{Coding: coding, Data: dst, Seed: e.c.cfg.Seed}
	e.jobs, e.into = append(e.jobs, job), append(e.into, data)
	return err
}

func indexBytes(tokens []uint16) []byte {
	b := make([]byte, 4*len(tokens))
	for i, t := range tokens {
		b[4*i], b[4*i+1] = byte(t), byte(t>>8)
	}
	return b
}
