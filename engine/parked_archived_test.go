// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// rounding is an archiver that keeps a byte of each value, in steps of 2^step of the layer and row.
type rounding struct {
	name   string
	refuse int // a layer it cannot code, -1 for none
	mu     sync.Mutex
	seen   []ArchiveRows
}

func (a *rounding) Name() string { return a.name }

func (a *rounding) Step(sample []ArchiveRows, bits float64) (float64, error) {
	if len(sample) == 0 {
		return 0, quant.ErrShape
	}
	return -4.5 + bits/100, nil
}

func (a *rounding) Encode(dst []byte, r *ArchiveRows, step float64) ([]byte, error) {
	if r.Layer == a.refuse {
		return nil, fmt.Errorf("layer %d: %w", r.Layer, quant.ErrRange)
	}
	a.mu.Lock()
	a.seen = append(a.seen, *r)
	a.mu.Unlock()
	dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(step))
	for h := range r.K {
		for _, rows := range [][]float32{r.K[h], r.V[h]} {
			for _, v := range rows {
				dst = append(dst, byte(int8(min(max(math.Round(float64(v)/math.Exp2(step)), -127), 127))))
			}
		}
	}
	return dst, nil
}

func (a *rounding) Decode(r *ArchiveRows, p []byte) error {
	if len(p) != 8+r.Values() {
		return fmt.Errorf("%d bytes of %d values: %w", len(p), r.Values(), quant.ErrCorrupt)
	}
	step := math.Exp2(math.Float64frombits(binary.LittleEndian.Uint64(p)))
	p = p[8:]
	for h := range r.K {
		for _, rows := range [][]float32{r.K[h], r.V[h]} {
			for i := range rows {
				rows[i], p = float32(float64(int8(p[0]))*step), p[1:]
			}
		}
	}
	return nil
}

// rowsOfSequence returns the rows of every token that is there, decoded, by layer, head and side.
func (r *rig) rowsOfSequence(s *Sequence) map[[4]int64][]float32 {
	r.t.Helper()
	all := map[[4]int64][]float32{}
	x := &shrinker{m: &mover{c: r.c}, factor: make([]float32, r.geo.Layers*r.geo.KVHeads)}
	for _, g := range s.segs {
		for l, h := range layerParts(&r.c.memory) {
			x.image = make([]byte, 0, 1<<20)
			im, masses, err := x.read(s, g, h)
			require.NoError(r.t, err)
			n := tokensOf(s, g)
			var rows ArchiveRows
			require.NoError(r.t, x.unpack(&rows, im, masses, l, n))
			for head := range rows.K {
				for t := range n {
					at := g.lo + int64(t)
					all[[4]int64{int64(l), int64(head), at, sideK}] = rows.K[head][t*r.geo.HeadDim:][:r.geo.HeadDim]
					all[[4]int64{int64(l), int64(head), at, sideV}] = rows.V[head][t*r.geo.HeadDimV:][:r.geo.HeadDimV]
				}
			}
		}
	}
	return all
}

// sameRows requires that no value differs by more than most.
func sameRows(t *testing.T, want, got map[[4]int64][]float32, most float64) {
	t.Helper()
	require.Len(t, got, len(want))
	for k, x := range want {
		for i := range x {
			require.InDelta(t, x[i], got[k][i], most, "%v value %d", k, i)
		}
	}
}

// Parked in archive form a sequence takes fewer bytes and comes back at any length within what the archiver
// loses: every token where it was, in the order of its segment, with the same codings and masses. Parked again
// unchanged, closed segments lose nothing more.
func TestPark_Archived(t *testing.T) {
	ctx := context.Background()
	for _, n := range []int{3, 60, 200, 390} {
		cfg := testConfig()
		cfg.LayerWindow = []int{0, 100}
		a := &rounding{name: "rounding", refuse: -1}
		cfg.Archiver = a
		r, st := withStore(t, cfg)
		exact, exactStore := withStore(t, testConfig())
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		r.step(s, 1, n, n)
		o, err := exact.c.NewSequence()
		require.NoError(t, err)
		exact.step(o, 1, n, n)
		_, err = o.Park(ctx, nil, never)
		require.NoError(t, err)
		want := r.rowsOfSequence(s)
		codings, masses := r.codingsOf(s), massesOf(s)
		for round := range 3 {
			id, err := s.Park(ctx, nil, never)
			require.NoError(t, err)
			r.audit()
			if n > 300 {
				require.Less(t, st.Held(), exactStore.Held()*8/10)
			}
			s, err = r.c.Resume(ctx, nil, id)
			require.NoError(t, err)
			r.audit()
			require.EqualValues(t, n, s.Len())
			got := r.rowsOfSequence(s)
			sameRows(t, want, got, 0.03)
			require.Equal(t, codings, r.codingsOf(s))
			require.Equal(t, masses, massesOf(s))
			if round > 0 {
				continue
			}
			want = got // from here on the same rows come back: the step is that of the last time
		}
		r.step(s, 1, 70, 70)
		r.audit()
		r.closeAll()
		exact.closeAll()
	}
}

func (r *rig) codingsOf(s *Sequence) (all []rung) {
	for _, g := range s.segs {
		for _, b := range g.blocks {
			all = append(all, b.rung[:]...)
		}
	}
	return all
}

func massesOf(s *Sequence) (all []float32) {
	for _, g := range s.segs {
		for _, b := range g.blocks {
			all = append(all, b.mass)
		}
	}
	return all
}

// The archiver sees rows without gaps, at their positions, and weights of mean square 1 over a head.
func TestPark_ArchivedWeights(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig()
	a := &rounding{name: "rounding", refuse: -1}
	cfg.Archiver = a
	r, _ := withStore(t, cfg)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 400, 400)
	_, err = s.Park(ctx, nil, never)
	require.NoError(t, err)
	sums, rows := map[[2]int]float64{}, map[[2]int]float64{}
	differ := false
	for _, x := range a.seen {
		for h, w := range x.Weights {
			require.Len(t, w, x.Tokens)
			for _, v := range w {
				sums[[2]int{x.Layer, h}] += float64(v) * float64(v)
				rows[[2]int{x.Layer, h}]++
				differ = differ || v != w[0]
			}
		}
	}
	require.True(t, differ)
	require.Len(t, sums, r.geo.Layers*r.geo.KVHeads)
	for k, sum := range sums {
		require.InDelta(t, 1, sum/rows[k], 1e-3, "%v", k)
	}
	r.closeAll()
}

// Rows that the archiver refuses, and those that pressure has made coarse, come back to the last bit.
func TestPark_ArchivedOrNot(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig()
	cfg.Archiver = &rounding{name: "rounding", refuse: 1}
	r, _ := withStore(t, cfg)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 400, 400)
	want := r.rowsOfSequence(s)
	id, err := s.Park(ctx, nil, never)
	require.NoError(t, err)
	s, err = r.c.Resume(ctx, nil, id)
	require.NoError(t, err)
	for k, x := range r.rowsOfSequence(s) {
		if k[0] == 1 {
			require.Equal(t, want[k], x, "%v", k)
		}
	}
	require.NoError(t, s.Demote(0.9))
	coarse := 0
	for _, x := range r.codingsOf(s) {
		if x < u8 {
			coarse++
		}
	}
	require.NotZero(t, coarse)
	id, err = s.Park(ctx, nil, never)
	require.NoError(t, err)
	_, err = r.c.Resume(ctx, nil, id)
	require.NoError(t, err)
	r.audit()
	r.closeAll()
}

// A cache of another archiver, or of none, names it and takes nothing; damage is damage, and takes nothing
// either.
func TestPark_ArchivedForeignAndDamaged(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig()
	cfg.Archiver = &rounding{name: "rounding", refuse: -1}
	r, _ := withStore(t, cfg)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 150, 150)
	var parts [][]byte
	x, err := newShrinker(&mover{c: r.c, ctx: ctx, call: "park"}, s, 1<<20)
	require.NoError(t, err)
	for _, g := range s.segs[1:] {
		p, err := x.shrink(nil, s, g, part{2, 4})
		require.NoError(t, err)
		require.NotZero(t, p[0]&imageArchived)
		parts = append(parts, bytes.Clone(p))
	}
	id, err := s.Park(ctx, nil, never)
	require.NoError(t, err)
	for _, other := range []Archiver{nil, &rounding{name: "other", refuse: -1}} {
		cfg := r.c.cfg
		cfg.Archiver = other
		c := newRig(t, testGeometry(), cfg)
		_, err := c.c.Resume(ctx, nil, id)
		var foreign *store.ForeignError
		require.True(t, errors.As(err, &foreign), "%v", err)
		require.Equal(t, "archiver", foreign.What)
		c.audit()
		c.closeAll()
	}
	for _, p := range parts {
		_, err := openPart(&r.c.memory, p)
		require.NoError(t, err)
		for n := 0; n < len(p); n += 3 {
			_, err := openPart(&r.c.memory, p[:n:n])
			require.Error(t, err, "%d bytes", n)
		}
		for i := 0; i < len(p); i += 5 {
			for _, flip := range []byte{1, 0x80, 0xff} {
				q := bytes.Clone(p)
				q[i] ^= flip
				_, _ = openPart(&r.c.memory, q) // must not panic; rows of other bits are what checksums are for
			}
		}
	}
	r.closeAll()
}

// swelling is an archiver whose rows come back far larger.
type swelling struct{ *rounding }

func (a swelling) Decode(r *ArchiveRows, p []byte) error {
	err := a.rounding.Decode(r, p)
	for h := range r.K {
		for _, rows := range [][]float32{r.K[h], r.V[h]} {
			for i := range rows {
				rows[i] *= 20000
			}
		}
	}
	return err
}

// Rows that come out of the archiver beyond binary16 are the largest that it holds: the conversation is not lost.
func TestPark_ArchivedStaysFinite(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig()
	cfg.Archiver = swelling{&rounding{name: "swelling", refuse: -1}}
	r, _ := withStore(t, cfg)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 200, 200)
	id, err := s.Park(ctx, nil, never)
	require.NoError(t, err)
	s, err = r.c.Resume(ctx, nil, id)
	require.NoError(t, err)
	most := float32(0)
	for _, x := range r.rowsOfSequence(s) {
		for _, v := range x {
			most = max(most, v)
		}
	}
	require.Equal(t, float32(65504), most)
	r.closeAll()
}
