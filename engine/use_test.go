// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// A decode step allocates nothing on the heap. Only where a page fills or leaves the window, once in 32
// tokens of a sequence, a table copies the lists of 64 blocks that it changes.
func TestDecode_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector pools drop what they are given")
	}
	g := testGeometry()
	r := newRig(t, g, testConfig())
	rows := make([]Row, 4)
	for i := range rows {
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		rows[i] = Row{Seq: s, Tokens: 1}
		r.step(s, 1, 500+i, 500+i)
	}
	k, v := values(4*g.KVHeads*g.HeadDim, 1, 1, 1), values(4*g.KVHeads*g.HeadDimV, 1, 1, 2)
	q, out := values(4*g.Heads*g.HeadDim, 1, 1, 3), make([]float32, 4*g.Heads*g.HeadDimV)
	ctx := context.Background()
	step := func() {
		st, err := r.c.Begin(ctx, rows)
		if err != nil {
			t.Fatal(err)
		}
		for l := range g.Layers {
			if st.Append(l, k, v) != nil || st.Attend(l, q, out) != nil {
				t.Fatal("append or attend")
			}
		}
		if err := st.Commit(1); err != nil {
			t.Fatal(err)
		}
	}
	step()
	changes := 0
	for range 128 {
		if testing.AllocsPerRun(1, step) > 0 { // it runs the function twice
			changes++
		}
	}
	require.LessOrEqual(t, changes, 256/pageTokens*len(rows)*2, "steps that allocate")
	require.Less(t, testing.AllocsPerRun(256, step), 8.0)
}

// Wrong calls fail with an error of their kind that names call and sequence, and change nothing.
func TestMisuse(t *testing.T) {
	g := testGeometry()
	r, other := newRig(t, g, testConfig()), newRig(t, g, testConfig())
	ctx := context.Background()
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	foreign, err := other.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 3, 3)
	is := func(err, want error, text string) {
		t.Helper()
		require.ErrorIs(t, err, want)
		require.ErrorContains(t, err, text)
		var call *CallError
		require.True(t, errors.As(err, &call))
	}
	begin := func(rows ...Row) error { _, err := r.c.Begin(ctx, rows); return err }
	is(begin(), quant.ErrShape, "no rows")
	is(begin(Row{Seq: s, Tokens: 0}), quant.ErrShape, "sequence 1")
	is(begin(Row{Seq: foreign, Tokens: 1}), quant.ErrShape, "another cache")
	is(begin(Row{Seq: nil, Tokens: 1}), quant.ErrShape, "another cache")
	is(begin(Row{Seq: s, Tokens: 1}, Row{Seq: s, Tokens: 1}), quant.ErrShape, "rows 0 and 1")
	is(begin(Row{Seq: s, Tokens: 1 << 20}), quant.ErrBudget, "budget")
	st, err := r.c.Begin(ctx, []Row{{Seq: s, Tokens: 2}})
	require.NoError(t, err)
	is(begin(Row{Seq: s, Tokens: 1}), quant.ErrShape, "under way")
	is(s.Truncate(1), quant.ErrShape, "under way")
	is(s.Close(), quant.ErrShape, "under way")
	_, err = s.Fork()
	is(err, quant.ErrShape, "under way")
	k, v, q := r.tokens(1, 3, 5, 0)
	out := make([]float32, 2*g.Heads*g.HeadDimV)
	is(st.Append(2, k, v), quant.ErrShape, "layer 2 of 2")
	is(st.Append(-1, k, v), quant.ErrShape, "layer -1")
	is(st.Append(0, k[1:], v), quant.ErrShape, "k of 63 values")
	is(st.Append(0, k, nil), quant.ErrShape, "v of 0")
	is(st.AppendBytes(0, quant.DTypeInvalid, nil, nil), quant.ErrUnsupported, "element type")
	is(st.AppendBytes(0, quant.Float16, nil, nil), quant.ErrShape, "bytes")
	is(st.Attend(0, q, out), quant.ErrShape, "no rows yet")
	is(st.Commit(2), quant.ErrShape, "layer 0 has no rows")
	huge := append([]float32{1e6}, k[1:]...)
	is(st.Append(0, huge, v), quant.ErrRange, "layer 0")
	require.NoError(t, st.Append(0, k, v))
	is(st.Append(0, k, v), quant.ErrShape, "has its rows")
	is(st.Attend(0, q, out[1:]), quant.ErrShape, "out of")
	require.NoError(t, st.Attend(0, q, out))
	is(st.Attend(0, q, out), quant.ErrShape, "has had its queries")
	is(st.Commit(-1), quant.ErrShape, "-1 tokens")
	require.NoError(t, st.Rollback())
	is(st.Rollback(), quant.ErrClosed, "step")
	is(st.Append(0, k, v), quant.ErrClosed, "step")
	is(Step{}.Append(0, k, v), quant.ErrClosed, "step")
	is(s.Truncate(4), quant.ErrShape, "to 4 tokens of 3")
	is(s.Truncate(-1), quant.ErrShape, "to -1")
	long, err := r.c.Begin(ctx, []Row{{Seq: s, Tokens: 40}})
	require.NoError(t, err)
	for l := range g.Layers {
		k, v, _ := r.tokens(1, 3, 43, l)
		require.NoError(t, long.Append(l, k, v))
	}
	is(long.Commit(7), quant.ErrShape, "longer than the window")
	require.NoError(t, long.Commit(40))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	is(begin(Row{Seq: s, Tokens: 1}), quant.ErrClosed, "sequence 1")
	r.audit()
	r.closeAll()
	require.NoError(t, r.c.Close())
	_, err = r.c.NewSequence()
	is(err, quant.ErrClosed, "cache is closed")
}

// Open refuses settings that make no sense and names every one of them.
func TestOpen_Settings(t *testing.T) {
	be := newRig(t, testGeometry(), testConfig()).be
	open := func(change func(*Config, *quant.Geometry)) error {
		cfg, g := testConfig(), testGeometry()
		change(&cfg, &g)
		c, err := Open(be, g, cfg)
		if err == nil {
			require.NoError(t, c.Close())
		}
		return err
	}
	require.ErrorIs(t, open(func(c *Config, _ *quant.Geometry) { c.Budget = 0 }), quant.ErrBudget)
	require.ErrorIs(t, open(func(c *Config, _ *quant.Geometry) { c.Budget = 10000 }), quant.ErrBudget)
	require.ErrorIs(t, open(func(c *Config, _ *quant.Geometry) { c.Budget = 100 << 10 }), quant.ErrBudget)
	require.ErrorIs(t, open(func(_ *Config, g *quant.Geometry) { g.HeadDim = 20 }), quant.ErrUnsupported)
	require.ErrorIs(t, open(func(_ *Config, g *quant.Geometry) { g.Layers = 0 }), quant.ErrShape)
	err := open(func(c *Config, _ *quant.Geometry) {
		*c = Config{Budget: 1 << 20, Window: 33, Sinks: 99, Segment: 10, KeptQueries: 65, Exact: 2, Layout: 7,
			LayerWindow: []int{1}, Scale: float32(math.NaN()), Softcap: -1, SensitivityK: []float32{1},
			SensitivityV: []float32{1, 1, 1, -1}}
	})
	require.ErrorIs(t, err, quant.ErrShape)
	for _, name := range []string{"window 33", "sinks 99", "segment 10", "kept queries 65", "exact share 2", "layout 7",
		"layer windows of 1", "scale NaN", "softcap -1", "sensitivity of K", "sensitivity 3 of V"} {
		require.ErrorContains(t, err, name)
	}
	_, err = Open(nil, testGeometry(), testConfig())
	require.ErrorIs(t, err, quant.ErrShape)
}

// Many goroutines use one cache under pressure.
func TestConcurrent(t *testing.T) {
	cfg := testConfig()
	cfg.Budget = 640 << 10
	r := newRig(t, testGeometry(), cfg)
	var wait sync.WaitGroup
	for i := range 6 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			x := rig{t: t, be: r.be, c: r.c, geo: r.geo}
			s, err := r.c.NewSequence()
			if err != nil {
				t.Error(err)
				return
			}
			for n := range 60 {
				if _, err := x.try(s, uint64(i), 1+(7*n+i)%30, n%5*10); err != nil && !errors.Is(err, quant.ErrFull) {
					t.Error(err)
					return
				}
				if n == 12 {
					f, err := s.Fork()
					if err == nil {
						err = s.Close()
						s = f
					}
					if err != nil && !errors.Is(err, quant.ErrFull) {
						t.Error(err)
						return
					}
				}
				r.c.Stats()
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	wait.Wait()
	require.NotZero(t, r.c.Stats().Units)
	r.audit()
	r.closeAll()
}

// K and V as [kv_heads, tokens, head_dim], and in other element types, store the same rows.
func TestAppend_Layouts(t *testing.T) {
	g := testGeometry()
	var want []byte
	for _, layout := range []Layout{NHD, HND} {
		for _, dt := range []quant.DType{0, quant.Float32, quant.Float16, quant.BFloat16} {
			cfg := testConfig()
			cfg.Layout = layout
			r := newRig(t, g, cfg)
			s, err := r.c.NewSequence()
			require.NoError(t, err)
			st, err := r.c.Begin(context.Background(), []Row{{Seq: s, Tokens: 50}})
			require.NoError(t, err)
			for l := range g.Layers {
				k, v, _ := r.tokens(1, 0, 50, l)
				for _, x := range [][]float32{k, v} { // values that every type holds
					for i := range x {
						x[i] = quant.BF16ToF32(quant.F32ToBF16(x[i]))
					}
				}
				if layout == HND {
					k, v = hnd(k, 50, g.KVHeads), hnd(v, 50, g.KVHeads)
				}
				if dt == 0 {
					require.NoError(t, st.Append(l, k, v))
					continue
				}
				require.NoError(t, st.AppendBytes(l, dt, raw(t, k, dt), raw(t, v, dt)))
			}
			require.NoError(t, st.Commit(50))
			if want == nil {
				want = r.state(s)
			}
			require.Equal(t, want, r.state(s), "layout %d, %s", layout, dt)
		}
	}
}

func hnd(x []float32, tokens, heads int) []float32 {
	dim := len(x) / tokens / heads
	var y []float32
	for h := range heads {
		for t := range tokens {
			y = append(y, x[(t*heads+h)*dim:][:dim]...)
		}
	}
	return y
}

func raw(t *testing.T, x []float32, dt quant.DType) []byte {
	p := make([]byte, len(x)*dt.Size())
	require.NoError(t, quant.Encode(p, quant.Coding{Format: dt.Format()}, quant.Rows{Dim: len(x), Data: x}, 0))
	return p
}

// Layers with windows free whole segments behind them; pinned by TestMachine for their outputs.
func TestLayerWindow_FreesSegments(t *testing.T) {
	cfg := testConfig()
	cfg.LayerWindow = []int{0, 50}
	r := newRig(t, testGeometry(), cfg)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 600, 600)
	for i, seg := range s.segs {
		for h := range r.geo.KVHeads {
			require.NotZero(t, seg.of(0, h, r.geo.KVHeads)[0].at[sideK], "segment %d", i)
		}
		require.Equal(t, seg.hi() <= s.horizon(1, 600), seg.of(1, 0, r.geo.KVHeads)[0].at[sideK] == 0, "segment %d", i)
	}
	require.ErrorIs(t, s.Truncate(300), quant.ErrUnsupported)
	require.NoError(t, s.Truncate(590))
	r.audit()
	r.closeAll()
}
