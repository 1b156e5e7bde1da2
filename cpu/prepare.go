// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// prepared is a batch of queries with all that is computed once a call.
type prepared struct {
	*backend.Queries
	seeds   []seeds   // one for all queries, or one a query
	energy  []float64 // [n, group]: |q|^2
	rotated []float32 // [n, group, head_dim]: q behind the rotation of its K sides, or nil
	freqs   []float64 // angle a position turns each RoPE pair by
	rot     map[rotKey]*quant.Rotation
}

type rotKey struct {
	seed uint64
	dim  int
}

func (p *prepared) seedsOf(i int) seeds {
	if len(p.seeds) == 1 {
		return p.seeds[0]
	}
	return p.seeds[i]
}

// prepare rotates the queries and takes their energies.
func (b *Backend) prepare(ctx context.Context, op backend.Op, q *backend.Queries,
	sd []seeds) (*prepared, error) {
	n, dim := q.Len(), q.HeadDim
	p := &prepared{Queries: q, seeds: sd, rot: make(map[rotKey]*quant.Rotation)}
	anyRotated := false
	for i := range sd {
		anyRotated = anyRotated || sd[i].HasK
		if err := p.addRotations(sd[i]); err != nil {
			return nil, err
		}
	}
	if q.Rope != nil && q.Rope.Validate(dim) == nil {
		p.freqs = q.Rope.Frequencies()
	}
	p.energy = make([]float64, n*q.Group)
	if anyRotated {
		p.rotated = make([]float32, len(q.Q))
		copy(p.rotated, q.Q)
	}
	err := b.workers.run(ctx, op, n, func(i int) error {
		rot := p.rotK(i)
		for h := i * q.Group; h < (i+1)*q.Group; h++ {
			for _, x := range q.Q[h*dim : (h+1)*dim] {
				p.energy[h] += float64(x) * float64(x)
			}
			if rot != nil {
				rot.Forward(p.rotated[h*dim : (h+1)*dim])
			}
		}
		return nil
	})
	return p, err
}

func (p *prepared) addRotations(s seeds) error {
	add := func(has bool, seed uint64, dim int) error {
		key := rotKey{seed, dim}
		if !has || p.rot[key] != nil {
			return nil
		}
		r, err := quant.NewRotation(dim, seed)
		p.rot[key] = r
		return err
	}
	if err := add(s.HasK, s.K, p.HeadDim); err != nil {
		return err
	}
	return add(s.HasV, s.V, p.HeadDimV)
}

// rotK returns the rotation of query i's K sides, nil when none is rotated.
func (p *prepared) rotK(i int) *quant.Rotation {
	if s := p.seedsOf(i); s.HasK {
		return p.rot[rotKey{s.K, p.HeadDim}]
	}
	return nil
}

// rotV returns the rotation of query i's V sides, nil when none is rotated.
func (p *prepared) rotV(i int) *quant.Rotation {
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
