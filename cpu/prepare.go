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

// layouts is how many layouts a query may be arranged for.
const layouts = int(attend.Quads) + 1

// basis is what a query has to be turned into before it meets a K side: the place in vecs.
type basis struct {
	rotated bool
	layout  attend.Layout
}

// prepared is a batch of queries with all that is computed once a call.
type prepared struct {
	*backend.Queries
	kern       *attend.Kernels
	padK, padV int       // values of a row in a tile
	seeds      []seeds   // one for all queries, or one a query
	energy     []float32 // [n, group]: |q|^2
	// vecs holds, for each basis that some K side has, the queries: [n, group, padK].
	vecs  [2][layouts][]float32
	freqs []float64 // angle a position turns each RoPE pair by
	rot   map[rotKey]*codec.Rotation
	codec *codec.Kernels
}

type rotKey struct {
	seed uint64
	dim  int
}

// flag is 1 for true.
func flag(b bool) int {
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

// prepare rotates and arranges the queries and takes their energies.
func (b *Backend) prepare(ctx context.Context, op backend.Op, q *backend.Queries,
	blocks []backend.Block, sd []seeds) (*prepared, error) {
	n := q.Len()
	p := &prepared{Queries: q, kern: b.kern, seeds: sd, rot: make(map[rotKey]*codec.Rotation), codec: b.codec,
		padK: b.kern.PadDim(q.HeadDim), padV: b.kern.PadDim(q.HeadDimV)}
	for i := range sd {
		if err := p.addRotations(b, sd[i]); err != nil {
			return nil, err
		}
	}
	if q.Rope != nil && q.Rope.Validate(q.HeadDim) == nil {
		p.freqs = q.Rope.Frequencies()
	}
	p.energy = make([]float32, n*q.Group)
	for i := range blocks {
		bs := p.basisOf(blocks[i].K.Coding.Format)
		v := &p.vecs[flag(bs.rotated)][bs.layout]
		if *v == nil {
			*v = make([]float32, n*q.Group*p.padK)
		}
	}
	err := b.workers.run(ctx, op, n, func(i int) error {
		tmp := make([]float32, q.HeadDim)
		p.arrange(i, tmp)
		return nil
	})
	return p, err
}

// arrange fills in what belongs to query i. tmp is [head_dim].
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
			}
			for l, v := range p.vecs[rotated] {
				if v != nil {
					attend.Arrange(v[h*p.padK:(h+1)*p.padK], src, attend.Layout(l))
				}
			}
		}
	}
}

func (p *prepared) addRotations(b *Backend, s seeds) error {
	add := func(has bool, seed uint64, dim int) error {
		key := rotKey{seed, dim}
		if !has || p.rot[key] != nil {
			return nil
		}
		r, err := b.rotation(dim, seed)
		p.rot[key] = r
		return err
	}
	if err := add(s.HasK, s.K, p.HeadDim); err != nil {
		return err
	}
	return add(s.HasV, s.V, p.HeadDimV)
}

// rotK returns the rotation of query i's K sides, nil when none is rotated.
func (p *prepared) rotK(i int) *codec.Rotation {
	if s := p.seedsOf(i); s.HasK {
		return p.rot[rotKey{s.K, p.HeadDim}]
	}
	return nil
}

// rotV returns the rotation of query i's V sides, nil when none is rotated.
func (p *prepared) rotV(i int) *codec.Rotation {
	if s := p.seedsOf(i); s.HasV {
		return p.rot[rotKey{s.V, p.HeadDimV}]
	}
	return nil
}

// turn rotates q by offset further positions: component pair (x, y) by angle offset*freq. sin and
// cos hold the pairs' values.
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

// sinCos fills sin and cos of offset*freq.
func sinCos(sin, cos, freqs []float64, offset int32) {
	for i, f := range freqs {
		sin[i], cos[i] = math.Sincos(float64(offset) * f)
	}
}
