// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// layouts is the number of layouts that a query may have.
const layouts = int(attend.Quads) + 1

// basis is the basis of a K side, and the index of the queries in this basis in vecs.
type basis struct {
	rotated bool
	layout  attend.Layout
}

// prepared is a batch of queries with everything that is computed once per call. It is reused; its
// slices grow as needed.
type prepared struct {
	*backend.Queries
	kern       *attend.Kernels
	codec      *codec.Kernels
	padK, padV int       // values per row of a tile
	seeds      []seeds   // one for all queries, or one per query
	energy     []float32 // [n, group]: |q|^2
	// vecs holds the queries, [n, group, padK], in each basis that some K side has (hasVecs).
	vecs    [2][layouts][]float32
	hasVecs [2][layouts]bool
	// cut holds the queries in digits, [n, group], if some K side is unpacked to bytes (hasCut).
	cut    []byte
	hasCut bool
	freqs  []float64 // RoPE angle of each pair per position; nil if no block has an offset
	rots   []namedRotation
}

type rotKey struct {
	seed uint64
	dim  int
}

type namedRotation struct {
	rotKey
	r *codec.Rotation
}

// index returns 1 for true and 0 for false.
func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *prepared) seedsOf(i int) seeds {
	if len(p.seeds) == 1 {
		return p.seeds[0]
	}
	return p.seeds[i]
}

// basisOf returns the basis of a K side.
func (p *prepared) basisOf(f quant.Format) basis { return basis{f.Rotated(), p.kern.LayoutK(f)} }

// bytesK reports whether K sides of a format are unpacked to bytes. bytesV does so for V sides.
func (p *prepared) bytesK(f quant.Format) bool { return p.kern.Bytes(f, p.HeadDim) }
func (p *prepared) bytesV(f quant.Format) bool { return p.kern.Bytes(f, p.HeadDimV) }

// cutBytes is the size of a query in digits.
func (p *prepared) cutBytes() int { return attend.QueryBytes(p.HeadDim) }

// prepare rotates and arranges the queries and computes their energies. c.seeds must be set.
func (c *call) prepare(ctx context.Context, b *Backend, op backend.Op, q *backend.Queries,
	blocks []backend.Block) error {
	n, p := q.Len(), &c.prepared
	p.Queries, p.kern, p.codec = q, b.kern, b.codec
	p.padK, p.padV = b.kern.PadDim(q.HeadDim), b.kern.PadDim(q.HeadDimV)
	p.rots = p.rots[:0]
	for i := range p.seeds {
		if err := p.addRotations(b, p.seeds[i]); err != nil {
			return err
		}
	}
	p.freqs, p.hasVecs, p.hasCut = nil, [2][layouts]bool{}, false
	for i := range blocks {
		if f := blocks[i].K.Coding.Format; p.bytesK(f) {
			p.hasCut = true
		} else {
			bs := p.basisOf(f)
			p.hasVecs[index(bs.rotated)][bs.layout] = true
		}
		if blocks[i].Offset != 0 && p.freqs == nil {
			p.freqs = q.Rope.Frequencies()
		}
	}
	p.energy = grow(p.energy, n*q.Group)
	if p.hasCut {
		p.cut = grow(p.cut, n*q.Group*p.cutBytes())
	}
	for rotated := range p.vecs {
		for l := range p.vecs[rotated] {
			if p.hasVecs[rotated][l] {
				p.vecs[rotated][l] = grow(p.vecs[rotated][l], n*q.Group*p.padK)
			}
		}
	}
	return b.workers.run(ctx, op, n, c.doPrepare)
}

// prepareOne prepares query i.
func (c *call) prepareOne(i int) error {
	s := c.b.scratch.Get().(*scratch)
	s.one = grow(s.one, c.HeadDim)
	c.prepared.arrange(i, s.one)
	c.b.scratch.Put(s)
	return nil
}

// arrange arranges query i. tmp is [head_dim].
func (p *prepared) arrange(i int, tmp []float32) {
	dim, rot := p.HeadDim, p.rotK(i)
	for h := i * p.Group; h < (i+1)*p.Group; h++ {
		src := p.Q[h*dim : (h+1)*dim]
		var e float64
		for _, x := range src {
			e += float64(x) * float64(x)
		}
		p.energy[h] = float32(e)
		for rotated := range p.vecs {
			if rotated == 1 {
				if rot == nil {
					break
				}
				copy(tmp, src)
				p.codec.Forward(rot, tmp, 1, dim)
				src = tmp
				if p.hasCut {
					p.kern.CutQuery(p.cut[h*p.cutBytes():], src)
				}
			}
			for l, has := range p.hasVecs[rotated] {
				if has {
					v := p.vecs[rotated][l]
					attend.Arrange(v[h*p.padK:(h+1)*p.padK], src, attend.Layout(l))
				}
			}
		}
	}
}

func (p *prepared) addRotations(b *Backend, s seeds) error {
	add := func(has bool, seed uint64, dim int) error {
		key := rotKey{seed, dim}
		if !has || p.find(key) != nil {
			return nil
		}
		r, err := b.rotation(dim, seed)
		p.rots = append(p.rots, namedRotation{key, r})
		return err
	}
	if err := add(s.HasK, s.K, p.HeadDim); err != nil {
		return err
	}
	return add(s.HasV, s.V, p.HeadDimV)
}

func (p *prepared) find(key rotKey) *codec.Rotation {
	for i := range p.rots {
		if p.rots[i].rotKey == key {
			return p.rots[i].r
		}
	}
	return nil
}

// rotK returns the rotation of query i's K sides, or nil if none is rotated.
func (p *prepared) rotK(i int) *codec.Rotation {
	if s := p.seedsOf(i); s.HasK {
		return p.find(rotKey{s.K, p.HeadDim})
	}
	return nil
}

// rotV returns the rotation of query i's V sides, or nil if none is rotated.
func (p *prepared) rotV(i int) *codec.Rotation {
	if s := p.seedsOf(i); s.HasV {
		return p.find(rotKey{s.V, p.HeadDimV})
	}
	return nil
}

// turn rotates q by offset further positions: each component pair (x, y) by the angle offset*freq.
// sin and cos hold the values of the pairs.
func turn(q []float32, layout quant.RopeLayout, sin, cos []float64) {
	half := len(sin)
	for i := range half {
		a, b := i, i+half
		if layout == quant.RopeInterleaved {
			a, b = 2*i, 2*i+1
		}
		x, y := float64(q[a]), float64(q[b])
		q[a] = float32(x*cos[i] - y*sin[i])
		q[b] = float32(x*sin[i] + y*cos[i])
	}
}

// sinCos computes sin and cos of offset*freq for every pair.
func sinCos(sin, cos, freqs []float64, offset int32) {
	for i, f := range freqs {
		sin[i], cos[i] = math.Sincos(float64(offset) * f)
	}
}
