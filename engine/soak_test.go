// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

var soakFor = flag.Duration("soak", 0, "how long TestSoak runs; 0: two seconds")

// crashing is a Disk on a machine of which the file system fails and that stops and starts again.
type crashing struct {
	*store.Disk // of before, for List and Stats
	mu          sync.Mutex
	f           *storetest.Folder
	rng         *rand.Rand
	crashes     int
}

func (c *crashing) open() (err error) {
	c.Disk, err = store.OpenDisk("", store.DiskOptions{FileBytes: 1 << 20, MaxBytes: 24 << 20, FS: c.f})
	return err
}

// do makes a call, during which something may go wrong.
func (c *crashing) do(call func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.rng.IntN(60) {
	case 0:
		c.f.Set(storetest.Plan{Crash: c.rng.Int64N(100000)})
	case 1:
		c.f.Set(storetest.Plan{Crash: -1, Fail: 1 + c.rng.IntN(8), Err: syscall.EIO})
	case 2:
		c.f.Set(storetest.Plan{Crash: -1, Fail: 1 + c.rng.IntN(8), Err: syscall.ENOSPC, Short: true})
	}
	err := call()
	if c.f.Crashed() {
		c.crashes++
		c.f.Restart(c.rng)
		if e := c.open(); e != nil {
			return e
		}
		if err == nil {
			err = storetest.ErrInjected
		}
	}
	return err
}

func (c *crashing) Put(ctx context.Context, k store.Key, data []byte, expires time.Time) error {
	return c.do(func() error { return c.Disk.Put(ctx, k, data, expires) })
}

func (c *crashing) Get(ctx context.Context, k store.Key) (p []byte, err error) {
	err = c.do(func() (err error) { p, err = c.Disk.Get(ctx, k); return err })
	return p, err
}

func (c *crashing) Delete(ctx context.Context, k store.Key) error {
	return c.do(func() error { return c.Disk.Delete(ctx, k) })
}

// soak is what the workers of TestSoak share.
type soak struct {
	*rig
	world  sync.RWMutex // held for writing where nothing else may go on
	counts [12]atomic.Int64
	failed atomic.Bool
}

// worker has some of the conversations.
type worker struct {
	*soak
	rng    *rand.Rand
	talks  []talk
	parked []parkedTalk
}

// TestSoak has 64 conversations appended to, forked, cut, parked, resumed, saved, loaded and read under
// pressure by 8 goroutines, while calls of the store fail and its machine crashes. No row is ever a wrong one,
// what was parked comes back bit by bit, the budget is kept and nothing leaks.
func TestSoak(t *testing.T) {
	length := *soakFor
	if length == 0 {
		if length = 2 * time.Second; testing.Short() {
			length = 500 * time.Millisecond
		}
	}
	c := &crashing{f: storetest.NewFolder(), rng: rand.New(rand.NewPCG(1, 1))}
	require.NoError(t, c.open())
	faulty := storetest.NewFaulty(c, 1, 0.02)
	cfg := testConfig()
	cfg.Budget, cfg.Store, cfg.LayerWindow = 2400<<10, faulty, []int{0, 150}
	s := &soak{rig: newRig(t, testGeometry(), cfg)}
	end := time.Now().Add(length)
	// On a slow machine a short run may be over before the first fault: then it goes on until there is one.
	on := func() bool {
		return time.Now().Before(end) || faulty.Faults() == 0 && time.Now().Before(end.Add(time.Minute))
	}
	before := runtime.NumGoroutine()
	var wait sync.WaitGroup
	for i := range 8 {
		w := &worker{soak: s, rng: rand.New(rand.NewPCG(2, uint64(i)))}
		wait.Add(1)
		go func() {
			defer wait.Done()
			for on() && !s.failed.Load() {
				if err := w.turn(); err != nil {
					s.failed.Store(true)
					t.Errorf("worker %d: %v", i, err)
				}
			}
			for _, x := range w.talks {
				if err := w.verify(x); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wait.Wait()
	s.audit()
	st := s.c.Stats()
	var names = []string{"steps", "batches", "forks", "cuts", "closed", "parked", "resumed", "saved", "recalled", "read", "refused",
		"store errors"}
	for i := range names {
		t.Log(s.counts[i].Load(), names[i])
	}
	t.Log(c.crashes, "crashes,", faulty.Faults(), "other faults,", st.Units, "units,", st.Dropped, "blocks dropped,", st.Skipped,
		"records skipped, peak", st.PeakBytes, "of", st.BudgetBytes)
	require.NotZero(t, faulty.Faults())
	s.closeAll()
	require.LessOrEqual(t, runtime.NumGoroutine(), before+2) // the backend's workers
}

// Errors that a full cache and a broken store may give.
func (w *worker) fine(err error) error {
	for _, ok := range []error{quant.ErrFull} {
		if errors.Is(err, ok) {
			w.counts[10].Add(1)
			return nil
		}
	}
	for _, ok := range []error{storetest.ErrInjected, quant.ErrCorrupt, quant.ErrVersion, quant.ErrUnsupported, syscall.EIO, syscall.ENOSPC} {
		if errors.Is(err, ok) {
			w.counts[11].Add(1)
			return nil
		}
	}
	return err
}

// turn does one thing with one conversation.
func (w *worker) turn() error {
	n := w.rng.IntN(100)
	exclusive := n >= 66 && n < 76 && w.rng.IntN(2) == 0
	if exclusive {
		w.world.Lock()
		defer w.world.Unlock()
	} else {
		w.world.RLock()
		defer w.world.RUnlock()
	}
	if len(w.talks) < 8 && (len(w.talks) < 2 || w.rng.IntN(6) == 0) {
		return w.begin()
	}
	i := w.rng.IntN(len(w.talks))
	x := w.talks[i]
	ctx := context.Background()
	switch {
	case n < 40:
		w.counts[0].Add(1)
		return w.add([]talk{x}, 1+w.rng.IntN(40))
	case n < 50:
		w.counts[1].Add(1)
		return w.add(w.talks, 1)
	case n < 54 && len(w.talks) < 8:
		w.counts[2].Add(1)
		f, err := x.s.Fork()
		if err == nil {
			w.talks = append(w.talks, talk{f, x.text})
		}
		return w.fine(err)
	case n < 58:
		w.counts[3].Add(1)
		return w.fine(x.s.Truncate(w.rng.Int64N(x.s.Len() + 1)))
	case n < 60:
		w.counts[4].Add(1)
		w.talks = append(w.talks[:i], w.talks[i+1:]...)
		return x.s.Close()
	case n < 66:
		return w.park(i)
	case n < 76 && len(w.parked) > 0 && len(w.talks) < 8:
		return w.resume(w.rng.IntN(len(w.parked)), exclusive)
	case n < 80:
		w.counts[7].Add(1)
		var b bytes.Buffer
		if err := x.s.Save(ctx, &b); err != nil {
			return w.fine(err)
		}
		if err := x.s.Close(); err != nil {
			return err
		}
		w.talks = append(w.talks[:i], w.talks[i+1:]...)
		s, err := w.load(b.Bytes())
		if err != nil {
			return w.fine(err)
		}
		w.talks = append(w.talks, talk{s, x.text})
		return w.verify(talk{s, x.text})
	case n < 82:
		return w.fine(x.s.Demote(0.2))
	}
	w.counts[9].Add(1)
	w.c.Stats()
	if _, err := x.s.Explain(0, 1); err != nil {
		return err
	}
	return w.verify(x)
}

// begin begins a conversation with one of a few prompts that all workers have.
func (w *worker) begin() error {
	w.counts[8].Add(1)
	text := uint64(1 + w.rng.IntN(5))
	s, err := w.c.RecallPrefix(context.Background(), nil, ids(text, 0, 900))
	if err != nil {
		return w.fine(err)
	}
	w.talks = append(w.talks, talk{s, text})
	return w.verify(talk{s, text})
}

// add adds tokens to conversations and keeps most of them.
func (w *worker) add(talks []talk, n int) error {
	rows := make([]Row, len(talks))
	for i, x := range talks {
		lo := x.s.Len()
		rows[i] = Row{x.s, n, ids(x.text, lo, lo+int64(n))}
	}
	st, err := w.c.Begin(context.Background(), rows)
	if err != nil {
		return w.fine(err)
	}
	for l := range w.geo.Layers {
		var k, v, q []float32
		for _, x := range talks {
			a, b, c := w.tokens(x.text, x.s.n, x.s.n+int64(n), l)
			k, v, q = append(k, a...), append(v, b...), append(q, c...)
		}
		if err := st.Append(l, k, v); err != nil {
			return err
		}
		if err := st.Attend(l, q, make([]float32, len(q)/w.geo.HeadDim*w.geo.HeadDimV)); err != nil {
			return err
		}
	}
	keep := n
	if n <= w.c.cfg.Window {
		keep -= w.rng.IntN(3)
	}
	if keep <= 0 {
		return st.Rollback()
	}
	return st.Commit(keep)
}

func (w *worker) locked(s *Sequence) []byte {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	return w.state(s)
}

func (w *worker) park(i int) error {
	w.counts[5].Add(1)
	x := w.talks[i]
	if err := x.s.Pin(true); err != nil {
		return err
	}
	state := w.locked(x.s)
	id, err := x.s.Park(context.Background(), nil, time.Now().Add(time.Hour))
	if err != nil {
		if !bytes.Equal(state, w.locked(x.s)) {
			return fmt.Errorf("a sequence that could not be parked has changed: %w", err)
		}
		return errors.Join(w.fine(err), x.s.Pin(false))
	}
	w.parked = append(w.parked, parkedTalk{id, x.text, state})
	w.talks = append(w.talks[:i], w.talks[i+1:]...)
	return nil
}

// resume brings a conversation back. Where nothing else goes on it must be what it was.
func (w *worker) resume(i int, exclusive bool) error {
	w.counts[6].Add(1)
	x := w.parked[i]
	s, err := w.c.Resume(context.Background(), nil, x.id)
	if err != nil {
		if w.rng.IntN(4) == 0 { // the user gives up
			w.parked = append(w.parked[:i], w.parked[i+1:]...)
			return errors.Join(w.fine(err), w.gone(w.c.Discard(context.Background(), nil, x.id)))
		}
		return w.gone(w.fine(err))
	}
	if exclusive && !bytes.Equal(x.state, w.locked(s)) {
		return errors.New("a resumed sequence is not what it was")
	}
	w.parked = append(w.parked[:i], w.parked[i+1:]...)
	w.talks = append(w.talks, talk{s, x.text})
	return errors.Join(w.verify(talk{s, x.text}), w.gone(w.c.Discard(context.Background(), nil, x.id)))
}

// gone accepts that a call of the store failed.
func (w *worker) gone(err error) error {
	if err == nil {
		return nil
	}
	return w.fine(err)
}

// verify requires that every row of K that a conversation holds is that of its token. A cut decodes rows, so
// that exact ones may have been coded before; but the row of another token is twice its energy away.
func (w *worker) verify(x talk) error {
	c, g := w.c, w.geo
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, seg := range x.s.segs {
		for i := range seg.blocks {
			b, head, page := &seg.blocks[i], i/seg.pages, i%seg.pages
			rows := rowsOf(seg, b, page, x.s.n)
			if rows == 0 {
				continue
			}
			at := c.side(b, sideK, rows)
			p, pos, mean := make([]byte, at.Data.Len), make([]byte, 2*rows), make([]byte, frame.MeanBytes(g.HeadDim))
			err := at.Data.Buf.Download(at.Data.Off, p)
			if b.pos != 0 {
				y := c.arena.at(b.pos, int64(len(pos)))
				err = errors.Join(err, y.Buf.Download(y.Off, pos))
			}
			y := quant.Rows{Dim: g.HeadDim, Data: make([]float32, rows*g.HeadDim)}
			err = errors.Join(err, quant.Decode(y, at.Coding, p, c.cfg.Seed))
			if b.centered() {
				z := c.arena.at(seg.mean[head], int64(len(mean)))
				err = errors.Join(err, z.Buf.Download(z.Off, mean), frame.Uncenter(y, y, mean, nil))
			}
			if err != nil {
				return err
			}
			var sum float64
			for r := range rows {
				var e, n float64
				t := seg.lo + int64(page*seg.per+r)
				if b.pos != 0 {
					t = seg.lo + int64(binary.LittleEndian.Uint16(pos[2*r:]))
				}
				want := values(g.KVHeads*g.HeadDim, 3*x.text, uint64(t), head/g.KVHeads)[head%g.KVHeads*g.HeadDim:][:g.HeadDim]
				for d, v := range want {
					got := y.Data[r*g.HeadDim+d]
					e, n = e+float64((got-v)*(got-v)), n+float64(v*v)
				}
				if sum += e / n; b.rung[sideK] == f16 && e > n {
					return fmt.Errorf("sequence %d, token %d: an exact row of relative error %v", x.s.id, t, e/n)
				}
			}
			if sum > 0.8*float64(rows) {
				return fmt.Errorf("sequence %d, tokens from %d, %v: relative error %v", x.s.id, seg.lo, b.rung, sum/float64(rows))
			}
		}
	}
	return nil
}
