// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"unsafe"

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
		n := mostImage(s, func(*segment) []part { return layerParts(&c.memory) })
		for _, x := range all {
			h.Starts = append(h.Starts, x.lo)
			h.SegmentTokens = max(h.SegmentTokens, x.n)
		}
		// The writer holds a record and its tokens beside the image, then the side tensor twice.
		if err := m.lend(3*n + 2*(stateSize(s)+skeletonSize(s))); err != nil {
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
		for l, part := range layerParts(&c.memory) {
			var im *image
			err := m.locked(func() (err error) {
				if x.seg != nil {
					buf, err = appendImage(&c.memory, buf[:0], x.seg, s.n, part, whole)
				}
				return err
			})
			if err == nil && x.seg != nil {
				im, err = parseImage(&c.memory, buf)
			}
			if err == nil {
				err = f.WriteRecord(im.record(c.geo.KVHeads, l, i, x.n))
			}
			if err != nil {
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
		if p, err = appendImage(&c.memory, p, g, s.n, part{0, len(g.mean)}, skeleton); err != nil {
			return nil, err
		}
		le.PutUint32(p[at:], uint32(len(p)-at-4))
	}
	return appendState(p, s, nil), nil
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
	infos := f.Records()
	tokens := int64(c.geo.KVHeads*im.pages) * int64(pageTokens*2+unsafe.Sizeof(container.Block{}))
	for l, part := range layerParts(&c.memory) {
		i, ok := f.Find(l, at)
		if !ok {
			return fmt.Errorf("layer %d of segment %d is missing: %w", l, at, quant.ErrCorrupt)
		}
		if err := m.locked(func() error { return m.lend(infos[i].Length + tokens) }); err != nil {
			return err
		}
		rec, err := f.ReadRecord(i)
		if err != nil {
			return err
		}
		if rec.Archive != nil {
			return fmt.Errorf("layer %d of segment %d is in archive form: %w", l, at, quant.ErrUnsupported)
		}
		layer := im.slice(part)
		for h := range rec.Heads {
			if err := layer.takeHead(&rec.Heads[h], h); err != nil {
				return err
			}
		}
		if err := layer.check(&c.memory); err != nil {
			return err
		}
		if err := m.locked(func() error { return layer.place(m.ctx, s) }); err != nil {
			return err
		}
		clear(layer.blocks) // their rows are in the slabs now
	}
	return m.locked(func() error {
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
		if images[i], err = parseSkeleton(&c.memory, r.take(r.count(1))); err != nil {
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
			im.from != 0 || im.to != c.geo.Layers*c.geo.KVHeads || len(im.blocks) != len(x.segs[i].mass) || int64(h.SegmentLen(0, at)) != min(im.hi(), x.n)-im.lo {
			return nil, nil, bad("its segments are not those of the file")
		}
	}
	return images, x, nil
}

// newLoader returns a mover that needs no store.
func newLoader(ctx context.Context, c *Cache, call string, seq uint64) *mover {
	return &mover{c: c, ctx: ctx, call: call, seq: seq}
}
