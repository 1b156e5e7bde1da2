// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// BlockOptions are the options of a BlockStore.
type BlockOptions struct {
	// RowBias adds the row bias of coarse rows of K, which is computed from each query.
	RowBias bool
	// Tail is the number of tokens that can be appended. Default 256.
	Tail int
	// Attention is how each layer attends, [layers]. Default nil: scale 1/sqrt(head_dim) and no window.
	Attention []model.LayerAttention
}

// BlockStore is a cache whose context stays packed: it holds the blocks of a .kvist file in the
// memory of a backend, which attends to them in place. Appended rows form an exact float32 tail that
// the same call attends to. It implements model.KVStore and belongs to one goroutine.
type BlockStore struct {
	ctx    context.Context
	be     backend.Backend
	geo    quant.Geometry
	tokens int // of the file
	room   int // of the tail
	packed int64
	how    []model.LayerAttention // nil: the default
	layers []blockLayer
}

type blockLayer struct {
	bufs   []backend.Buffer
	blocks []backend.Block // of the file, by head
	first  []int           // [kv_heads+1] blocks of head h are [first[h], first[h+1])
	k, v   backend.Buffer  // tail: [kv_heads, room, dim] float32
	n      int             // tokens of the tail
}

var _ model.KVStore = (*BlockStore)(nil)

// spanAlign is the alignment of packed sides within a buffer.
const spanAlign = 16

// NewBlockStore uploads the cache of a file to a backend. The file must hold every layer of the
// model. ctx is the context of all later calls as well. Close frees the memory.
//
// Errors: quant.ErrShape for a file that holds no cache of this geometry that starts at position 0;
// those of the file and of the backend.
func NewBlockStore(ctx context.Context, be backend.Backend, r *container.Reader, g quant.Geometry,
	o BlockOptions) (_ *BlockStore, err error) {
	const op = "open block store"
	if o.Tail == 0 {
		o.Tail = 256
	}
	h := r.Header()
	switch {
	case o.Attention != nil && len(o.Attention) != g.Layers:
		return nil, shapef(op, "the attention of %d layers, want %d", len(o.Attention), g.Layers)
	case o.Tail < 1 || o.Tail > 1<<20:
		return nil, shapef(op, "room for %d tokens, want 1 to %d", o.Tail, 1<<20)
	case h.Kind != container.KindCache || h.First != 0:
		return nil, shapef(op, "a %s from position %d, want a cache from 0", h.Kind, h.First)
	case len(h.Layers) != g.Layers || h.Geometry.KVHeads != g.KVHeads ||
		h.Geometry.HeadDim != g.HeadDim || h.Geometry.HeadDimV != g.HeadDimV:
		return nil, shapef(op, "%d layers, %d kv_heads, head_dim %d and %d, want %d, %d, %d and %d",
			len(h.Layers), h.Geometry.KVHeads, h.Geometry.HeadDim, h.Geometry.HeadDimV, g.Layers,
			g.KVHeads, g.HeadDim, g.HeadDimV)
	}
	s := &BlockStore{ctx: ctx, be: be, geo: g, tokens: int(h.Tokens), room: o.Tail, how: o.Attention,
		layers: make([]blockLayer, g.Layers)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for l := range s.layers {
		if err := s.load(r, l, o.RowBias); err != nil {
			return nil, fmt.Errorf("kvist/quality: %s: layer %d: %w", op, l, err)
		}
	}
	return s, nil
}

// load uploads the records of one layer and allocates its tail.
func (s *BlockStore) load(r *container.Reader, layer int, rowBias bool) error {
	h, l := r.Header(), &s.layers[layer]
	byHead := make([][]backend.Block, s.geo.KVHeads)
	for seg := range int(h.Segments(layer)) {
		i, ok := r.Find(layer, seg)
		if !ok {
			return fmt.Errorf("segment %d is not in the file: %w", seg, quant.ErrCorrupt)
		}
		rec, err := r.ReadRecord(i)
		if err != nil {
			return err
		}
		if err := s.record(h, rec, rowBias, byHead, l); err != nil {
			return fmt.Errorf("segment %d: %w", seg, err)
		}
	}
	l.first = []int{0}
	for _, blocks := range byHead {
		l.blocks = append(l.blocks, blocks...)
		l.first = append(l.first, len(l.blocks))
	}
	var err error
	if l.k, err = s.be.Alloc(4 * int64(s.geo.KVHeads*s.room*s.geo.HeadDim)); err != nil {
		return err
	}
	l.v, err = s.be.Alloc(4 * int64(s.geo.KVHeads*s.room*s.geo.HeadDimV))
	return err
}

// record uploads one segment into one buffer.
func (s *BlockStore) record(h *container.Header, rec *container.Record, rowBias bool,
	byHead [][]backend.Block, l *blockLayer) error {
	var host []byte
	put := func(data []byte) backend.Span {
		host = append(host, make([]byte, -len(host)&(spanAlign-1))...)
		host = append(host, data...)
		return backend.Span{Off: int64(len(host) - len(data)), Len: int64(len(data))}
	}
	base := int64(rec.Segment) * int64(h.SegmentTokens)
	added := make([]int, len(rec.Heads))
	for head := range rec.Heads {
		var mean backend.Span
		if rec.Heads[head].Centered() {
			mean = put(rec.Heads[head].MeanK)
			s.packed += mean.Len
		}
		for i := range rec.Heads[head].Blocks {
			b := &rec.Heads[head].Blocks[i]
			if b.Level == quant.Dropped {
				continue
			}
			blk := backend.Block{Layer: int32(rec.Layer), KVHead: int32(head),
				Rows: int32(b.Rows()),
				K:    backend.Side{Coding: b.K, Data: put(b.KData), Seed: h.Seed},
				V:    backend.Side{Coding: b.V, Data: put(b.VData), Seed: h.Seed},
				Base: base, Pos: put(rowPositions(b))}
			if b.Counts != nil {
				blk.Count = put(uint16s(b.Counts))
			}
			if blk.Metric = h.MetricOf(rec.Layer, head, b); b.Centered {
				blk.MeanK = mean
			}
			if rowBias && b.K.Format.Nested() {
				blk.Noise = float32(b.K.NoisePerScale2())
			}
			s.packed += blk.K.Data.Len + blk.V.Data.Len + blk.Pos.Len + blk.Count.Len
			byHead[head] = append(byHead[head], blk)
			added[head]++
		}
	}
	if len(host) == 0 {
		return nil
	}
	buf, err := s.be.Alloc(int64(len(host)))
	if err != nil {
		return err
	}
	l.bufs = append(l.bufs, buf)
	if err := buf.Upload(0, host); err != nil {
		return err
	}
	for head, n := range added {
		blocks := byHead[head][len(byHead[head])-n:]
		for i := range blocks {
			b := &blocks[i]
			b.K.Data.Buf, b.V.Data.Buf, b.Pos.Buf = buf, buf, buf
			if b.MeanK.Len > 0 {
				b.MeanK.Buf = buf
			}
			if b.Count.Len > 0 {
				b.Count.Buf = buf
			}
		}
	}
	return nil
}

// rowPositions returns the offset of each row within the segment; a merged row has that of its first
// token.
func rowPositions(b *container.Block) []byte {
	if b.Counts == nil {
		return uint16s(b.Tokens)
	}
	first, at := make([]uint16, len(b.Counts)), 0
	for i, n := range b.Counts {
		first[i] = b.Tokens[at]
		at += int(n)
	}
	return uint16s(first)
}

func uint16s(x []uint16) []byte {
	b := make([]byte, 0, 2*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// Len returns the number of tokens that every layer holds, those of the file included.
func (s *BlockStore) Len() int {
	n := s.layers[0].n
	for i := range s.layers {
		n = min(n, s.layers[i].n)
	}
	return s.tokens + n
}

// PackedBytes returns the bytes of the context in the backend: rows, positions and counts.
func (s *BlockStore) PackedBytes() int64 { return s.packed }

// Truncate keeps the first n tokens: those of the file, and the start of the tail.
//
// Errors: quant.ErrShape if n is less than the tokens of the file or more than Len.
func (s *BlockStore) Truncate(n int) error {
	if n < s.tokens || n > s.Len() {
		return shapef("truncate block store", "to %d tokens, want %d to %d", n, s.tokens, s.Len())
	}
	for i := range s.layers {
		s.layers[i].n = n - s.tokens
	}
	return nil
}

// Append implements model.KVStore. It adds rows to the tail.
//
// Errors: quant.ErrShape; quant.ErrTooLarge for more than Tail tokens; those of the backend.
func (s *BlockStore) Append(layer, pos int, k, v []float32, n int) error {
	const op = "append to block store"
	if layer < 0 || layer >= len(s.layers) {
		return shapef(op, "layer %d of %d", layer, len(s.layers))
	}
	g, l := s.geo, &s.layers[layer]
	if n < 0 || pos != s.tokens+l.n || len(k) != n*g.KVHeads*g.HeadDim ||
		len(v) != n*g.KVHeads*g.HeadDimV {
		return shapef(op,
			"layer %d: %d rows at position %d with %d and %d values, want position %d",
			layer, n, pos, len(k), len(v), s.tokens+l.n)
	}
	if n > s.room-l.n {
		return fmt.Errorf("kvist/quality: %s: %d tokens beside %d, room for %d: %w", op, n, l.n,
			s.room, quant.ErrTooLarge)
	}
	if err := s.appendSide(l.k, k, l.n, n, g.HeadDim); err != nil {
		return err
	}
	if err := s.appendSide(l.v, v, l.n, n, g.HeadDimV); err != nil {
		return err
	}
	l.n += n
	return nil
}

func (s *BlockStore) appendSide(buf backend.Buffer, x []float32, at, n, dim int) error {
	raw := make([]byte, 0, 4*n*dim)
	for h := range s.geo.KVHeads {
		raw = raw[:0]
		for t := range n {
			for _, f := range x[(t*s.geo.KVHeads+h)*dim : (t*s.geo.KVHeads+h+1)*dim] {
				raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(f))
			}
		}
		if err := buf.Upload(4*int64((h*s.room+at)*dim), raw); err != nil {
			return err
		}
	}
	return nil
}

// Attend implements model.KVStore.
//
// Errors: quant.ErrShape; those of the backend.
func (s *BlockStore) Attend(layer, pos int, q []float32, n int, out []float32) error {
	const op = "attend to block store"
	if layer < 0 || layer >= len(s.layers) {
		return shapef(op, "layer %d of %d", layer, len(s.layers))
	}
	g, l := s.geo, &s.layers[layer]
	if n < 0 || pos < 0 || pos+n > s.tokens+l.n || len(q) != n*g.Heads*g.HeadDim ||
		len(out) != n*g.Heads*g.HeadDimV {
		return shapef(op, "layer %d: %d queries at position %d with %d values, room for %d", layer,
			n, pos, len(q), len(out))
	}
	qs, blocks := s.queries(layer, pos, q, n)
	res := make([]float32, len(out))
	if err := backend.AttendBlocks(s.ctx, s.be, qs, nil, blocks, backend.Attention{Out: res}); err != nil {
		return err
	}
	// [kv_heads, n, group, dim] to [n, heads, dim].
	run := g.GQARatio() * g.HeadDimV
	for h := range g.KVHeads {
		for t := range n {
			copy(out[t*g.Heads*g.HeadDimV+h*run:][:run], res[(h*n+t)*run:])
		}
	}
	return nil
}

// queries lists, for each KV head and token, the blocks of the head and its tail.
func (s *BlockStore) queries(layer, pos int, q []float32,
	n int) (*backend.Queries, []backend.Block) {
	g, l := s.geo, &s.layers[layer]
	group := g.GQARatio()
	qs := &backend.Queries{Group: group, HeadDim: g.HeadDim, HeadDimV: g.HeadDimV,
		Scale: float32(1 / math.Sqrt(float64(g.HeadDim))), Q: make([]float32, 0, len(q)),
		Pos: make([]int64, 0, n*g.KVHeads), BlockPtr: []int32{0}}
	if s.how != nil {
		a := s.how[layer]
		qs.Scale, qs.Softcap, qs.Window = float32(a.Scale), float32(a.Softcap), int64(a.Window)
	}
	blocks := append([]backend.Block{}, l.blocks...)
	exact := quant.Coding{Format: quant.F32}
	for h := range g.KVHeads {
		blocks = append(blocks, backend.Block{KVHead: int32(h), Rows: int32(l.n),
			Base: int64(s.tokens),
			K: backend.Side{Coding: exact, Data: backend.Span{Buf: l.k,
				Off: 4 * int64(h*s.room*g.HeadDim), Len: 4 * int64(l.n*g.HeadDim)}},
			V: backend.Side{Coding: exact, Data: backend.Span{Buf: l.v,
				Off: 4 * int64(h*s.room*g.HeadDimV), Len: 4 * int64(l.n*g.HeadDimV)}}})
		for t := range n {
			at := (t*g.Heads + h*group) * g.HeadDim
			qs.Q = append(qs.Q, q[at:at+group*g.HeadDim]...)
			qs.Pos = append(qs.Pos, int64(pos+t))
			for b := l.first[h]; b < l.first[h+1]; b++ {
				qs.BlockIdx = append(qs.BlockIdx, int32(b))
			}
			qs.BlockIdx = append(qs.BlockIdx, int32(len(l.blocks)+h))
			qs.BlockPtr = append(qs.BlockPtr, int32(len(qs.BlockIdx)))
		}
	}
	return qs, blocks
}

// Close frees the memory in the backend.
func (s *BlockStore) Close() error {
	var errs []error
	free := func(b backend.Buffer) {
		if b != nil {
			errs = append(errs, b.Free())
		}
	}
	for i := range s.layers {
		l := &s.layers[i]
		for _, b := range l.bufs {
			free(b)
		}
		free(l.k)
		free(l.v)
		*l = blockLayer{}
	}
	return errors.Join(errs...)
}
