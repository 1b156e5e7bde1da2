// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"fmt"
	"io"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/quant"
)

// droppedCoding stands for values that are not stored, among codings.
const droppedCoding = "dropped"

// write encodes and writes the file.
func (c *compressor) write(ctx context.Context, w io.Writer, choice *plan.VariedPlan) (*Result, error) {
	res := &Result{Values: c.in.values(), Codings: map[string]int64{}}
	var err error
	if res.Sections, err = c.sections(choice); err != nil {
		return nil, err
	}
	out, err := container.NewWriter(w, c.header)
	if err != nil {
		return nil, err
	}
	for _, a := range c.aux {
		if err := out.WriteAux(a); err != nil {
			return nil, err
		}
	}
	var total, done int64
	for i := range c.in.layers {
		total += int64(c.in.layers[i].segments())
	}
	err = c.eachRecord(choice, func(rec *container.Record) error {
		c.say.say("encoding", done, total)
		done++
		if err := c.encodeRecord(ctx, rec); err != nil {
			return err
		}
		kDim, vDim := c.header.Dims(rec.Layer)
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
	c.say.say("encoding", total, total)
	res.Bytes = out.Size()
	s := res.Sections
	if sum := s.Header + s.Payload + s.Tables + s.Side + s.Index; sum != res.Bytes {
		return nil, fmt.Errorf("kvist/offline: wrote %d bytes where %d were planned: %w",
			res.Bytes, sum, quant.ErrCorrupt)
	}
	res.BitsPerValue = quant.BitsPerValue(res.Bytes, res.Values)
	res.OriginalBytes = 2 * res.Values
	res.Ratio = float64(res.OriginalBytes) / float64(max(1, res.Bytes))
	return res, nil
}

// encodeRecord fills the payloads of a record.
func (c *compressor) encodeRecord(ctx context.Context, rec *container.Record) error {
	l := &c.in.layers[rec.Layer]
	first, n := l.span(rec.Segment)
	up := &uploader{be: c.be}
	defer up.free()
	var jobs []backend.EncodeJob
	var into []*[]byte
	add := func(t tensor, head int, coding quant.Coding, b *container.Block, src, index backend.Span, data *[]byte) error {
		*data = make([]byte, coding.PackedBytes(b.Rows(), t.Dim()))
		dst, err := up.upload(*data)
		if err != nil {
			return err
		}
		jobs = append(
			jobs,
			backend.EncodeJob{
				Src:   src,
				DType: t.DType(),
				Index: index,
				Rows:  b.Rows(),
				Dim:   t.Dim(),
				Dst:   backend.Side{Coding: coding, Data: dst, Seed: c.cfg.Seed},
			},
		)
		into = append(into, data)
		return nil
	}
	// Merged rows are means, which go to the backend as float32.
	addMerged := func(h int, b *container.Block, r *segmentRows) error {
		view := c.headOf(l, h, c.weights[l.index].now[h], l.tokens)
		of := cell{level: b.Level, tokens: b.Tokens, counts: b.Counts}
		for side, x := range []quant.Rows{r.k, r.v} {
			coding, data := b.K, &b.KData
			if side == 1 {
				coding, data = b.V, &b.VData
			}
			src, err := up.upload(floats(view.rowsOf(r, &of, x)))
			if err != nil {
				return err
			}
			*data = make([]byte, coding.PackedBytes(b.Rows(), x.Dim))
			dst, err := up.upload(*data)
			if err != nil {
				return err
			}
			jobs = append(jobs, backend.EncodeJob{Src: src, DType: quant.Float32, Rows: b.Rows(),
				Dim: x.Dim, Dst: backend.Side{Coding: coding, Data: dst, Seed: c.cfg.Seed}})
			into = append(into, data)
		}
		return nil
	}
	for h := range rec.Heads {
		var spans [2]backend.Span
		for i, t := range []tensor{l.k, l.v}[:1+min(1, l.dimV())] {
			raw := make([]byte, n*t.RowBytes())
			if err := c.in.src.ReadRows(t, h, first, n, raw); err != nil {
				return err
			}
			var err error
			if spans[i], err = up.upload(raw); err != nil {
				return err
			}
		}
		var rows *segmentRows
		for bi := range rec.Heads[h].Blocks {
			b := &rec.Heads[h].Blocks[bi]
			if b.Level == quant.Dropped {
				continue
			}
			if b.Counts != nil {
				var err error
				if rows == nil {
					if rows, err = c.readSegment(l, h, rec.Segment, l.tokens); err != nil {
						return err
					}
				}
				if err := addMerged(h, b, rows); err != nil {
					return err
				}
				continue
			}
			index, err := up.upload(indexBytes(b.Tokens))
			if err != nil {
				return err
			}
			if err := add(l.k, h, b.K, b, spans[0], index, &b.KData); err != nil {
				return err
			}
			if l.hasV {
				if err := add(l.v, h, b.V, b, spans[1], index, &b.VData); err != nil {
					return err
				}
			}
		}
	}
	if err := c.be.Encode(ctx, jobs); err != nil {
		return fmt.Errorf("kvist/offline: encode %s segment %d (tokens %d to %d): %w", l.name,
			rec.Segment, first, first+n, err)
	}
	for i, j := range jobs {
		if err := j.Dst.Data.Buf.Download(0, *into[i]); err != nil {
			return err
		}
	}
	return nil
}

func indexBytes(tokens []uint16) []byte {
	b := make([]byte, 4*len(tokens))
	for i, t := range tokens {
		b[4*i], b[4*i+1] = byte(t), byte(t>>8)
	}
	return b
}
