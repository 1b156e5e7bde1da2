// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// saved returns the file of a sequence.
func saved(t *testing.T, s *Sequence) []byte {
	t.Helper()
	var w bytes.Buffer
	require.NoError(t, s.Save(context.Background(), &w))
	return w.Bytes()
}

func (r *rig) load(file []byte) (*Sequence, error) {
	return r.c.Load(context.Background(), bytes.NewReader(file), int64(len(file)))
}

// A sequence that was saved at any length, in any coding, and loaded in another cache goes on as the one that
// stayed, to the last bit.
func TestSave_EqualsTheStraightWay(t *testing.T) {
	for _, start := range [][sides]rung{{f16, f16}, {lm4, lm3}} {
		cfg := testConfig()
		cfg.LayerWindow = []int{0, 100}
		r, other := newRig(t, testGeometry(), cfg), newRig(t, testGeometry(), cfg)
		for _, x := range []*rig{r, other} {
			x.c.start, x.c.pressure.fixed = start, start != starts[0]
		}
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		for i, n := range []int{3, 1, 60, 130, 5, 200, 33} {
			before, file := r.state(s), saved(t, s)
			r.audit()
			require.True(t, bytes.Equal(before, r.state(s)))
			x, err := other.load(file)
			require.NoError(t, err)
			other.audit()
			require.True(t, bytes.Equal(before, other.state(x)), "before step %d from %v", i, start)
			require.True(t, bytes.Equal(file, saved(t, x)), "saved again")
			r.sameBits(r.step(s, 1, n, n), other.step(x, 1, n, n), fmt.Sprintf("step %d from %v", i, start))
			require.True(t, bytes.Equal(r.state(s), other.state(x)), "after step %d from %v", i, start)
			require.NoError(t, x.Close())
		}
		r.closeAll()
		other.closeAll()
	}
}

// What pressure has dropped, cuts, gaps and the server's own state are in the file too.
func TestSave_UnderPressure(t *testing.T) {
	r, other := newRig(t, testGeometry(), testConfig()), newRig(t, testGeometry(), testConfig())
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 600, 600)
	require.NoError(t, s.Demote(0.9))
	require.NoError(t, s.Truncate(500))
	r.step(s, 2, 150, 150)
	g := s.segs[1]
	for i, units := 0, 1000; i < len(g.blocks); i++ {
		if g.blocks[i].at[sideK] != 0 {
			require.NoError(t, r.c.pressure.change(g, i, sideK, gone, &units))
		}
	}
	require.NoError(t, r.c.pressure.reap(0))
	require.Greater(t, s.segs[1].lo, s.segs[0].hi(), "a gap")
	require.NoError(t, s.SetState([]byte("recurrent")))
	file := saved(t, s)
	x, err := other.load(file)
	require.NoError(t, err)
	require.Equal(t, "recurrent", string(x.State()))
	require.True(t, bytes.Equal(r.state(s), other.state(x)))
	r.sameBits(r.step(s, 2, 70, 70), other.step(x, 2, 70, 70), "after loading")
	require.NoError(t, s.Demote(0.2))
	require.NoError(t, x.Demote(0.2))
	require.True(t, bytes.Equal(r.state(s), other.state(x)))
	r.audit()
	other.audit()

	f, err := container.Open("x", bytes.NewReader(file), int64(len(file)), container.Limits{})
	require.NoError(t, err)
	require.EqualValues(t, 650, f.Header().Tokens)
	require.Less(t, int64(len(file)), 3*s.rowBytes())
	r.closeAll()
	other.closeAll()
}

// Damage anywhere, a file cut anywhere, and files of others: an error, and nothing is left behind.
func TestLoad_Refuses(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(s, 1, 200, 200)
	require.NoError(t, s.Demote(0.5))
	file := saved(t, s)
	held := r.c.led.held
	step := 13
	if testing.Short() {
		step = 131
	}
	for i := 0; i < len(file); i += step {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		_, err := r.load(bad)
		require.Error(t, err, "byte %d", i)
		require.True(t, errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrVersion) ||
			errors.Is(err, quant.ErrUnsupported), "byte %d: %v", i, err)
		_, err = r.load(file[:i])
		require.ErrorIs(t, err, quant.ErrCorrupt)
		require.Equal(t, held, r.c.led.held)
	}
	r.audit()
	for what, change := range map[string]func(*Config){"model": func(c *Config) { c.Model = "m" },
		"profile": func(c *Config) { c.Profile = "p" }, "layout": func(c *Config) { c.Segment = 128 }} {
		cfg := testConfig()
		change(&cfg)
		x := newRig(t, testGeometry(), cfg)
		_, err := x.load(file)
		var foreign *store.ForeignError
		require.True(t, errors.As(err, &foreign), "%s: %v", what, err)
		require.Equal(t, what, foreign.What)
		x.closeAll()
	}
	var w bytes.Buffer
	f, err := container.NewWriter(&w, &container.Header{Kind: container.KindCache, Geometry: testGeometry(),
		Layers: []int{0}, SegmentTokens: 1, KType: quant.Float16, VType: quant.Float16})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = r.load(w.Bytes())
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Error(t, s.Save(context.Background(), failing{}))
	r.audit()
	st, err := r.c.Begin(context.Background(), []Row{{Seq: s, Tokens: 1}})
	require.NoError(t, err)
	require.ErrorIs(t, s.Save(context.Background(), &w), quant.ErrShape)
	require.NoError(t, st.Rollback())
	r.closeAll()
	_, err = r.load(file)
	require.ErrorIs(t, err, quant.ErrClosed)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no") }

// Side tensors that hold together but lie are refused.
func FuzzParseSaved(f *testing.F) {
	r := newRig(f, testGeometry(), testConfig())
	s, err := r.c.NewSequence()
	require.NoError(f, err)
	r.step(s, 1, 140, 140)
	var w bytes.Buffer
	require.NoError(f, s.Save(context.Background(), &w))
	file, err := container.Open("x", bytes.NewReader(w.Bytes()), int64(w.Len()), container.Limits{})
	require.NoError(f, err)
	a, err := file.ReadAux(container.SequenceName)
	require.NoError(f, err)
	f.Add(a.Data)
	image, err := appendImage(&r.c.memory, make([]byte, 0, 1<<20), s.segs[1], s.n, part{1, 3}, whole)
	require.NoError(f, err)
	f.Add(image)
	m := newLoader(context.Background(), r.c, "load", 0)
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, err := range []error{
			func() error { _, _, err := m.parseSaved(file.Header(), p); return err }(),
			func() error { _, err := parseImage(&r.c.memory, p); return err }(),
			func() error { _, err := parseState(&r.c.memory, p); return err }(),
		} {
			if err != nil && !errors.Is(err, quant.ErrCorrupt) && !errors.Is(err, quant.ErrVersion) &&
				!errors.Is(err, quant.ErrUnsupported) {
				t.Fatal(err)
			}
		}
	})
}
