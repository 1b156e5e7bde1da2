// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// The bytes of the side tensor of a saved sequence, all little-endian: u32 1, the version; u32 bytes and text
// of the layout, the model and the profile; u32 segments, and for each u32 bytes and the skeleton of its image;
// then the state.
const savedVersion = 1

// mostSegment is the largest number of tokens of a segment in a file.
const mostSegment = 1<<16 - 1

// span is a segment of a file: one of the cache, or tokens of which nothing is left.
type span struct {
	seg *segment
	lo  int64
	n   int
}

// spans divides the tokens of a sequence.
func spans(s *Sequence) (all []span) {
	at := int64(0)
	fill := func(to int64) {
		for at < to {
			n := min(to-at, mostSegment)
			all, at = append(all, span{lo: at, n: int(n)}), at+n
		}
	}
	for _, g := range s.segs {
		fill(g.lo)
		end := min(g.hi(), s.n)
		all, at = append(all, span{g, at, int(end - at)}), end
	}
	fill(s.n)
	return all
}

// attention returns the geometry of a file of the cache: with its windows, scale and soft cap.
func (c *Config) attention(g quant.Geometry) quant.Geometry {
	layers := make([]quant.LayerAttention, g.Layers)
	for l := range layers {
		layers[l] = g.AttentionOf(l)
		layers[l].Window, layers[l].Softcap = c.layerWindow(l), float64(c.Softcap)
		if layers[l].Scale = 0; c.Scale != float32(1/math.Sqrt(float64(g.HeadDim))) {
			layers[l].Scale = float64(c.Scale)
		}
	}
	g.PerLayer = layers
	return g.Canonical()
}

// save writes a sequence as a file.
func (m *mover) save(s *Sequence, w io.Writer) error {
	c := m.c
	var free func()
	var buf []byte
	var all []span
	h := &container.Header{Kind: container.KindCache, Geometry: c.cfg.attention(c.geo), KType: quant.Float16,
		VType: quant.Float16, Sinks: c.cfg.Sinks, Window: c.cfg.Window, Seed: c.cfg.Seed, Model: c.cfg.Model,
		Config: "saved by a serving cache", SegmentTokens: 1}
	for l := range c.geo.Layers {
		h.Layers = append(h.Layers, l)
	}
	err := m.locked(func() error {
		if err := s.ready(m.call); err != nil {
			return err
		}
		free = s.occupy("saved")
		all, h.Tokens = spans(s), s.n
		n := int64(0)
		for _, x := range all {
			if x.seg != nil {
				n = max(n, imageSize(&c.memory, x.seg, s.n))
			}
			h.Starts = append(h.Starts, x.lo)
			h.SegmentTokens = max(h.SegmentTokens, x.n)
		}
		// The writer holds a record, the table of its tokens and the side tensor beside the image.
		if err := m.lend(4*n + 2*(stateSize(s)+skeletonSize(s))); err != nil {
			return err
		}
		buf = make([]byte, 0, n)
		return nil
	})
	if err == nil {
		err = m.write(s, w, h, all, buf)
	}
	if err == nil {
		err = m.locked(func() error { c.stats.Saved++; return nil })
	}
	return m.end(nil, free, err)
}

// skeletonSize returns the most bytes of the skeletons of a sequence.
func skeletonSize(s *Sequence) (n int64) {
	for _, g := range s.segs {
		n += 4 + imageHeader + int64(len(g.mean)) + 12*int64(len(g.blocks))
	}
	return n + 1024
}

func (m *mover) write(s *Sequence, w io.Writer, h *container.Header, all []span, buf []byte) error {
	c := m.c
	f, err := container.NewWriter(w, h)
	if err != nil {
		return err
	}
	for i, x := range all {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		var im *image
		if x.seg != nil {
			err := m.locked(func() (err error) {
				buf, err = appendImage(&c.memory, buf[:0], x.seg, s.n, false)
				return err
			})
			if err != nil {
				return err
			}
			if im, err = parseImage(&c.memory, buf, false); err != nil {
				return err
			}
		}
		for l := range c.geo.Layers {
			if err := f.WriteRecord(im.record(c.geo.KVHeads, l, i, x.n)); err != nil {
				return err
			}
		}
	}
	var p []byte
	err = m.locked(func() (err error) {
		p, err = appendSaved(s)
		return err
	})
	if err != nil {
		return err
	}
	if err := f.WriteAux(&container.Aux{Name: container.SequenceName, DType: "U8", Shape: []int64{int64(len(p))}, Data: p}); err != nil {
		return err
	}
	return f.Close()
}

// appendSaved returns the side tensor of a sequence.
func appendSaved(s *Sequence) ([]byte, error) {
	c, le := s.c, binary.LittleEndian
	p := le.AppendUint32(nil, savedVersion)
	for _, text := range []string{c.cfg.layout(c.geo), c.cfg.Model, c.cfg.Profile} {
		p = append(le.AppendUint32(p, uint32(len(text))), text...)
	}
	p = le.AppendUint32(p, uint32(len(s.segs)))
	for _, g := range s.segs {
		at := len(p)
		p = le.AppendUint32(p, 0)
		var err error
		if p, err = appendImage(&c.memory, p, g, s.n, true); err != nil {
			return nil, err
		}
		le.PutUint32(p[at:], uint32(len(p)-at-4))
	}
	return appendState(p, s, nil), nil
}

// record returns the record of a layer of a segment of n tokens. A nil image has lost all of them.
func (s *image) record(heads, layer, segment, n int) *container.Record {
	rec := &container.Record{Layer: layer, Segment: segment, Heads: make([]container.Head, heads)}
	for h := range rec.Heads {
		head, seen := &rec.Heads[h], make([]bool, n)
		if s != nil {
			s.fillHead(head, layer*heads+h, seen)
		}
		var lost []uint16
		for t, ok := range seen {
			if !ok {
				lost = append(lost, uint16(t))
			}
		}
		if lost != nil {
			head.Blocks = append(head.Blocks, container.Block{Level: quant.Dropped, Tokens: lost})
		}
	}
	return rec
}

// fillHead adds the blocks of head i to that of a record, in the order of their pages, and marks their
// tokens.
func (s *image) fillHead(head *container.Head, i int, seen []bool) {
	for p := range s.pages {
		from := &s.blocks[i*s.pages+p]
		if from.rows == 0 {
			continue
		}
		b := container.Block{Level: quant.Full, K: from.rung[sideK].coding(), V: from.rung[sideV].coding(),
			KData: from.data[sideK], VData: from.data[sideV], Centered: from.rung[sideK] != f16,
			Tokens: make([]uint16, from.rows)}
		for r := range b.Tokens {
			b.Tokens[r] = uint16(p*s.per + r)
			if from.pos != nil {
				b.Tokens[r] = binary.LittleEndian.Uint16(from.pos[2*r:])
			}
			seen[b.Tokens[r]] = true
		}
		if b.Centered {
			head.MeanK = s.mean[i]
		}
		head.Blocks = append(head.Blocks, b)
	}
}

// takeHead gives the blocks of head i of a skeleton the rows of a record.
func (s *image) takeHead(head *container.Head, i int) error {
	bad := func(what string) error {
		return fmt.Errorf("a segment of a saved sequence: %s: %w", what, quant.ErrCorrupt)
	}
	at := 0
	for p := range s.pages {
		b := &s.blocks[i*s.pages+p]
		if b.rows == 0 {
			continue
		}
		if at == len(head.Blocks) {
			return bad("a block is missing")
		}
		from := &head.Blocks[at]
		at++
		if from.Level != quant.Full || from.Rows() != b.rows || from.K != b.rung[sideK].coding() ||
			from.V != b.rung[sideV].coding() || from.Centered != (b.rung[sideK] != f16) {
			return bad("a block is not what the sequence says")
		}
		b.data = [sides][]byte{from.KData, from.VData}
		for r, t := range from.Tokens {
			if b.pos != nil {
				b.pos = binary.LittleEndian.AppendUint16(b.pos, t)
			} else if int(t) != p*s.per+r {
				return bad("rows out of order")
			}
		}
	}
	if at < len(head.Blocks) && (at+1 < len(head.Blocks) || head.Blocks[at].Level != quant.Dropped) {
		return bad("a block too many")
	}
	if s.mean[i] != nil {
		s.mean[i] = append([]byte{}, head.MeanK...)
	}
	return nil
}

// load reads a sequence from a file.
func (m *mover) load(r io.ReaderAt, size int64) (*Sequence, error) {
	c := m.c
	f, err := container.Open("sequence", r, size, container.Limits{MaxSideBytes: c.cfg.Budget})
	if err == nil {
		err = f.Verify(nil) // all of it, before anything is taken over
	}
	if err != nil {
		return nil, m.end(nil, nil, err)
	}
	a, err := f.ReadAux(container.SequenceName)
	if err != nil {
		return nil, m.end(nil, nil, err)
	}
	if err := m.locked(func() error { return m.lend(2 * int64(len(a.Data))) }); err != nil {
		return nil, m.end(nil, nil, err)
	}
	images, x, err := m.parseSaved(f.Header(), a.Data)
	if err != nil {
		return nil, m.end(nil, nil, err)
	}
	m.base = 2*int64(len(a.Data)) + c.keptBytes(c.cfg.KeptQueries)
	var s *Sequence
	var free func()
	err = m.locked(func() (err error) {
		if s, err = c.newSequence(); err == nil {
			free = s.occupy("restored")
		}
		return err
	})
	for i, at := 0, 0; i < len(images) && err == nil; i++ {
		for f.Header().SegmentStart(at) != x.segs[i].lo {
			at++
		}
		err = m.loadSegment(s, f, at, images[i], &x.segs[i])
	}
	if err == nil {
		err = m.locked(func() error { c.stats.Loaded++; return x.restore(s, nil) })
	}
	if err = m.end(s, free, err); err != nil {
		return nil, err
	}
	return s, nil
}

// loadSegment appends segment at of a file to a sequence.
func (m *mover) loadSegment(s *Sequence, f *container.Reader, at int, im *image, x *segmentState) error {
	c := m.c
	infos, bytes := f.Records(), int64(0)
	for l := range c.geo.Layers {
		if i, ok := f.Find(l, at); ok {
			bytes += infos[i].Length
		}
	}
	if err := m.locked(func() error { return m.lend(2 * bytes) }); err != nil {
		return err
	}
	for l := range c.geo.Layers {
		i, ok := f.Find(l, at)
		if !ok {
			return fmt.Errorf("layer %d of segment %d is missing: %w", l, at, quant.ErrCorrupt)
		}
		rec, err := f.ReadRecord(i)
		if err != nil {
			return err
		}
		if rec.Archive != nil {
			return fmt.Errorf("layer %d of segment %d is in archive form: %w", l, at, quant.ErrUnsupported)
		}
		for h := range rec.Heads {
			if err := im.takeHead(&rec.Heads[h], l*c.geo.KVHeads+h); err != nil {
				return err
			}
		}
	}
	if err := im.check(&c.memory); err != nil {
		return err
	}
	return m.locked(func() error {
		if err := im.place(m.ctx, s); err != nil {
			return err
		}
		g := s.segs[len(s.segs)-1]
		for i, v := range x.mass {
			g.blocks[i].mass = v
		}
		return m.lend(0)
	})
}

// parseSaved reads the side tensor of a sequence and holds it against the header.
func (m *mover) parseSaved(h *container.Header, p []byte) (images []*image, x *state, err error) {
	c := m.c
	r := &stateReader{p: p}
	bad := func(what string) error { return fmt.Errorf("a saved sequence: %s: %w", what, quant.ErrCorrupt) }
	if v := r.u32(); v != savedVersion {
		return nil, nil, &store.ForeignError{What: "version", Err: fmt.Errorf("%d, want %d: %w", v, savedVersion, quant.ErrVersion)}
	}
	for i, want := range []string{c.cfg.layout(c.geo), c.cfg.Model, c.cfg.Profile} {
		if got := string(r.take(r.count(1))); got != want && !r.short {
			return nil, nil, &store.ForeignError{What: []string{"layout", "model", "profile"}[i],
				Err: fmt.Errorf("%q, this cache has %q: %w", got, want, quant.ErrUnsupported)}
		}
	}
	images = make([]*image, r.count(4))
	for i := range images {
		if images[i], err = parseImage(&c.memory, r.take(r.count(1)), true); err != nil {
			return nil, nil, err
		}
	}
	if r.short {
		return nil, nil, bad("it ends early")
	}
	if x, err = parseState(&c.memory, r.p); err != nil {
		return nil, nil, err
	}
	if x.n != h.Tokens || len(x.segs) != len(images) || len(h.Layers) != c.geo.Layers || h.Geometry.KVHeads != c.geo.KVHeads ||
		h.Geometry.HeadDim != c.geo.HeadDim || h.Geometry.HeadDimV != c.geo.HeadDimV || h.Seed != c.cfg.Seed || x.follows {
		return nil, nil, bad("the file has another shape")
	}
	at := 0
	for i, im := range images {
		for at < len(h.Starts) && h.Starts[at] < im.lo {
			at++
		}
		if at == len(h.Starts) || h.Starts[at] != im.lo || x.segs[i].lo != im.lo || x.segs[i].hi != im.hi() ||
			len(im.blocks) != len(x.segs[i].mass) || int64(h.SegmentLen(0, at)) != min(im.hi(), x.n)-im.lo {
			return nil, nil, bad("its segments are not those of the file")
		}
	}
	return images, x, nil
}

// newLoader returns a mover that needs no store.
func newLoader(ctx context.Context, c *Cache, call string, seq uint64) *mover {
	return &mover{c: c, ctx: ctx, call: call, seq: seq}
}
