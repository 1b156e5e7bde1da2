// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/cmd/kvist/internal/spectrum"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// headSpectrum is the spectrum of one side of one head.
type headSpectrum struct {
	Name string `json:"name"` // "layer 9", `tensor "x"`
	Side string `json:"side"` // "K", "V" or "rows"
	Head int    `json:"head"`
	spectrum.Spectrum
}

// sampleRows is how many rows of a head are measured unless all are asked for; spectrumStep how
// many are read at once.
const (
	sampleRows   = 4096
	spectrumStep = 512
)

// add appends the spectrum of rows rows of dim values that read hands out in steps: all of them, or
// limit of them in evenly spaced steps.
func (r *inspectJSON) add(ctx context.Context, name, side string, head int, rows int64, dim int,
	limit int64,
	read func(first int64, dst []float32) error) error {
	acc, err := spectrum.New(dim)
	if errors.Is(err, quant.ErrTooLarge) {
		r.skipped = oneLine(err)
		return nil
	}
	if err != nil {
		return err
	}
	every := int64(1)
	if limit > 0 && rows > limit {
		every = (rows + limit - 1) / limit
	}
	buf := make([]float32, int(min(rows, spectrumStep))*dim)
	for step, first := int64(0), int64(0); first < rows; step, first = step+1, first+spectrumStep {
		if step%every != 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:int(min(spectrumStep, rows-first))*dim]
		if err := read(first, part); err != nil {
			return err
		}
		if err := acc.Add(part); err != nil {
			return err
		}
	}
	s, err := acc.Result()
	r.Spectra = append(r.Spectra, headSpectrum{name, side, head, s})
	return err
}

// captureSpectra measures K and V of a capture, or its rows.
func captureSpectra(ctx context.Context, src *capture.Source, limit int64, res *inspectJSON,
	say progress) error {
	one := func(name, side string, t capture.Tensor) error {
		for h := range t.Heads() {
			err := res.add(ctx, name, side, h, int64(t.Rows()), t.Dim(), limit, func(first int64,
				dst []float32) error {
				return t.ReadF32(h, int(first), len(dst)/t.Dim(), dst)
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	for i, n := range src.Info().Layers {
		say.say("measuring the spectrum", int64(i), int64(len(src.Info().Layers)))
		for _, part := range []capture.Part{capture.K, capture.V} {
			t, _ := src.KV(n, part) // every layer has K and V
			side := map[capture.Part]string{capture.K: "K", capture.V: "V"}[part]
			if err := one(fmt.Sprintf("layer %d", n), side, t); err != nil {
				return err
			}
		}
	}
	acts := src.ActTensors()
	for i, t := range acts {
		say.say("measuring the spectrum", int64(i), int64(len(acts)))
		if err := one(fmt.Sprintf("tensor %q", t.Name), "rows", t.Tensor); err != nil {
			return err
		}
	}
	return nil
}

// containerSpectra measures the decoded rows of a file, a record at a time. Rows that stand for
// several tokens count once for each of them.
func containerSpectra(ctx context.Context, r *container.Reader, limit int64, res *inspectJSON,
	say progress) error {
	h := r.Header()
	for i := range h.Stored() {
		say.say("measuring the spectrum", int64(i), int64(h.Stored()))
		kDim, vDim := h.Dims(i)
		if max(kDim, vDim) > spectrum.MaxDim {
			res.skipped = fmt.Sprintf("rows of %d values, the spectrum takes at most %d", max(kDim,
				vDim), spectrum.MaxDim)
			continue
		}
		if err := headSpectra(ctx, r, i, limit, res); err != nil {
			return err
		}
	}
	return nil
}

// spectrumBytes is what the accumulators of the heads that are measured at a time may take. A single
// head of the longest rows takes as much.
const spectrumBytes = 8 * spectrum.MaxDim * spectrum.MaxDim

// headSpectra measures a layer of a file, as many heads at a time as memory allows.
func headSpectra(ctx context.Context, r *container.Reader, layer int, limit int64,
	res *inspectJSON) error {
	h := r.Header()
	kDim, vDim := h.Dims(layer)
	var name string
	sides := []string{"K", "V"}
	if h.Kind == container.KindCache {
		name = fmt.Sprintf("layer %d", h.Layers[layer])
	} else {
		name, sides = fmt.Sprintf("tensor %q", h.Tensors[layer].Name), []string{"rows"}
	}
	var all [2][]headSpectrum
	atOnce := max(1, spectrumBytes/(8*(kDim*kDim+vDim*vDim)))
	for first := 0; first < h.KVHeads(); first += atOnce {
		heads := min(atOnce, h.KVHeads()-first)
		accs := make([][]*spectrum.Accumulator, len(sides)) // [sides][heads]
		for side := range accs {
			for range heads {
				acc, err := spectrum.New([]int{kDim, vDim}[side])
				if err != nil {
					return err
				}
				accs[side] = append(accs[side], acc)
			}
		}
		packed, err := layerSpectra(ctx, r, layer, limit, first, accs)
		if err != nil {
			return err
		}
		if !packed {
			res.skipped = "the rows are in archive form: decompress them first"
			return nil
		}
		for side := range accs {
			for hi, acc := range accs[side] {
				s, err := acc.Result()
				if err != nil {
					return err
				}
				accs[side][hi] = nil // its memory is for the next
				all[side] = append(all[side], headSpectrum{name, sides[side], first + hi, s})
			}
		}
	}
	res.Spectra = append(append(res.Spectra, all[0]...), all[1]...)
	return nil
}

// layerSpectra decodes the records of a layer, the heads from first on that accs are for: all records, or
// some of them evenly spaced. It reports false where one is in archive form.
func layerSpectra(ctx context.Context, r *container.Reader, layer int, limit int64, first int,
	accs [][]*spectrum.Accumulator) (packed bool, err error) {
	h := r.Header()
	_, vDim := h.Dims(layer)
	every := int64(1)
	if limit > 0 {
		every = max(1, h.LayerTokens(layer)/max(limit, int64(h.SegmentTokens)))
	}
	for s := int64(0); s < h.Segments(layer); s += every {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		at, ok := r.Find(layer, int(s))
		if !ok {
			continue // Open has checked that all are there
		}
		rec, err := r.ReadRecord(at)
		if err != nil {
			return false, err
		}
		if rec.Archive != nil {
			return false, nil
		}
		for hi, acc := range accs[0] {
			blocks := rec.Heads[first+hi].Blocks
			for bi := range blocks {
				b := &blocks[bi]
				if err := addSide(acc, h, rec, first+hi, b, 0); err != nil {
					return false, err
				}
				if vDim == 0 {
					continue
				}
				if err := addSide(accs[1][hi], h, rec, first+hi, b, 1); err != nil {
					return false, err
				}
			}
		}
	}
	return true, nil
}

// addSide adds the rows of side 0 (K) or 1 (V) of a block of a head.
func addSide(acc *spectrum.Accumulator, h *container.Header, rec *container.Record, head int, b *container.Block,
	side int) error {
	dim, vDim := h.Dims(rec.Layer)
	if b.Rows() == 0 {
		return nil
	}
	c, data := b.K, b.KData
	if side == 1 {
		c, data, dim = b.V, b.VData, vDim
	}
	x := quant.Rows{Dim: dim, Data: make([]float32, b.Rows()*dim)}
	if err := quant.Decode(x, c, data, h.Seed); err != nil {
		return err
	}
	if metric := h.MetricOf(rec.Layer, head, b); side == 0 && (b.Centered || metric != nil) {
		var mean []byte
		if b.Centered {
			mean = rec.Heads[head].MeanK
		}
		if err := frame.Uncenter(x, x, mean, metric); err != nil {
			return err
		}
	}
	if b.Counts == nil {
		return acc.Add(x.Data)
	}
	for row, n := range b.Counts {
		for range n {
			if err := acc.Add(x.Row(row)); err != nil {
				return err
			}
		}
	}
	return nil
}

// printSpectra prints the mean effective rank, or a table of all heads.
func (r *inspectJSON) printSpectra(p *printer, all bool) {
	if r.skipped != "" {
		p.printf("\nno spectrum: %s\n", r.skipped)
	}
	if len(r.Spectra) == 0 {
		return
	}
	p.printf("\n")
	if !all {
		p.printf("effective rank (mean over heads, of dim; --spectrum shows every head)\n")
		type key struct {
			side string
			dim  int
		}
		sums, n := map[key]float64{}, map[key]int{}
		var keys []key
		for _, s := range r.Spectra {
			k := key{s.Side, s.Dim}
			if n[k]++; n[k] == 1 {
				keys = append(keys, k)
			}
			sums[k] += s.EffectiveRank
		}
		slices.SortFunc(keys, func(a, b key) int {
			return cmp.Or(cmp.Compare(a.side, b.side),
				a.dim-b.dim)
		})
		for _, k := range keys {
			p.printf("  %-4s %.1f of %d\n", k.side, sums[k]/float64(n[k]), k.dim)
		}
		return
	}
	t := newTable([]any{"spectrum", "side", "head", "rows", "dim", "top share", "90 %", "99 %",
		"effective rank"},
		2, 3, 4, 5, 6, 7, 8)
	for _, s := range r.Spectra {
		t.AppendRow([]any{title(s.Name), s.Side, s.Head, count(s.Rows), s.Dim, percent(s.TopShare),
			s.Components90,
			s.Components99, fmt.Sprintf("%.1f", s.EffectiveRank)})
	}
	p.table(t)
}
