// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"time"

	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// openBits is what rows of an open segment take more than those of a closed one, in bits a value: they are coded again
// at every Park.
const openBits = 1

// sampleRows bounds the tokens of a layer that tell the step of a sequence, and sampleValues the values of all
// layers together.
const (
	sampleRows   = 64
	sampleValues = 1 << 20
)

// shrinker codes segments for the store as Config.Archiver does.
type shrinker struct {
	m      *mover
	step   [2]float64 // of closed segments, of open ones
	factor []float32  // [layers * kv_heads]: makes the weights of a head those of ArchiveRows
	// Scratch memory: the image of a part as it is, and the part as it is put.
	image, part []byte
}

// shrinkBytes returns the scratch memory for coding a part whose exact rows take so many bytes, and for finding the step.
func shrinkBytes(c *memory, part int64) int64 {
	if c.cfg.Archiver == nil {
		return 0
	}
	// An image, what it becomes, the rows as float32, and two samples.
	return 4*part + int64(8*sampledRows(c)*rowValues(c)) + int64(c.geo.Layers*c.geo.KVHeads)*4
}

// rowValues returns the values of a token in all layers.
func rowValues(c *memory) int {
	return c.geo.Layers * c.geo.KVHeads * (c.geo.HeadDim + c.geo.HeadDimV)
}

// sampledRows returns how many tokens of a layer tell the step.
func sampledRows(c *memory) int { return max(1, min(sampleRows, sampleValues/rowValues(c))) }

// newShrinker finds the steps of a sequence. It returns nil for one of which nothing can be made smaller.
func newShrinker(m *mover, s *Sequence, room int) (*shrinker, error) {
	c := m.c
	if c.cfg.Archiver == nil {
		return nil, nil
	}
	x := &shrinker{m: m, image: make([]byte, 0, room), part: make([]byte, store.SealBytes, room)}
	_ = m.locked(func() error { x.factor = weightFactors(s); return nil })
	rows := sampledRows(&c.memory)
	var sample []ArchiveRows
	for l, h := range layerParts(&c.memory) {
		g := sampled(s, l)
		if g == nil {
			return nil, nil
		}
		im, masses, err := x.read(s, g, h)
		if err != nil {
			return nil, err
		}
		if !im.exact() {
			continue
		}
		r := ArchiveRows{}
		if err := x.unpack(&r, im, masses, l, tokensOf(s, g)); err != nil {
			return nil, err
		}
		sample = append(sample, *r.middle(rows, c.sizes.dim))
	}
	if len(sample) == 0 {
		return nil, nil
	}
	more := make([]ArchiveRows, len(sample))
	for i := range sample {
		more[i] = sample[i].clone()
		more[i].Weights = nil // nothing has weighed rows of an open segment
	}
	for i, of := range [][]ArchiveRows{sample, more} {
		var err error
		x.step[i], err = c.cfg.Archiver.Step(of, max(c.cfg.ArchiveBits+float64(i)*openBits-besides(&c.memory), leastBits))
		if errors.Is(err, quant.ErrRange) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return x, nil
}

// leastBits is the least that rows are asked to take, in bits a value.
const leastBits = 0.1

// besides returns what a closed segment takes beside its rows, in bits a value: blocks, means, and pages of tokens.
func besides(c *memory) float64 {
	values := c.cfg.Segment * (c.geo.HeadDim + c.geo.HeadDimV)
	return 8 * float64(1+frame.MeanBytes(c.geo.HeadDim)+12*c.segPages()+pagesBytes(c.segPages(), c.cfg.Segment)) / float64(values)
}

// sampled returns the segment that rows of a layer are sampled in.
func sampled(s *Sequence, layer int) *segment {
	segs := s.segs
	if len(segs) > 0 && segs[0].sinks {
		segs = segs[1:]
	}
	if n := len(segs); n > 1 {
		segs = segs[:n-1] // the last one may have few
	}
	if len(segs) == 0 {
		return nil
	}
	return segs[layer%len(segs)]
}

// tokensOf returns how many tokens of a segment a sequence has.
func tokensOf(s *Sequence, g *segment) int { return int(min(g.hi(), s.n) - g.lo) }

// weightFactors returns a factor for each head. Times the square root of the mass of a row it is the row's weight, and
// the weights of a head have a mean square of 1. It is 0 where no query has read the head.
func weightFactors(s *Sequence) []float32 {
	g := s.c.geo
	f := make([]float32, g.Layers*g.KVHeads)
	for i := range f {
		sum, rows := 0.0, 0.0
		for _, seg := range s.segs {
			if !seg.closed {
				continue
			}
			for _, b := range seg.blocks[i*seg.pages : (i+1)*seg.pages] {
				sum, rows = sum+float64(b.mass), rows+float64(b.rows)
			}
		}
		if sum > 0 {
			f[i] = float32(math.Sqrt(rows / sum))
		}
	}
	return f
}

// read returns the image of a part of a segment, and the masses of its blocks.
func (x *shrinker) read(s *Sequence, g *segment, h part) (im *image, masses []float32, err error) {
	c := x.m.c
	err = x.m.locked(func() (err error) {
		if x.image, err = appendImage(&c.memory, x.image[:0], g, s.n, h, whole); err != nil {
			return err
		}
		for i := range g.blocks[h.from*g.pages : h.to*g.pages] {
			masses = append(masses, g.blocks[h.from*g.pages+i].mass)
		}
		return nil
	})
	if err == nil {
		im, err = parseImage(&c.memory, x.image)
	}
	return im, masses, err
}

// unpack decodes a layer of an image, the tokens in order, and weighs them.
func (x *shrinker) unpack(r *ArchiveRows, im *image, masses []float32, layer, n int) error {
	c := x.m.c
	r.fit(layer, c.geo.KVHeads, n, im.lo, c.sizes.dim)
	if im.closed {
		r.Weights = make([][]float32, c.geo.KVHeads)
	}
	tmp := make([]float32, pageTokens*max(c.geo.HeadDim, c.geo.HeadDimV))
	for h := range c.geo.KVHeads {
		f := x.factor[layer*c.geo.KVHeads+h]
		if r.Weights != nil {
			r.Weights[h] = make([]float32, n)
		}
		for p := range im.pages {
			b := &im.blocks[h*im.pages+p]
			if b.rows == 0 {
				continue
			}
			for side, to := range [sides][]float32{r.K[h], r.V[h]} {
				dim := c.sizes.dim[side]
				rows := quant.Rows{Dim: dim, Data: tmp[:b.rows*dim]}
				if err := quant.Decode(rows, b.rung[side].coding(), b.data[side], c.cfg.Seed); err != nil {
					return err
				}
				if side == sideK && b.rung[sideK] != f16 {
					addMean(rows, im.mean[h], 1)
				}
				for i := range b.rows {
					copy(to[im.at(b, p, i)*dim:][:dim], rows.Data[i*dim:])
				}
			}
			if r.Weights == nil {
				continue
			}
			w := float32(1)
			if f > 0 {
				w = f * float32(math.Sqrt(float64(masses[h*im.pages+p])/float64(b.rows)))
			}
			for i := range b.rows {
				r.Weights[h][im.at(b, p, i)] = w
			}
		}
	}
	return nil
}

// put puts the parts of a segment in archive form, those that become smaller. It returns false, and puts nothing,
// where none would; where a segment came from the store that way and has not changed, what is there is put again.
func (x *shrinker) put(s *Sequence, g *segment, of *segmentState, expires time.Time) (done bool, err error) {
	if x == nil {
		return false, nil
	}
	m := x.m
	closed := false
	_ = m.locked(func() error {
		closed = g.closed && g.whole(s.n)
		if closed && g.coarse && g.name != (store.Key{}) {
			of.name, of.shared, of.coarse = g.name, true, true
		}
		return nil
	})
	if of.coarse {
		if err := x.again(g, of.name, expires); !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
		of.coarse = false
	}
	some, name, err := x.nameOf(s, g)
	if err != nil || !some {
		return false, err
	}
	if of.shared = closed; closed {
		of.name = name
	}
	for j, h := range parts(&m.c.memory, g.sinks) {
		p, err := x.shrink(x.part[:store.SealBytes], s, g, h)
		if err != nil {
			return false, err
		}
		k := m.partKey(of.name, j)
		m.under.Seal(k, p)
		if err := m.st.Put(m.ctx, k, p, expires); err != nil {
			return false, err
		}
	}
	of.coarse = true
	return true, nil
}

// again puts the parts of a segment that the store has.
func (x *shrinker) again(g *segment, name store.Key, expires time.Time) error {
	m := x.m
	for j := range parts(&m.c.memory, g.sinks) {
		k := m.partKey(name, j)
		p, err := m.st.Get(m.ctx, k)
		if err == nil {
			_, err = m.under.Open(k, p)
		}
		if err == nil {
			err = m.st.Put(m.ctx, k, p, expires)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// nameOf returns the name of a closed segment: by what is in it and how it is coded. It returns false if none of its
// parts can become smaller.
func (x *shrinker) nameOf(s *Sequence, g *segment) (some bool, name store.Key, err error) {
	m, le := x.m, binary.LittleEndian
	sum := sha256.New()
	sum.Write(le.AppendUint64(nil, math.Float64bits(x.step[bit(!g.closed)])))
	sum.Write([]byte(m.c.cfg.Archiver.Name()))
	for _, h := range parts(&m.c.memory, g.sinks) {
		im, masses, err := x.read(s, g, h)
		if err != nil {
			return false, name, err
		}
		some = some || im.exact()
		sum.Write(x.image)
		for _, f := range [][]float32{masses, x.factor[h.from:h.to]} {
			for _, v := range f {
				sum.Write(le.AppendUint32(nil, math.Float32bits(v)))
			}
		}
	}
	return some, m.under.Key("archived", sum.Sum(nil)), nil
}

// shrink appends a part of a segment, in archive form if that is smaller.
func (x *shrinker) shrink(dst []byte, s *Sequence, g *segment, h part) ([]byte, error) {
	c, le := x.m.c, binary.LittleEndian
	im, masses, err := x.read(s, g, h)
	if err != nil {
		return nil, err
	}
	n, start := tokensOf(s, g), len(dst)
	if !im.complete(n) {
		return append(dst, x.image...), nil
	}
	err = x.m.locked(func() (err error) {
		dst, err = appendImage(&c.memory, dst, g, s.n, h, outline)
		return err
	})
	if err != nil {
		return nil, err
	}
	dst[start] |= imageArchived
	name := c.cfg.Archiver.Name()
	dst = append(le.AppendUint16(dst, uint16(len(name))), name...)
	dst, ok := im.appendPages(dst, n)
	if !ok {
		return append(dst[:start], x.image...), nil
	}
	layers := make([][]byte, (h.to-h.from)/c.geo.KVHeads)
	err = parallel.EachOf(x.m.ctx, openWorkers, len(layers), func(l int) (err error) {
		var r ArchiveRows
		of := part{h.from + l*c.geo.KVHeads, h.from + (l+1)*c.geo.KVHeads}
		if err := x.unpack(&r, im.slice(of), masses[(of.from-h.from)*im.pages:], of.from/c.geo.KVHeads, n); err != nil {
			return err
		}
		layers[l], err = c.cfg.Archiver.Encode(nil, &r, x.step[bit(!im.closed)])
		return err
	})
	if errors.Is(err, quant.ErrRange) {
		return append(dst[:start], x.image...), nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range layers {
		dst = append(le.AppendUint32(dst, uint32(len(p))), p...)
	}
	if len(dst)-start >= len(x.image) {
		return append(dst[:start], x.image...), nil
	}
	return dst, nil
}
