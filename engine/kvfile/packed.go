// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// Packed is a cache that stays packed in the memory of a backend, and is attended to there. It may be used by
// many goroutines.
type Packed struct {
	be     backend.Backend
	done   func() error
	up     *input.Uploader
	geo    quant.Geometry
	tokens int
	size   int64
	layers []int   // the model's numbers
	first  [][]int // [layers][kv_heads+1]: the blocks of each head in the table
	table  backend.Table
	view   backend.View
}

// Pack compresses a cache that a program holds, in the memory of a backend.
//
// Errors: quant.ErrShape, quant.ErrBudget, quant.ErrRange; those of the backend.
func Pack(ctx context.Context, m *Memory, opts ...Option) (*Packed, error) {
	o, err := settle(opts)
	if err != nil {
		return nil, err
	}
	n, err := m.tokens()
	if err != nil {
		return nil, err
	}
	be, done, err := o.backend()
	if err != nil {
		return nil, err
	}
	var file bytes.Buffer
	if _, err := compress(ctx, memoryOrigin{m, n}, &file, be, o.cfg, o.weights, o.progress); err != nil {
		return nil, errors.Join(err, done())
	}
	r, err := container.Open("memory", bytes.NewReader(file.Bytes()), int64(file.Len()), container.Limits{})
	if err != nil {
		return nil, errors.Join(err, done())
	}
	return load(r, be, done, o)
}

// Write compresses a cache that a program holds to a file that is written to w.
//
// Errors: as Pack, and those of w.
func (m *Memory) Write(ctx context.Context, w io.Writer, opts ...Option) (*Result, error) {
	o, err := settle(opts)
	if err != nil {
		return nil, err
	}
	n, err := m.tokens()
	if err != nil {
		return nil, err
	}
	return o.compress(ctx, memoryOrigin{m, n}, w)
}

// Open loads the cache of a .kvist file into the memory of a backend. Rows in archive form are decoded.
//
// Errors: quant.ErrUnsupported for a file of rows; *container.CorruptError, *container.RefusedError,
// *MissingProfileError; those of the file system and the backend.
func Open(path string, opts ...Option) (_ *Packed, err error) {
	o, err := settle(opts)
	if err != nil {
		return nil, err
	}
	f, r, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	be, done, err := o.backend()
	if err != nil {
		return nil, err
	}
	return load(r, be, done, o)
}

// load uploads the blocks of all layers. It calls done where it fails.
func load(r *container.Reader, be backend.Backend, done func() error, o *options) (_ *Packed, err error) {
	h := r.Header()
	p := &Packed{be: be, done: done, up: &input.Uploader{Backend: be}, geo: h.Geometry, tokens: int(h.Tokens),
		size: r.Size(), layers: h.Layers}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if h.Kind != container.KindCache {
		return nil, fmt.Errorf("kvist/kvfile: the file holds rows, want a cache: %w", quant.ErrUnsupported)
	}
	records, err := NewRecords(r, o.profiles...)
	if err != nil {
		return nil, err
	}
	p.table, err = be.NewTable(backend.Shape{HeadDim: p.geo.HeadDim, HeadDimV: p.geo.HeadDimV})
	if err != nil {
		return nil, err
	}
	at := 0
	for l := range h.Layers {
		byHead := make([][]backend.Block, h.Geometry.KVHeads)
		for s := range int(h.Segments(l)) {
			at, ok := r.Find(l, s)
			if !ok {
				return nil, fmt.Errorf("kvist/kvfile: layer %d segment %d is not in the file: %w", h.Layers[l], s,
					quant.ErrCorrupt)
			}
			rec, err := records.Record(at)
			if err != nil {
				return nil, err
			}
			heads, err := blocks.Load(p.up, h, rec, h.Layers[l], blocks.RowBias(h))
			if err != nil {
				return nil, err
			}
			for hd := range heads {
				byHead[hd] = append(byHead[hd], heads[hd]...)
			}
		}
		first := []int{at}
		for _, b := range byHead {
			if err := p.table.Set(at, b...); err != nil {
				return nil, err
			}
			at += len(b)
			first = append(first, at)
		}
		p.first = append(p.first, first)
	}
	p.view, err = p.table.View()
	return p, err
}

// Geometry returns the shape of the cache.
func (p *Packed) Geometry() quant.Geometry { return p.geo }

// Tokens returns the tokens of the cache.
func (p *Packed) Tokens() int { return p.tokens }

// Bytes returns the size of the file that the cache is, everything counted.
func (p *Packed) Bytes() int64 { return p.size }

// Attend computes the attention of tokens behind the cache over all of its tokens in one layer, by the model's
// number: q is [queries, heads, head_dim] with RoPE applied, out becomes [queries, heads, head_dim_v]. Scores are
// divided by the root of head_dim.
//
// Errors: quant.ErrShape, quant.ErrClosed; those of the backend.
func (p *Packed) Attend(ctx context.Context, layer int, q, out []float32) error {
	i := -1
	for at, n := range p.layers {
		if n == layer {
			i = at
		}
	}
	g := &p.geo
	n := len(q) / (g.Heads * g.HeadDim)
	switch {
	case p.view == nil:
		return fmt.Errorf("kvist/kvfile: attend to a cache that was closed: %w", quant.ErrClosed)
	case i < 0:
		return fmt.Errorf("kvist/kvfile: attend to layer %d: the cache holds layers %v: %w", layer, p.layers, quant.ErrShape)
	case len(q) != n*g.Heads*g.HeadDim || len(out) != n*g.Heads*g.HeadDimV:
		return fmt.Errorf("kvist/kvfile: attend to layer %d: q of %d values and room for %d, want multiples of %d and %d: %w",
			layer, len(q), len(out), g.Heads*g.HeadDim, g.Heads*g.HeadDimV, quant.ErrShape)
	}
	// Query heads of a KV head stand side by side, so that q is [queries * kv_heads, group, head_dim] too.
	b := &backend.Queries{Q: q, Group: g.GQARatio(), HeadDim: g.HeadDim, HeadDimV: g.HeadDimV,
		Scale: float32(1 / math.Sqrt(float64(g.HeadDim))), BlockPtr: []int32{0}}
	for range n {
		for h := range g.KVHeads {
			for at := p.first[i][h]; at < p.first[i][h+1]; at++ {
				b.BlockIdx = append(b.BlockIdx, int32(at))
			}
			b.BlockPtr = append(b.BlockPtr, int32(len(b.BlockIdx)))
		}
	}
	return p.be.Attend(ctx, b, p.view, backend.Attention{Out: out})
}

// Close gives the memory back. A second call does nothing.
func (p *Packed) Close() error {
	if p.done == nil {
		return nil
	}
	var err error
	if p.table != nil {
		err = p.table.Close()
	}
	p.up.Free()
	done := p.done
	p.view, p.table, p.done = nil, nil, nil
	return errors.Join(err, done())
}
