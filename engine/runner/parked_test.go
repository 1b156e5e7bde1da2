// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

func parking(folder string) runner.Options {
	return runner.Options{Folder: folder, Cache: engine.Config{Budget: 700 << 10, Window: 32, Segment: 64}}
}

// What was saved goes on in another process as if it had never stopped, also when the first was killed: here it
// goes on running, and the second has a copy of its folder.
func TestSave_OutlivesTheProcess(t *testing.T) {
	m := tiny(t)
	folder, copied := t.TempDir(), t.TempDir()
	a := run(t, m, parking(folder))
	salt := []byte("mine")
	first := ask(t, m, text(900, "a long talk about many things "))
	q := runner.Request{Tokens: first, MaxTokens: 30, IgnoreEnd: true, Salt: salt, Save: true}
	ids, res := answer(t, a, q)
	require.NoError(t, os.CopyFS(copied, os.DirFS(folder)))
	require.NoError(t, os.WriteFile(filepath.Join(copied, "notes", "torn.json"), []byte(`{"id":"to`), 0o600))

	q.Tokens = append(append(append([]int32{}, first...), ids...), ask(t, m, "go on")...)
	q.Save = false
	want, resA := answer(t, a, q)
	require.Equal(t, len(first)+29, resA.Cached)
	require.Equal(t, res.Conversation, resA.Conversation)

	b := run(t, m, parking(copied))
	list, err := b.Conversations(context.Background(), salt)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.True(t, list[0].Parked)
	require.Equal(t, res.Conversation, list[0].ID)
	other := q
	other.Salt = []byte("another's")
	_, resB := answer(t, b, other)
	require.Zero(t, resB.Cached)
	got, resB := answer(t, b, q)
	require.Equal(t, resA.Cached, resB.Cached)
	require.Equal(t, want, got)
	require.NoError(t, b.Forget(context.Background(), salt, res.Conversation))
	left, err := os.ReadDir(filepath.Join(copied, "notes"))
	require.NoError(t, err)
	require.Len(t, left, 1, "only what is no note")
}

// Under pressure idle conversations are parked, not lost; Close parks the others.
func TestPark_UnderPressureAndOnClose(t *testing.T) {
	m := tiny(t)
	folder := t.TempDir()
	a := run(t, m, parking(folder))
	for i := range 8 {
		_, res := answer(t, a, runner.Request{Tokens: ask(t, m, text(700, string(rune('a'+i))+" words ")), MaxTokens: 8, IgnoreEnd: true})
		require.Zero(t, res.Cached)
	}
	require.NoError(t, a.Close())
	b := run(t, m, parking(folder))
	list, err := b.Conversations(context.Background(), nil)
	require.NoError(t, err)
	require.Len(t, list, 8)
	for i := range 8 {
		p := append(ask(t, m, text(700, string(rune('a'+i))+" words ")), 5, 6, 7)
		_, res := answer(t, b, runner.Request{Tokens: p, MaxTokens: 2, IgnoreEnd: true})
		require.Equal(t, len(p)-3, res.Cached, i)
	}
	c, _, err := b.Stats(context.Background())
	require.NoError(t, err)
	require.GreaterOrEqual(t, c.Resumed, uint64(8))
}

// Idle conversations are parked with time; a damaged one is dropped, and the prompt computed again.
func TestPark_WithTimeAndDamage(t *testing.T) {
	if testing.Short() {
		t.Skip("the other tests run the same goroutines")
	}
	m := tiny(t)
	folder := t.TempDir()
	o := parking(folder)
	o.ParkAfter = time.Millisecond
	a := run(t, m, o)
	p := ask(t, m, text(600, "to be damaged "))
	answer(t, a, runner.Request{Tokens: p, MaxTokens: 4, IgnoreEnd: true})
	require.Eventually(t, func() bool {
		c, _, err := a.Stats(context.Background())
		return err == nil && c.Parked == 1 && c.Idle == 0
	}, 10*time.Second, 20*time.Millisecond)
	require.NoError(t, a.Close())
	files, err := filepath.Glob(filepath.Join(folder, "rows", "*"))
	require.NoError(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		for i := 300; i < len(b); i += 400 {
			b[i] ^= 1
		}
		require.NoError(t, os.WriteFile(f, b, 0o600))
	}
	r := run(t, m, parking(folder))
	ids, res := answer(t, r, runner.Request{Tokens: append(p, 9), MaxTokens: 3, IgnoreEnd: true})
	require.Zero(t, res.Cached)
	require.Len(t, ids, 3)
	_, err = run(t, m, runner.Options{Cache: engine.Config{Budget: 1 << 20}}).Generate(context.Background(),
		runner.Request{Tokens: p, Save: true}, func(runner.Token) error { return nil })
	require.ErrorIs(t, err, quant.ErrUnsupported)
}

// A conversation that was written to a file goes on in another runner.
func TestSaveAndLoad_Files(t *testing.T) {
	if testing.Short() {
		t.Skip("the other tests run the same goroutines")
	}
	m := tiny(t)
	o := runner.Options{Cache: engine.Config{Budget: 1 << 20, Window: 32, Segment: 64}}
	a, b := run(t, m, o), run(t, m, o)
	ctx := context.Background()
	p := ask(t, m, text(800, "to be written "))
	ids, res := answer(t, a, runner.Request{Tokens: p, MaxTokens: 10, IgnoreEnd: true})
	var file bytes.Buffer
	tokens, err := a.Save(ctx, nil, res.Conversation, &file)
	require.NoError(t, err)
	require.Equal(t, append(append([]int32{}, p...), ids[:9]...), tokens)
	_, err = b.Load(ctx, nil, tokens[1:], bytes.NewReader(file.Bytes()), int64(file.Len()))
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = b.Load(ctx, nil, tokens, bytes.NewReader(file.Bytes()[:file.Len()/2]), int64(file.Len()/2))
	require.Error(t, err)
	id, err := b.Load(ctx, nil, tokens, bytes.NewReader(file.Bytes()), int64(file.Len()))
	require.NoError(t, err)
	more := append(append([]int32{}, tokens...), 7, 8, 9)
	want, _ := answer(t, a, runner.Request{Tokens: more, MaxTokens: 12, IgnoreEnd: true})
	got, res := answer(t, b, runner.Request{Tokens: more, MaxTokens: 12, IgnoreEnd: true})
	require.Equal(t, want, got)
	require.Equal(t, id, res.Conversation)
	require.Equal(t, len(tokens), res.Cached)
}

// A conversation that fills the cache is saved all the same.
func TestSave_FullCache(t *testing.T) {
	m := tiny(t)
	for _, budget := range []int64{330 << 10, 400 << 10, 480 << 10} {
		o := parking(t.TempDir())
		o.Cache.Budget = budget
		r := run(t, m, o)
		p := ask(t, m, text(1500, "fills all of it "))
		_, res := answer(t, r, runner.Request{Tokens: p, MaxTokens: 20, IgnoreEnd: true, Save: true})
		_, res = answer(t, r, runner.Request{Tokens: append(p, 5), MaxTokens: 20, IgnoreEnd: true, Save: true, Salt: []byte{1}})
		require.Zero(t, res.Cached)
		c, s, err := r.Stats(context.Background())
		require.NoError(t, err)
		require.Equal(t, 2, c.Parked)
		require.LessOrEqual(t, s.PeakBytes, budget)
	}
}

// halving is an archiver that keeps a byte of each value.
type halving struct{ engine.Archiver }

func (halving) Name() string                                            { return "halving" }
func (halving) Step(_ []engine.ArchiveRows, _ float64) (float64, error) { return 0, nil }
func (halving) Encode(dst []byte, r *engine.ArchiveRows, _ float64) ([]byte, error) {
	for h := range r.K {
		for _, x := range [][]float32{r.K[h], r.V[h]} {
			for _, v := range x {
				dst = append(dst, byte(quant.F32ToF16(v)>>8))
			}
		}
	}
	return dst, nil
}

func (halving) Decode(r *engine.ArchiveRows, p []byte) error {
	if len(p) != r.Values() {
		return quant.ErrCorrupt
	}
	for h := range r.K {
		for _, x := range [][]float32{r.K[h], r.V[h]} {
			for i := range x {
				x[i], p = quant.F16ToF32(uint16(p[0])<<8|0x80), p[1:]
			}
		}
	}
	return nil
}

// With an archiver idle conversations are parked before pressure takes from any, and all of them come back.
func TestPark_BeforeDetailFades(t *testing.T) {
	m := tiny(t)
	for _, with := range []bool{false, true} {
		o := parking(t.TempDir())
		o.Cache.Budget = 2 << 20
		if with {
			o.Cache.Archiver = halving{}
		}
		r := run(t, m, o)
		for i := range 8 {
			_, res := answer(t, r, runner.Request{Tokens: ask(t, m, text(700, string(rune('a'+i))+" words ")), MaxTokens: 8, IgnoreEnd: true})
			require.Zero(t, res.Cached)
		}
		for i := range 8 {
			p := append(ask(t, m, text(700, string(rune('a'+i))+" words ")), 5, 6, 7)
			_, res := answer(t, r, runner.Request{Tokens: p, MaxTokens: 2, IgnoreEnd: true})
			require.GreaterOrEqual(t, res.Cached, len(p)-3-64, i)
		}
		c, s, err := r.Stats(context.Background())
		require.NoError(t, err)
		require.Equal(t, with, c.Resumed >= 7, "%+v", c)
		require.Equal(t, with, s.Units == 0, "%d units", s.Units)
	}
}
