// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
)

var never time.Time

// withStore is a rig with a store in memory.
func withStore(t testing.TB, cfg Config) (*rig, *store.Memory) {
	st := store.NewMemory(store.MemoryOptions{})
	cfg.Store = st
	return newRig(t, testGeometry(), cfg), st
}

// A sequence that was parked at any length, in any coding, and resumed in another cache goes on as one that
// was not, to the last bit.
func TestPark_EqualsTheStraightWay(t *testing.T) {
	ctx := context.Background()
	for _, start := range [][sides]rung{{f16, f16}, {lm4, lm3}} {
		cfg := testConfig()
		cfg.LayerWindow = []int{0, 100}
		r, st := withStore(t, cfg)
		other := newRig(t, testGeometry(), r.c.cfg)
		for _, x := range []*rig{r, other} {
			x.c.start, x.c.pressure.fixed = start, start != starts[0]
		}
		straight, err := r.c.NewSequence()
		require.NoError(t, err)
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		here, there := r, other
		for i, n := range []int{0, 3, 1, 60, 130, 5, 200, 33} {
			if n > 0 {
				here.sameBits(r.step(straight, 1, n, n), here.step(s, 1, n, n), fmt.Sprintf("step %d from %v", i, start))
			}
			id, err := s.Park(ctx, nil, never)
			require.NoError(t, err)
			here.audit()
			_, err = here.c.Begin(ctx, []Row{{Seq: s, Tokens: 1}})
			require.ErrorIs(t, err, quant.ErrClosed)
			s, err = there.c.Resume(ctx, nil, id)
			require.NoError(t, err)
			there.audit()
			require.Equal(t, straight.n, s.Len())
			require.Equal(t, straight.left, s.left)
			require.Equal(t, straight.kept, s.kept)
			require.True(t, bytes.Equal(r.state(straight), there.state(s)), "after step %d from %v", i, start)
			for j := range straight.segs {
				for k := range straight.segs[j].blocks {
					require.Equal(t, straight.segs[j].blocks[k].mass, s.segs[j].blocks[k].mass)
					require.Equal(t, straight.segs[j].blocks[k].energy, s.segs[j].blocks[k].energy)
				}
			}
			require.Len(t, parts(&r.c.memory, false), 2)
			require.NoError(t, there.c.Discard(ctx, nil, id))
			_, err = there.c.Resume(ctx, nil, id)
			require.ErrorIs(t, err, fs.ErrNotExist)
			require.Zero(t, st.Held(), "what is discarded leaves nothing")
			here, there = there, here
		}
		r.audit()
		r.closeAll()
		other.closeAll()
	}
}

// What pressure has made of a sequence, cuts in it and its own state come back too, and pressure does the
// same to it afterwards.
func TestPark_UnderPressure(t *testing.T) {
	ctx := context.Background()
	run := func(park bool) []byte {
		r, _ := withStore(t, testConfig())
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		r.step(s, 1, 500, 500)
		require.NoError(t, s.Demote(0.8))
		require.NoError(t, s.Truncate(420))
		r.step(s, 2, 150, 150)
		require.NoError(t, s.SetState([]byte("recurrent")))
		if park {
			id, err := s.Park(ctx, []byte("salt"), never)
			require.NoError(t, err)
			r.audit()
			s, err = r.c.Resume(ctx, []byte("salt"), id)
			require.NoError(t, err)
			r.audit()
		}
		require.Equal(t, "recurrent", string(s.State()))
		f, err := s.Fork()
		require.NoError(t, err)
		require.Equal(t, "recurrent", string(f.State()))
		require.NoError(t, f.Close())
		r.step(s, 2, 70, 70)
		require.NoError(t, s.Demote(0.3))
		require.NoError(t, s.Truncate(300))
		require.Empty(t, s.State())
		r.step(s, 3, 100, 100)
		r.audit()
		state := r.state(s)
		r.closeAll()
		return state
	}
	require.True(t, bytes.Equal(run(false), run(true)))
}

// A shared prefix is put once, and is found in the store by those who know its tokens and the salt.
func TestRecallPrefix(t *testing.T) {
	ctx, salt := context.Background(), []byte("one")
	r, st := withStore(t, testConfig())
	a, err := r.c.MatchPrefix(salt, nil)
	require.NoError(t, err)
	r.with(a, 1, 400)
	b, err := r.c.MatchPrefix(salt, append(ids(1, 0, 330), ids(2, 330, 400)...))
	require.NoError(t, err)
	require.EqualValues(t, 320, b.Len())
	require.NoError(t, b.Truncate(260)) // opens a segment again
	whole := r.state(a)
	_, err = a.Park(ctx, []byte("two"), never)
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorContains(t, err, "salt")
	idA, err := a.Park(ctx, salt, never)
	require.NoError(t, err)
	once := st.Held()
	_, err = b.Park(ctx, salt, never)
	require.NoError(t, err)
	require.Less(t, st.Held()-once, once/2, "what is shared is put once")
	r.audit()
	_, err = r.c.Resume(ctx, []byte("two"), idA)
	var foreign *store.ForeignError
	require.True(t, errors.As(err, &foreign))
	require.Equal(t, "salt", foreign.What)

	// Another process knows nothing but the store.
	other := newRig(t, testGeometry(), r.c.cfg)
	recall := func(salt string, tokens []int32) *Sequence {
		s, err := other.c.RecallPrefix(ctx, []byte(salt), tokens)
		require.NoError(t, err)
		other.audit()
		return s
	}
	require.Zero(t, recall("two", ids(1, 0, 400)).Len())
	s := recall("one", ids(1, 0, 400))
	require.EqualValues(t, 320, s.Len())
	require.EqualValues(t, 0, other.c.Stats().Skipped)
	for l, out := range other.with(s, 1, 350) {
		require.Less(t, distance(out[:32], other.want(1, 320, l)), 1e-9)
	}
	nodes := len(other.c.index.nodes)
	require.NotZero(t, nodes)
	require.EqualValues(t, 320, recall("one", ids(1, 0, 400)).Len(), "now memory has it")
	c := recall("one", append(ids(1, 0, 200), ids(3, 200, 400)...))
	require.EqualValues(t, 192, c.Len())
	for l, out := range other.with(c, 1, 200) {
		require.Less(t, distance(out[:32], other.want(1, 192, l)), 1e-9)
	}

	// A resumed sequence shares with what is there.
	rows := other.c.arena.classes[other.c.sizes.class[sideK][f16]].n
	again, err := other.c.Resume(ctx, salt, idA)
	require.NoError(t, err)
	require.True(t, bytes.Equal(whole, other.state(again)))
	require.Less(t, other.c.arena.classes[other.c.sizes.class[sideK][f16]].n, rows+rows/2)
	other.audit()

	// A cache of other settings or another model finds nothing, and says why.
	for _, change := range []func(*Config){func(c *Config) { c.Model = "m" }, func(c *Config) { c.Seed++ },
		func(c *Config) { c.Profile = "p" }, func(c *Config) { c.Window = 64 }} {
		cfg := r.c.cfg
		change(&cfg)
		x := newRig(t, testGeometry(), cfg)
		s, err := x.c.RecallPrefix(ctx, salt, ids(1, 0, 400))
		require.NoError(t, err)
		require.Zero(t, s.Len())
		_, err = x.c.Resume(ctx, salt, idA)
		require.True(t, errors.As(err, &foreign), "%v", err)
		x.closeAll()
	}
	r.closeAll()
	other.closeAll()
}

// Divergence inside a parked segment, in any coding: no token is missing, and later segments can be shared.
func TestRecallPrefix_InsideASegment(t *testing.T) {
	ctx := context.Background()
	for _, start := range [][sides]rung{{f16, f16}, {lm4, lm4}} {
		r, _ := withStore(t, testConfig())
		other := newRig(t, testGeometry(), r.c.cfg)
		for _, x := range []*rig{r, other} {
			x.c.start, x.c.pressure.fixed = start, start != starts[0]
		}
		a, err := r.c.MatchPrefix(nil, nil)
		require.NoError(t, err)
		r.with(a, 1, 400)
		_, err = a.Park(ctx, nil, never)
		require.NoError(t, err)
		for n := int64(1); n < 400; n += 37 {
			s, err := other.c.RecallPrefix(ctx, nil, append(ids(1, 0, n), ids(4, n, 500)...))
			require.NoError(t, err)
			require.Equal(t, min(n, 323)/64*64, s.Len(), "%d", n)
			rows, err := s.Explain(1, 1)
			require.NoError(t, err)
			sum := 0
			for _, b := range rows {
				sum += b.Rows
			}
			require.EqualValues(t, s.Len(), sum)
			other.with(s, 4, 450)
			other.audit()
			require.NoError(t, s.Close())
			if n%2 == 0 {
				_, err := other.c.index.evict(other.c, func() int64 { return 1 })
				require.NoError(t, err)
			}
		}
		r.closeAll()
		other.closeAll()
	}
}

// Faults in every call of the store: a sequence that could not be parked is what it was, what could not be
// resumed leaves nothing, and no wrong row appears.
func TestPark_Faults(t *testing.T) {
	ctx := context.Background()
	good := store.NewMemory(store.MemoryOptions{})
	faulty := storetest.NewFaulty(good, 1, 0.07)
	cfg := testConfig()
	cfg.Store = faulty
	r, other := newRig(t, testGeometry(), cfg), newRig(t, testGeometry(), cfg)
	s, err := r.c.MatchPrefix(nil, nil)
	require.NoError(t, err)
	r.with(s, 1, 300)
	want := r.state(s)
	rounds := 300
	if testing.Short() {
		rounds = 100
	}
	var parks, resumes, recalls int
	for range rounds {
		id, err := s.Park(ctx, nil, never)
		r.audit()
		if err != nil {
			require.ErrorIs(t, err, storetest.ErrInjected)
			require.True(t, bytes.Equal(want, r.state(s)))
			parks++
			continue
		}
		held := r.c.led.held
		for {
			if s, err = r.c.Resume(ctx, nil, id); err == nil {
				break
			}
			require.True(t, errors.Is(err, storetest.ErrInjected) || errors.Is(err, quant.ErrCorrupt) ||
				errors.Is(err, quant.ErrUnsupported) || errors.Is(err, quant.ErrVersion), err)
			require.Equal(t, held, r.c.led.held)
			resumes++
		}
		r.audit()
		require.True(t, bytes.Equal(want, r.state(s)))
		_ = r.c.Discard(ctx, nil, id)
		f, err := other.c.RecallPrefix(ctx, nil, ids(1, 0, 300))
		require.NoError(t, err)
		other.audit()
		if f.Len() < 256 {
			recalls++
		}
		rows, err := f.Explain(0, 0)
		require.NoError(t, err)
		sum := 0
		for _, b := range rows {
			sum += b.Rows
		}
		require.EqualValues(t, f.Len(), sum)
		require.NoError(t, f.Close())
		_, err = other.c.index.evict(other.c, func() int64 { return 1 })
		require.NoError(t, err)
		other.audit()
	}
	t.Log(parks, "parks and", resumes, "resumes failed,", recalls, "matches were shorter;", faulty.Faults(), "faults,",
		other.c.Stats().Skipped, "records skipped")
	require.NotZero(t, parks*resumes*recalls)
	require.NotZero(t, other.c.Stats().Skipped)
	r.closeAll()
	other.closeAll()
}

func TestPark_Misuse(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, testGeometry(), testConfig())
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	_, err = s.Park(ctx, nil, never)
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, "park, sequence 1")
	_, err = r.c.Resume(ctx, nil, store.Key{1})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	r, _ = withStore(t, testConfig())
	s, err = r.c.NewSequence()
	require.NoError(t, err)
	_, err = r.c.Resume(ctx, nil, store.Key{1})
	require.ErrorIs(t, err, fs.ErrNotExist)
	r.step(s, 1, 10, 10)
	st, err := r.c.Begin(ctx, []Row{{Seq: s, Tokens: 1}})
	require.NoError(t, err)
	_, err = s.Park(ctx, nil, never)
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorIs(t, s.SetState(nil), quant.ErrShape)
	require.NoError(t, st.Rollback())
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Park(gone, nil, never)
	require.ErrorIs(t, err, context.Canceled)
	id, err := s.Park(ctx, nil, never)
	require.NoError(t, err)
	_, err = s.Park(ctx, nil, never)
	require.ErrorIs(t, err, quant.ErrClosed)
	cfg := testConfig()
	cfg.Budget, cfg.Store = 330<<10, r.c.cfg.Store
	small := newRig(t, testGeometry(), cfg)
	var all []*Sequence
	for err = nil; err == nil; {
		var x *Sequence
		if x, err = small.c.Resume(ctx, nil, id); err == nil {
			all = append(all, x)
		}
		small.audit()
	}
	require.ErrorIs(t, err, quant.ErrFull)
	require.NotEmpty(t, all)
	small.closeAll()
	require.NoError(t, r.c.Close())
	_, err = r.c.Resume(ctx, nil, id)
	require.ErrorIs(t, err, quant.ErrClosed)
}

// A router that follows the events knows at any time which prefixes can be found.
func TestEvents(t *testing.T) {
	ctx := context.Background()
	where := map[string]map[key]bool{InMemory: {}, InStore: {}}
	known := map[key]bool{{}: true}
	cfg := testConfig()
	cfg.Events = func(e Event) {
		if e.Kind == Cleared {
			clear(where[e.Where])
			return
		}
		require.NotEmpty(t, e.Keys)
		require.True(t, known[e.Parent], "the parent was never stored")
		for _, k := range e.Keys {
			known[k] = true
			if e.Kind == Removed {
				require.Contains(t, where[e.Where], key(k))
				delete(where[e.Where], k)
			} else {
				where[e.Where][k] = true
			}
		}
		require.Zero(t, e.Tokens%prefixTokens)
	}
	r, _ := withStore(t, cfg)
	check := func() {
		t.Helper()
		require.Len(t, where[InMemory], len(r.c.index.at))
		for k := range r.c.index.at {
			require.True(t, where[InMemory][k])
		}
	}
	a, err := r.c.MatchPrefix(nil, nil)
	require.NoError(t, err)
	r.with(a, 1, 400)
	check()
	require.Len(t, where[InMemory], 5)
	b, err := a.Fork()
	require.NoError(t, err)
	require.NoError(t, b.Truncate(128))
	r.with(b, 1, 200)
	_, err = a.Park(ctx, nil, never)
	require.NoError(t, err)
	require.Equal(t, where[InMemory], where[InStore])
	check()
	n, err := r.c.ExpirePrefixes(time.Hour)
	require.NoError(t, err)
	require.Zero(t, n)
	n, err = r.c.ExpirePrefixes(0)
	require.NoError(t, err)
	require.Equal(t, 4, n, "b holds the first one")
	check()
	r.audit()
	require.NoError(t, b.Close())
	n, err = r.c.ExpirePrefixes(0)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Empty(t, where[InMemory])
	st := r.c.Stats()
	require.EqualValues(t, 1, st.Parked)
	r.closeAll()
}

// losing is a store that has lost every image but the first few that are asked for.
type losing struct {
	store.Store
	images int
}

func (l *losing) Get(ctx context.Context, k store.Key) ([]byte, error) {
	p, err := l.Store.Get(ctx, k)
	if len(p) > 2000 {
		if l.images--; l.images < 0 {
			return nil, fs.ErrNotExist
		}
	}
	return p, err
}

// A match ends before the first segment that is not there, and goes on from there with the right keys.
func TestRecallPrefix_SegmentsAreGone(t *testing.T) {
	ctx := context.Background()
	for _, sinks := range []int{4, -1} {
		cfg := testConfig()
		cfg.Sinks = sinks
		r, st := withStore(t, cfg)
		a, err := r.c.MatchPrefix(nil, nil)
		require.NoError(t, err)
		r.with(a, 1, 400)
		_, err = a.Park(ctx, nil, never)
		require.NoError(t, err)
		for n := range 12 {
			cfg := r.c.cfg
			cfg.Store, cfg.Sinks = &losing{st, n}, sinks
			other := newRig(t, testGeometry(), cfg)
			s, err := other.c.RecallPrefix(ctx, nil, ids(1, 0, 400))
			require.NoError(t, err)
			other.audit()
			had := s.Len()
			require.LessOrEqual(t, had, int64(n/2*64)) // in two parts each
			require.Equal(t, n > 1, had > 0, "%d images, %d sinks", n, sinks)
			require.EqualValues(t, had/prefixTokens, len(s.chain.keys))
			other.with(s, 1, 400)
			other.audit()
			x, err := other.c.MatchPrefix(nil, append(ids(1, 0, 350), ids(5, 350, 400)...))
			require.NoError(t, err)
			require.EqualValues(t, 320, x.Len())
			for l, out := range other.with(x, 1, 321) {
				require.Less(t, distance(out, other.want(1, 320, l)), 1e-9)
			}
			other.closeAll()
		}
		r.closeAll()
	}
}
