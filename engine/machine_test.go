// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// talk is a sequence of the state machine and the text that it holds.
type talk struct {
	s    *Sequence
	text uint64
}

// Any order of calls keeps the budget and the ledger exact, refuses only for want of memory, and leaves
// nothing behind. With a large budget every output equals exact attention.
func TestMachine(t *testing.T) {
	b, err := cpu.Open(cpu.Options{Workers: 1})
	require.NoError(t, err)
	defer b.Close()
	g := testGeometry()
	rapid.Check(t, func(rt *rapid.T) {
		cfg := testConfig()
		tight := rapid.Bool().Draw(rt, "tight")
		if tight {
			cfg.Budget = int64(rapid.IntRange(420, 700).Draw(rt, "KiB")) << 10
		}
		if rapid.Bool().Draw(rt, "windows") {
			cfg.LayerWindow = []int{0, rapid.IntRange(1, 200).Draw(rt, "window")}
		}
		if rapid.Bool().Draw(rt, "no sinks") {
			cfg.Sinks = -1
		}
		cfg.Store = store.NewMemory(store.MemoryOptions{})
		be := &counting{Backend: b}
		c, err := Open(be, g, cfg)
		require.NoError(rt, err)
		r := &rig{t: rt, be: be, c: c, geo: g}
		m := &machine{rig: r, tight: tight}
		rt.Repeat(map[string]func(*rapid.T){
			"":         func(*rapid.T) { r.audit() },
			"sequence": m.sequence,
			"step":     m.step,
			"close":    m.close,
			"fork":     m.fork,
			"truncate": m.truncate,
			"park":     m.park,
			"resume":   m.resume,
			"save":     m.save,
			"rest":     m.rest,
		})
		r.closeAll()
	})
}

// rest says that a sequence is idle, and may close what it has open: that loses nothing.
func (m *machine) rest(rt *rapid.T) {
	if len(m.talks) == 0 {
		return // no skip: rapid gives up where most actions are
	}
	s := m.talks[m.pick(rt)].s
	require.NoError(rt, s.Rest())
	if rapid.Bool().Draw(rt, "fold") && !folded(s) {
		units := maxUnits
		_, err := fold(s, &units)
		require.NoError(rt, err)
	}
}

// parkedTalk is one that is in the store.
type parkedTalk struct {
	id    store.Key
	text  uint64
	state []byte
}

type machine struct {
	*rig
	parked []parkedTalk
	talks  []talk
	texts  uint64
	tight  bool
}

// allowed reports whether an error is one that a tight budget gives.
func (m *machine) allowed(rt *rapid.T, err error) bool {
	if err == nil {
		return true
	}
	if !m.tight || !errors.Is(err, quant.ErrFull) && !errors.Is(err, quant.ErrBudget) {
		rt.Fatalf("unexpected: %v", err)
	}
	return false
}

func (m *machine) sequence(rt *rapid.T) {
	if len(m.talks) == 5 {
		rt.Skip("enough")
	}
	s, err := m.c.NewSequence()
	if m.allowed(rt, err) {
		m.texts++
		m.talks = append(m.talks, talk{s, m.texts})
	}
}

func (m *machine) pick(rt *rapid.T) int {
	if len(m.talks) == 0 {
		rt.Skip("none")
	}
	return rapid.IntRange(0, len(m.talks)-1).Draw(rt, "which")
}

func (m *machine) close(rt *rapid.T) {
	i := m.pick(rt)
	require.NoError(rt, m.talks[i].s.Close())
	m.talks = append(m.talks[:i], m.talks[i+1:]...)
}

// step adds tokens to some of the sequences at once and keeps all, some or none of them.
func (m *machine) step(rt *rapid.T) {
	m.pick(rt)
	var rows []Row
	var talks []talk
	long := false
	for _, x := range m.talks {
		if n := rapid.IntRange(0, 60).Draw(rt, "tokens"); n > 0 {
			rows, talks = append(rows, Row{Seq: x.s, Tokens: n}), append(talks, x)
			long = long || n > m.c.cfg.Window
		}
	}
	if len(rows) == 0 {
		rt.Skip("no rows")
	}
	st, err := m.c.Begin(context.Background(), rows)
	if !m.allowed(rt, err) {
		return
	}
	m.audit2(rows)
	for l := range m.geo.Layers {
		var k, v, q []float32
		for i, x := range talks {
			a, b, c := m.tokens(x.text, x.s.n, x.s.n+int64(rows[i].Tokens), l)
			k, v, q = append(k, a...), append(v, b...), append(q, c...)
		}
		out := make([]float32, len(q)/m.geo.HeadDim*m.geo.HeadDimV)
		require.NoError(rt, st.Append(l, k, v))
		require.NoError(rt, st.Attend(l, q, out))
		if !m.tight {
			m.compare(rt, talks, rows, l, out)
		}
	}
	keep := 60
	if rapid.IntRange(0, 3).Draw(rt, "how") == 0 {
		keep = 0
		if !long {
			keep = rapid.IntRange(0, 30).Draw(rt, "keep")
		}
	}
	if keep == 0 {
		require.NoError(rt, st.Rollback())
		return
	}
	require.NoError(rt, st.Commit(keep))
	require.ErrorIs(rt, st.Commit(1), quant.ErrClosed)
}

// audit2 checks the budget while a step is under way.
func (m *machine) audit2([]Row) {
	require.LessOrEqual(m.t, m.c.led.held, m.c.cfg.Budget)
	require.LessOrEqual(m.t, m.be.live(), m.c.led.by[forRows]+m.c.led.by[forScratch])
}

func (m *machine) compare(rt *rapid.T, talks []talk, rows []Row, layer int, out []float32) {
	w := m.geo.Heads * m.geo.HeadDimV
	for i, x := range talks {
		for _, t := range []int{0, rows[i].Tokens - 1} {
			want := m.want(x.text, x.s.n+int64(t), layer)
			if d := distance(out[t*w:(t+1)*w], want); d > 1e-9 {
				rt.Fatalf("sequence %d, layer %d, position %d: relative error %g", x.s.id, layer, x.s.n+int64(t), d)
			}
		}
		out = out[rows[i].Tokens*w:]
	}
}

func (m *machine) fork(rt *rapid.T) {
	i := m.pick(rt)
	if len(m.talks) == 5 {
		rt.Skip("enough")
	}
	s, err := m.talks[i].s.Fork()
	if m.allowed(rt, err) {
		// Making room may recode the original meanwhile.
		if !m.tight && !bytes.Equal(m.state(m.talks[i].s), m.state(s)) {
			rt.Fatal("a fork differs from its original")
		}
		m.talks = append(m.talks, talk{s, m.talks[i].text})
	}
}

// truncate forgets tokens; those that follow are the same ones again.
func (m *machine) truncate(rt *rapid.T) {
	x := m.talks[m.pick(rt)]
	n := rapid.Int64Range(0, x.s.n).Draw(rt, "length")
	if m.c.cfg.LayerWindow != nil && rapid.Bool().Draw(rt, "near") {
		n = max(0, x.s.n-rapid.Int64Range(0, 20).Draw(rt, "back"))
	}
	err := x.s.Truncate(n)
	if errors.Is(err, quant.ErrUnsupported) && m.c.cfg.LayerWindow != nil {
		return
	}
	if m.allowed(rt, err) {
		require.Equal(rt, n, x.s.n)
	}
}

func (m *machine) park(rt *rapid.T) {
	i := m.pick(rt)
	x := m.talks[i]
	state := m.state(x.s)
	id, err := x.s.Park(context.Background(), nil, never)
	if !m.allowed(rt, err) {
		require.Equal(rt, state, m.state(x.s))
		return
	}
	m.parked = append(m.parked, parkedTalk{id, x.text, state})
	m.talks = append(m.talks[:i], m.talks[i+1:]...)
}

// resume brings a sequence back as it was, once or twice.
func (m *machine) resume(rt *rapid.T) {
	if len(m.parked) == 0 || len(m.talks) == 5 {
		rt.Skip("none")
	}
	i := rapid.IntRange(0, len(m.parked)-1).Draw(rt, "which")
	x := m.parked[i]
	s, err := m.c.Resume(context.Background(), nil, x.id)
	if !m.allowed(rt, err) {
		return
	}
	require.Equal(rt, x.state, m.state(s))
	m.talks = append(m.talks, talk{s, x.text})
	if rapid.Bool().Draw(rt, "discard") {
		require.NoError(rt, m.c.Discard(context.Background(), nil, x.id))
		m.parked = append(m.parked[:i], m.parked[i+1:]...)
	}
}

// save writes a file and loads it in the place of the sequence.
func (m *machine) save(rt *rapid.T) {
	i := m.pick(rt)
	x := &m.talks[i]
	state := m.state(x.s)
	var w bytes.Buffer
	if !m.allowed(rt, x.s.Save(context.Background(), &w)) {
		require.Equal(rt, state, m.state(x.s))
		return
	}
	require.NoError(rt, x.s.Close())
	s, err := m.load(w.Bytes())
	if !m.allowed(rt, err) {
		m.talks = append(m.talks[:i], m.talks[i+1:]...)
		return
	}
	require.Equal(rt, state, m.state(s))
	x.s = s
}
