// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// Cache holds the K and V of many sequences within a budget of bytes. Its methods and those of its
// sequences may be called from many goroutines at once; a sequence takes one step at a time.
type Cache struct {
	memory

	// mu is held for reading while rows are written and attended to, and for writing while memory is
	// taken, freed or recoded.
	mu       sync.RWMutex
	seqs     []*Sequence
	nextID   uint64
	steps    []*step // unused ones
	start    [sides]rung
	pressure pressure
	index    index
	stats    Stats
	floors   int64 // of all tenants
	closed   bool
	err      error // a failure of the backend that left the cache in an unknown state
}

// fixedBytes is what an empty cache is taken to hold beside its budgeted parts.
const fixedBytes = int64(unsafe.Sizeof(Cache{})+unsafe.Sizeof(arena{})) + 4096

// Open returns an empty cache of a geometry on a backend, which must outlive it. K is expected with
// RoPE applied.
//
// Errors: quant.ErrShape for a geometry or a setting that makes no sense, with every problem named;
// quant.ErrUnsupported for rows that the backend cannot code; quant.ErrBudget for a budget that does
// not hold one sequence of a window of tokens.
func Open(be backend.Backend, g quant.Geometry, cfg Config) (*Cache, error) {
	const call = "open"
	if be == nil {
		return nil, fail(call, 0, "no backend: %w", quant.ErrShape)
	}
	if err := g.Validate(); err != nil {
		return nil, wrap(call, 0, err)
	}
	cfg = cfg.withDefaults(g)
	if err := cfg.validate(g, be); err != nil {
		return nil, wrap(call, 0, err)
	}
	cfg.Sinks = max(cfg.Sinks, 0)
	c := &Cache{memory: memory{be: be, geo: g, cfg: cfg, sizes: newSizes(g, cfg.Sinks),
		stride: cfg.Window / cfg.KeptQueries, led: ledger{budget: cfg.Budget}}, start: [sides]rung{f16, f16}}
	c.pressure.c = c
	run, slabRuns := c.runSize()
	if need := fixedBytes + run; !c.led.take(forScratch, need) {
		return nil, fail(call, 0, "budget %d, an empty cache takes %d: %w", cfg.Budget, need, quant.ErrBudget)
	}
	c.arena = newArena(be, &c.led, run, slabRuns, c.sizes.classes)
	c.arena.tmp = make([]byte, run)
	heads := g.Layers * g.KVHeads
	if !c.led.take(forScratch, int64(g.Layers)*tableOverhead) {
		return nil, fail(call, 0, "budget %d: %w", cfg.Budget, quant.ErrBudget)
	}
	var err error
	if c.tables, err = newTables(be, &c.led, g, c.segPages()); err != nil {
		return nil, wrap(call, 0, errors.Join(err, c.tables.close()))
	}
	floats := int64(8 * 4 * pageTokens * max(g.HeadDim, g.HeadDimV))
	if need := c.least(); !c.led.take(forScratch, int64(3*8*heads)+floats+c.centeringBytes()+c.blankBytes()) || cfg.Budget < need {
		err := fail(call, 0, "budget %d, one sequence of a window of %d tokens takes up to %d: %w",
			cfg.Budget, cfg.Window, need, quant.ErrBudget)
		return nil, errors.Join(err, c.tables.close())
	}
	w := &c.pressure
	w.center, c.blank = c.newCentering(), make([]byte, c.blankBytes())
	if w.floats, err = be.Alloc(floats); err != nil {
		return nil, wrap(call, 0, errors.Join(err, c.tables.close()))
	}
	w.factor, w.out = slices.Repeat([]float64{1}, sides*heads), slices.Repeat([]float64{1}, heads)
	return c, nil
}

// runSize chooses the bytes of a run, and the runs of a slab. A class wastes half a run on average, so
// runs are a small part of the budget; every run holds a few of the largest slots.
func (c *Cache) runSize() (run int64, runs int) {
	var largest int64
	for _, n := range c.sizes.classes {
		largest = max(largest, n)
	}
	run = 16 << 10
	for run < 256<<10 && run < c.cfg.Budget/4096 {
		run *= 2
	}
	for run < 4*largest {
		run *= 2
	}
	return run, int(min(max(c.cfg.Budget/64/run, 4), 16<<20/run+1))
}

// least returns the bytes that an empty cache with one sequence of a window of tokens may take.
func (c *Cache) least() int64 {
	g := c.geo
	heads := int64(g.Layers * g.KVHeads)
	pages := int64(c.cfg.Window/pageTokens) + 1
	rows := heads * pages * (c.sizes.bytes(sideK, f16) + c.sizes.bytes(sideV, f16))
	return fixedBytes + c.arena.runBytes*int64(1+reserveRuns+len(c.sizes.classes)) + rows +
		2*c.segmentSize(c.segPages()) + 2*c.tables.bytes(c.roomSize(c.segPages())) + c.keptBytes(c.cfg.KeptQueries) +
		int64(c.geo.Layers)*tableOverhead
}

// Close frees everything. Steps and sequences that are still open fail from then on with
// quant.ErrClosed. Closing again does nothing.
//
// Errors: those of the backend.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if c.cfg.Events != nil {
		c.cfg.Events(Event{Kind: Cleared, Where: InMemory})
	}
	err := errors.Join(c.tables.close(), c.arena.close())
	if e := c.pressure.floats.Free(); err == nil {
		err = e
	}
	for _, q := range c.seqs {
		if q.step != nil {
			c.steps = append(c.steps, q.step)
		}
	}
	for _, s := range c.steps {
		if e := s.shed(); err == nil { // of a step of many sequences once more, which does nothing
			err = e
		}
	}
	for _, w := range c.closings {
		if e := w.table.close(); err == nil {
			err = e
		}
	}
	c.seqs, c.steps, c.closings = nil, nil, nil
	return wrap("close", 0, err)
}

// usable reports why no call can work.
func (c *Cache) usable(call string) error {
	switch {
	case c.closed:
		return closed(call, 0, "cache")
	case c.err != nil:
		return fail(call, 0, "an earlier failure left the cache unusable: %w", c.err)
	}
	return nil
}

// broken remembers a failure in the middle of a change of memory. The cache then refuses every call
// but Close: it does not know which rows are intact.
func (c *Cache) broken(err error) error {
	if err != nil && c.err == nil {
		c.err = err
	}
	return err
}

// NewSequence returns an empty sequence.
//
// Errors: quant.ErrFull if the budget does not hold its kept queries; quant.ErrClosed.
func (c *Cache) NewSequence() (*Sequence, error) {
	const call = "new sequence"
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(call); err != nil {
		return nil, err
	}
	s, err := c.newSequence()
	return s, wrap(call, 0, err)
}

func (c *Cache) newSequence() (*Sequence, error) {
	n := sequenceBytes + c.keptBytes(c.cfg.KeptQueries)
	if err := c.pressure.makeRoom(context.Background(), nil, n); err != nil {
		return nil, err
	}
	if !c.led.take(forQueries, n) {
		return nil, errNoRoom
	}
	c.nextID++
	s := &Sequence{c: c, id: c.nextID, used: c.stats.Steps, kept: c.newKept(c.cfg.KeptQueries)}
	c.seqs = append(c.seqs, s)
	return s, nil
}

// refuse counts and logs a refusal.
func (c *Cache) refuse(call string, seq uint64, err error) {
	c.stats.Refusals++
	if c.cfg.Logger != nil {
		c.cfg.Logger.Warn("kvist: "+call+" refused", "sequence", seq, "error", err, "held", c.led.held,
			"budget", c.led.budget)
	}
}

// Resume returns a sequence that was parked, as it was: it goes on as if it had never been away, but for what
// Config.Archiver has lost of its rows. What is parked stays so, until Discard or its expiry. Nothing appears unless all of it is read and verified.
//
// Errors: fs.ErrNotExist if nothing is parked there; *store.ForeignError for another salt, model, profile,
// geometry, version or archiver; quant.ErrCorrupt for damage; quant.ErrFull if the budget does not hold it;
// quant.ErrUnsupported without a Config.Store; quant.ErrClosed; those of the store and the backend.
func (c *Cache) Resume(ctx context.Context, salt []byte, id store.Key) (*Sequence, error) {
	m, err := newMover(ctx, c, "resume", 0, salt)
	if err != nil {
		return nil, err
	}
	s, err := m.resume(id)
	return s, wrap("resume", 0, err)
}

// Discard deletes what was parked. Segments that others share stay in the store until they expire; see Erase.
//
// Errors: as Resume. If a call to the store fails, Discard can be called again.
func (c *Cache) Discard(ctx context.Context, salt []byte, id store.Key) error {
	m, err := newMover(ctx, c, "discard", 0, salt)
	if err != nil {
		return err
	}
	return wrap("discard", 0, m.discard(id))
}

// Images returns the names of the images in the store that a parked sequence may share with others: what Erase
// asks about.
//
// Errors: as Resume.
func (c *Cache) Images(ctx context.Context, salt []byte, id store.Key) ([]store.Key, error) {
	const call = "images"
	m, err := newMover(ctx, c, call, 0, salt)
	if err != nil {
		return nil, err
	}
	names, err := m.images(id)
	return names, wrap(call, 0, m.end(nil, nil, err))
}

// Erase is Discard for what must be gone: it also deletes the images that others could have shared, and the marks
// that RecallPrefix finds them by. Images that keep names stay: other parked sequences need them. A
// store.Scrubber overwrites the bytes when it is told to. What memory holds is left as it is; see ForgetPrefix.
//
// Errors: as Resume. If a call to the store fails, Erase can be called again.
func (c *Cache) Erase(ctx context.Context, salt []byte, id store.Key, keep func(image store.Key) bool) error {
	const call = "erase"
	m, err := newMover(ctx, c, call, 0, salt)
	if err != nil {
		return err
	}
	return wrap(call, 0, m.end(nil, nil, m.erase(id, keep)))
}

// RecallPrefix is MatchPrefix that also asks the store for what memory does not have: first tokens of
// sequences that were parked under the salt, by any cache of the same settings. A record that is damaged or
// foreign is skipped, logged and counted (Stats.Skipped); the match ends before it.
//
// Errors: those of MatchPrefix; quant.ErrUnsupported without a Config.Store.
func (c *Cache) RecallPrefix(ctx context.Context, salt []byte, tokens []int32) (*Sequence, error) {
	m, err := newSharer(ctx, c, "recall prefix", 0, salt)
	if err != nil {
		return nil, err
	}
	s, err := m.recall(tokens)
	return s, wrap("recall prefix", 0, err)
}

// Unpublish deletes from the store that prefixes are shared in what the salt has published of a text behind its first
// kept tokens, whichever cache has put it: the images of segments that end behind them, and what RecallPrefix finds
// them by. Others under the salt that hold these tokens keep them, and find them no more until they are published
// again. What memory holds is left as it is; see ForgetPrefix.
//
// Errors: quant.ErrUnsupported without a store; quant.ErrClosed; those of the store. Unpublish can be called again
// then, as marks go last.
func (c *Cache) Unpublish(ctx context.Context, salt []byte, tokens []int32, kept int) error {
	const call = "unpublish"
	m, err := newSharer(ctx, c, call, 0, salt)
	if err != nil {
		return err
	}
	return wrap(call, 0, m.end(nil, nil, m.unpublish(tokens, int64(kept))))
}

// Load returns the sequence of a file that Save wrote, in any process with a cache of the same settings. It
// goes on as if it had never been away. All of the file is verified before any of it is taken over, and
// nothing appears unless all of it can be.
//
// Errors: *container.CorruptError and quant.ErrCorrupt for damage; fs.ErrNotExist for a file that holds no
// sequence; *store.ForeignError for another geometry, model, profile or version; quant.ErrFull if the budget
// does not hold it; quant.ErrClosed; those of r and the backend.
func (c *Cache) Load(ctx context.Context, r io.ReaderAt, size int64) (*Sequence, error) {
	s, err := newLoader(ctx, c, "load", 0).load(r, size)
	return s, wrap("load", 0, err)
}

// ExpirePrefixes frees the shared prefixes that nobody has used for so long and that no sequence holds, and
// returns how many segments these were. Without it they stay until their memory is wanted. What is parked
// expires by itself.
//
// Errors: quant.ErrClosed; those of the backend.
func (c *Cache) ExpirePrefixes(unused time.Duration) (n int, err error) {
	const call = "expire prefixes"
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(call); err != nil {
		return 0, err
	}
	before := time.Now().Add(-unused)
	for done := false; !done; { // from the ends of the chains
		done = true
		for at := len(c.index.nodes) - 1; at >= 0; at-- {
			x := c.index.nodes[at]
			if x.children > 0 || x.seg.refs > 1 || x.at.After(before) {
				continue
			}
			if err := c.index.unlist(c, at); err != nil {
				return n, wrap(call, 0, c.broken(err))
			}
			n, done = n+1, false
		}
	}
	return n, nil
}

// NewTenant returns a tenant with a floor in bytes of rows. Tenants live as long as the cache.
//
// Errors: quant.ErrBudget if all floors together are more than half of the budget: the rest is for windows,
// which pressure cannot take, and for those above their floors; quant.ErrShape for a floor below 0;
// quant.ErrClosed.
func (c *Cache) NewTenant(floor int64) (*Tenant, error) {
	const call = "new tenant"
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(call); err != nil {
		return nil, err
	}
	if floor < 0 {
		return nil, fail(call, 0, "floor %d: %w", floor, quant.ErrShape)
	}
	if sum := c.floors + floor; sum > c.cfg.Budget/2 {
		return nil, fail(call, 0, "floors of %d bytes together, the budget is %d: %w", sum, c.cfg.Budget, quant.ErrBudget)
	}
	c.floors += floor
	return &Tenant{c: c, floor: floor}, nil
}

// ForgetPrefix frees the shared prefixes of a text that no sequence holds and that no other text begins with, and
// returns how many segments these were. Without it they stay until their memory is wanted.
//
// Errors: quant.ErrClosed; those of the backend.
func (c *Cache) ForgetPrefix(salt []byte, tokens []int32) (n int, err error) {
	const call = "forget prefix"
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(call); err != nil {
		return 0, err
	}
	n, err = forgetPrefix(c, salt, tokens)
	return n, wrap(call, 0, c.broken(err))
}
