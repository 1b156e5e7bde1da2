// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// counting is a backend that counts the buffers that are alive. It hands out those of the backend
// itself, which takes no others, and asks them whether they are freed.
type counting struct {
	backend.Backend
	mu   sync.Mutex
	made []backend.Buffer
}

func (c *counting) Alloc(n int64) (backend.Buffer, error) {
	b, err := c.Backend.Alloc(n)
	if err == nil { // memory is what was there before: NaN in every type
		err = b.Upload(0, bytes.Repeat([]byte{0xff}, int(n)))
	}
	if err == nil {
		c.mu.Lock()
		c.made = append(c.made, b)
		c.mu.Unlock()
	}
	return b, err
}

// live returns the bytes of the buffers that are not freed.
func (c *counting) live() (n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.made {
		if b.Download(0, nil) == nil {
			n += b.Len()
		}
	}
	return n
}

// closeAll closes the cache and requires that nothing is left.
func (r *rig) closeAll() {
	r.t.Helper()
	require.NoError(r.t, r.c.Close())
	require.Zero(r.t, r.be.live(), "bytes of buffers are left")
}

// rig is a cache and a conversation whose rows and queries are functions of position and layer.
type rig struct {
	t interface {
		require.TestingT
		Helper()
		Fatalf(string, ...any)
	}
	be  *counting
	c   *Cache
	geo quant.Geometry
}

func testGeometry() quant.Geometry {
	return quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8}
}

func testConfig() Config {
	return Config{Budget: 8 << 20, Window: 32, Segment: 64, KeptQueries: 4, Seed: 7, partBytes: 1}
}

func newRig(t testing.TB, g quant.Geometry, cfg Config) *rig {
	t.Helper()
	b, err := cpu.Open(cpu.Options{Workers: 2})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	be := &counting{Backend: b}
	c, err := Open(be, g, cfg)
	require.NoError(t, err)
	return &rig{t: t, be: be, c: c, geo: g}
}

// values returns n values that are a function of the arguments.
func values(n int, what, pos uint64, layer int) []float32 {
	rng := rand.New(rand.NewPCG(what<<32|uint64(layer), pos))
	x := make([]float32, n)
	for i := range x {
		x[i] = quant.F16ToF32(quant.F32ToF16(float32(rng.NormFloat64())))
	}
	return x
}

// tokens returns K, V and queries of positions [lo, hi) of text number text.
func (r *rig) tokens(text uint64, lo, hi int64, layer int) (k, v, q []float32) {
	g := r.geo
	for p := uint64(lo); p < uint64(hi); p++ {
		k = append(k, values(g.KVHeads*g.HeadDim, 3*text, p, layer)...)
		v = append(v, values(g.KVHeads*g.HeadDimV, 3*text+1, p, layer)...)
		q = append(q, values(g.Heads*g.HeadDim, 3*text+2, p, layer)...)
	}
	return k, v, q
}

// step adds n tokens of a text to a sequence, commits the first keep, and returns the outputs of all
// layers.
func (r *rig) step(s *Sequence, text uint64, n, keep int) [][]float32 {
	r.t.Helper()
	out, err := r.try(s, text, n, keep)
	require.NoError(r.t, err)
	return out
}

func (r *rig) try(s *Sequence, text uint64, n, keep int) ([][]float32, error) {
	lo := s.Len()
	st, err := r.c.Begin(context.Background(), []Row{{Seq: s, Tokens: n}})
	if err != nil {
		return nil, err
	}
	outs := make([][]float32, r.geo.Layers)
	for l := range outs {
		k, v, q := r.tokens(text, lo, lo+int64(n), l)
		outs[l] = make([]float32, n*r.geo.Heads*r.geo.HeadDimV)
		if err := st.Append(l, k, v); err != nil {
			return nil, err
		}
		if err := st.Attend(l, q, outs[l]); err != nil {
			return nil, err
		}
	}
	if keep == 0 {
		return outs, st.Rollback()
	}
	return outs, st.Commit(keep)
}

// want computes attention over exact rows: position p of a text in one layer, [heads, head_dim_v].
func (r *rig) want(text uint64, p int64, layer int) []float32 {
	g := r.geo
	k, v, q := r.tokens(text, 0, p+1, layer)
	q = q[int(p)*g.Heads*g.HeadDim:]
	var out []float32
	for h := range g.Heads {
		kv := h / g.GQARatio()
		s, top := make([]float64, p+1), math.Inf(-1)
		for t := range s {
			for d := range g.HeadDim {
				s[t] += float64(q[h*g.HeadDim+d]) * float64(k[(t*g.KVHeads+kv)*g.HeadDim+d])
			}
			s[t] *= float64(r.c.cfg.Scale)
			if w := r.c.cfg.layerWindow(layer); w > 0 && p-int64(t) >= w {
				s[t] = math.Inf(-1)
			}
			top = max(top, s[t])
		}
		sum, acc := 0.0, make([]float64, g.HeadDimV)
		for t := range s {
			e := math.Exp(s[t] - top)
			sum += e
			for d := range acc {
				acc[d] += e * float64(v[(t*g.KVHeads+kv)*g.HeadDimV+d])
			}
		}
		for _, a := range acc {
			out = append(out, float32(a/sum))
		}
	}
	return out
}

// distance is the relative squared error.
func distance(got, want []float32) float64 {
	var e, n float64
	for i := range want {
		d := float64(got[i]) - float64(want[i])
		e += d * d
		n += float64(want[i]) * float64(want[i])
	}
	return e / n
}

// state is what a sequence stores, in bytes.
func (r *rig) state(s *Sequence) []byte {
	r.t.Helper()
	var all []byte
	get := func(b backend.Span) {
		if b.Buf == nil {
			return
		}
		p := make([]byte, b.Len)
		require.NoError(r.t, b.Buf.Download(b.Off, p))
		all = append(all, p...)
	}
	for _, seg := range s.segs {
		for l := range r.geo.Layers {
			for h := range r.geo.KVHeads {
				blocks := seg.of(l, h, r.geo.KVHeads)
				for p := range blocks {
					b := &blocks[p]
					v, ok := r.c.view(seg, b, l, h, p, s.n, false)
					if !ok {
						all = append(all, 0xff)
						continue
					}
					all = append(all, byte(b.rung[0]), byte(b.rung[1]), byte(v.Rows))
					get(v.K.Data)
					get(v.MeanK)
					get(v.V.Data)
					if b.pos != 0 {
						get(v.Pos)
					}
				}
			}
		}
	}
	return all
}

// audit requires that the ledger counts what is held, and that no slot is lost.
func (r *rig) audit() {
	t, c := r.t, r.c
	t.Helper()
	require.LessOrEqual(t, c.led.peak, c.cfg.Budget)
	require.LessOrEqual(t, c.led.held, c.cfg.Budget)
	var sum int64
	for _, n := range c.led.by {
		require.GreaterOrEqual(t, n, int64(0))
		sum += n
	}
	require.Equal(t, c.led.held, sum)
	var rows int64
	for _, s := range c.arena.slabs {
		rows += int64(s.runs)*c.arena.runBytes + slabOverhead
	}
	require.Equal(t, rows, c.led.by[forRows])
	segs := map[*segment]int{}
	var tables, queries int64
	for _, s := range c.seqs {
		tables += 8 * int64(cap(s.segs))
		queries += sequenceBytes + c.keptBytes(s.kept.n)
		for _, g := range s.segs {
			segs[g]++
		}
	}
	index := int64(0)
	for _, s := range c.seqs {
		index += 32 * int64(cap(s.chain.keys))
	}
	listed := map[*segment]int{}
	for _, n := range c.index.nodes {
		index += prefixBytes + int64(len(n.keys))*keyBytes
		require.False(t, n.lost(), "a prefix that lost rows can be found")
		for _, g := range []*segment{n.seg, n.sinks} {
			if g != nil {
				segs[g]++
				listed[g]++
			}
		}
	}
	require.Equal(t, index, c.led.by[forIndex])
	var opaque int64
	for _, s := range c.seqs {
		opaque += int64(cap(s.opaque))
		require.Empty(t, s.busy)
	}
	require.Equal(t, opaque, c.led.by[forState])
	slots := make([]int, len(c.sizes.classes))
	for g, refs := range segs {
		require.Equal(t, refs, g.refs)
		require.Equal(t, listed[g], g.listed)
		tables += c.segmentSize(g.pages)
		for i := range g.mean {
			if p := &g.mean[i]; *p != 0 {
				slots[p.class()]++
				require.Same(t, p, c.arena.classes[p.class()].owners[p.number()])
			}
		}
		for i := range g.blocks {
			b := &g.blocks[i]
			for _, p := range []*slot{&b.at[0], &b.at[1], &b.pos} {
				if *p != 0 {
					slots[p.class()]++
					require.Same(t, p, c.arena.classes[p.class()].owners[p.number()])
				}
			}
		}
	}
	tables += int64(cap(c.arena.spare)) * 16
	tables += c.tables.bytes(c.tables.n)
	for i := range c.arena.classes {
		cl := &c.arena.classes[i]
		require.Equal(t, slots[i], cl.n, "slots of class %d", i)
		tables += 8*int64(cap(cl.owners)) + 16*int64(cap(cl.runs))
	}
	require.Equal(t, tables, c.led.by[forTables])
	for _, st := range c.steps {
		for i := range st.rows[:cap(st.rows)] {
			queries += c.keptBytes(st.rows[:cap(st.rows)][i].kept.n)
		}
	}
	require.Equal(t, queries, c.led.by[forQueries])
	r.auditTables()
}

// auditTables requires that the entries of all blocks that are not marked as fresh are right, and that no two
// segments share a room.
func (r *rig) auditTables() {
	r.t.Helper()
	c, heads := r.c, r.geo.KVHeads
	used := map[int]*segment{}
	for _, q := range c.seqs {
		for _, s := range q.segs {
			if s.room == 0 {
				continue
			}
			for i := range heads * s.pages {
				if by := used[s.room-1+i]; by != nil {
					require.Same(r.t, by, s)
				}
				used[s.room-1+i] = s
			}
			for l, table := range c.tables.all {
				v, err := table.View()
				require.NoError(r.t, err)
				for i := range heads * s.pages {
					b := &s.blocks[l*heads*s.pages+i]
					if b.at[sideK] == 0 || b.fresh() || b.centered() && s.mean[l*heads+i/s.pages]&fresh != 0 {
						continue
					}
					if want, ok := c.view(s, b, l, i/s.pages, i%s.pages, math.MaxInt64, true); ok {
						got, _ := v.Block(s.room - 1 + i)
						require.Equal(r.t, want, got)
					}
				}
			}
		}
	}
	free := 0
	for _, f := range c.tables.free {
		for i := range f.n {
			require.Nil(r.t, used[f.at+i])
		}
		free += f.n
	}
	require.LessOrEqual(r.t, len(used)+free, c.tables.n)
}

// sameBits requires equal outputs and names the first position that differs.
func (r *rig) sameBits(want, got [][]float32, what string) {
	r.t.Helper()
	w := r.geo.Heads * r.geo.HeadDimV
	for l := range want {
		require.Len(r.t, got[l], len(want[l]))
		for i := range want[l] {
			if math.Float32bits(want[l][i]) != math.Float32bits(got[l][i]) {
				r.t.Fatalf("%s: layer %d, token %d, value %d: %v, want %v", what, l, i/w, i%w, got[l][i], want[l][i])
			}
		}
	}
}
