// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// Runner answers requests with one model and one cache.
type Runner struct {
	m     *model.Model
	cache *engine.Cache
	o     Options
	log   *slog.Logger
	shelf *shelf      // nil: conversations are not parked
	calls chan func() // what others ask of the loop
	ctx   context.Context
	stop  context.CancelFunc
	done  chan struct{} // closed when the loop has ended

	closing sync.Once
	closed  error // of Close

	// Of the loop alone.
	queue   []*task
	running []*task
	idle    []*conversation // the longest unused first
	most    int             // answers in a step, by the options and by what the windows take
	limit   int             // answers in a step that memory allows now
	broken  error           // the cache can no longer be used
	counts  Counts
	tenants map[string]*engine.Tenant // by user
	// unshared is what the store did not give up; unpublishAt is when it is asked again.
	unshared    []sharedText
	unpublishAt time.Time
}

// New opens a cache for a model on a backend and starts to run. The backend must outlive the runner.
//
// Errors: quant.ErrShape for options outside their ranges; quant.ErrUnsupported for a model that
// engine.Cache cannot serve; those of engine.Open.
func New(m *model.Model, be backend.Backend, o Options) (*Runner, error) {
	o = o.withDefaults(m)
	if err := o.validate(m); err != nil {
		return nil, fmt.Errorf("kvist/runner: options: %w", err)
	}
	cfg, err := cacheConfig(m, o)
	if err != nil {
		return nil, err
	}
	floor := exactFloor(m, cfg.Window)
	if cfg.Budget < floor {
		return nil, fmt.Errorf("kvist/runner: budget of %d bytes, one conversation takes up to %d while a window of %d tokens is exact: %w",
			cfg.Budget, floor, cfg.Window, quant.ErrBudget)
	}
	most := int(min(int64(o.Running), cfg.Budget/floor))
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var s *shelf
	cfg.Shared = o.Store
	if o.Folder != "" {
		if s, err = openShelf(o.Folder, cfg.Model, o.FolderBytes, log); err != nil {
			return nil, err
		}
		cfg.Store = s.disk
	}
	c, err := engine.Open(be, m.Geometry(), cfg)
	if err != nil {
		if s != nil {
			err = errors.Join(err, s.disk.Close())
		}
		return nil, err
	}
	if s != nil {
		s.cache = c
		if err := s.tidy(); err != nil {
			return nil, errors.Join(err, c.Close(), s.disk.Close())
		}
	}
	r := &Runner{m: m, cache: c, o: o, log: log, shelf: s, calls: make(chan func()), done: make(chan struct{}),
		limit: most, most: most}
	r.counts.Finished, r.tenants = map[string]uint64{}, map[string]*engine.Tenant{}
	r.ctx, r.stop = context.WithCancel(context.Background())
	go r.loop()
	return r, nil
}

// Close ends the answers that are under way with quant.ErrClosed, parks the conversations where there is a folder
// for them, and frees the cache. Closing again does nothing.
//
// Errors: those of the folder and the backend.
func (r *Runner) Close() error {
	r.stop()
	<-r.done
	r.closing.Do(func() {
		if r.shelf != nil && r.broken == nil {
			for _, c := range r.idle {
				r.closed = errors.Join(r.closed, r.shelf.park(c))
			}
		}
		r.closed = errors.Join(r.closed, r.cache.Close())
		if r.shelf != nil {
			r.closed = errors.Join(r.closed, r.shelf.disk.Close())
		}
	})
	return r.closed
}

// Model returns the model.
func (r *Runner) Model() *model.Model { return r.m }

// Context returns the most tokens of a conversation.
func (r *Runner) Context() int { return r.o.Context }

// Finish says why an answer ended.
const (
	FinishStop   = "stop"   // a token that ends an answer, or emit returned ErrStop
	FinishLength = "length" // MaxTokens, or the end of the context
)

// ErrStop is what emit returns when it has seen enough.
var ErrStop = errors.New("kvist/runner: enough of the answer")

// Result is what became of a request.
type Result struct {
	Finish       string
	Conversation string // its id; "" if it was not kept
	Prompt       int    // tokens
	Cached       int    // of them, those that were computed before
	Answer       int    // tokens
	Queued       time.Duration
	First        time.Duration // from the call to the first token
	Total        time.Duration
}

// Generate answers a request and returns when the answer is complete. It calls emit with each token as it
// comes, on the goroutine of the caller; tokens wait if emit is slow. An error of emit ends the answer: ErrStop as
// if the model had ended it. ctx ends it as well. What was computed so far is kept.
//
// Errors: see the package comment; those of ctx and emit; those of the backend.
func (r *Runner) Generate(ctx context.Context, q Request, emit func(Token) error) (Result, error) {
	if err := q.check(r.m, r.o.Context, r.shelf != nil); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := newTask(ctx, q, r.o.Context)
	var err error
	if e := r.do(ctx, func() { err = r.enqueue(t) }); e != nil {
		return Result{}, e
	}
	if err != nil {
		return Result{}, err
	}
	for {
		tokens, end := t.box.take()
		for _, tok := range tokens {
			if err == nil {
				if err = emit(tok); err != nil {
					cancel()
				}
			}
		}
		if !end {
			continue
		}
		res := t.box.result
		if err == nil {
			err = t.box.err
		}
		if errors.Is(err, ErrStop) {
			res.Finish, err = FinishStop, nil
		}
		return res, err
	}
}

// mailbox carries the tokens of one answer from the loop to its caller.
type mailbox struct {
	mu     sync.Mutex
	more   *sync.Cond
	tokens []Token
	end    bool
	result Result
	err    error
}

// take waits for tokens, or for the end.
func (b *mailbox) take() (tokens []Token, end bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.tokens) == 0 && !b.end {
		b.more.Wait()
	}
	tokens, b.tokens = b.tokens, nil
	return tokens, b.end
}

func (b *mailbox) put(t Token) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = append(b.tokens, t)
	b.more.Signal()
}

func (b *mailbox) finish(res Result, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end, b.result, b.err = true, res, err
	b.more.Signal()
}

// do runs f on the loop, between two steps.
func (r *Runner) do(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	select {
	case r.calls <- func() { defer close(ran); f() }:
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return errClosed
	}
	<-ran
	return nil
}

var errClosed = fmt.Errorf("kvist/runner: the runner was closed: %w", quant.ErrClosed)

// loop runs until Close.
func (r *Runner) loop() {
	defer close(r.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for r.ctx.Err() == nil {
		r.cull()
		r.admit()
		if len(r.running) > 0 {
			r.listen(tick.C)
			r.cull()
			r.step()
			continue
		}
		select {
		case f := <-r.calls:
			f()
		case <-tick.C:
			r.tendIdle(time.Now())
		case <-r.ctx.Done():
		}
	}
	for _, t := range append(r.queue, r.running...) {
		t.box.finish(t.result(), errClosed)
		if t.conv == nil {
			continue
		}
		if t.q.Forget && r.shelf != nil {
			if err := r.shelf.drop(t.conv.id); err != nil {
				r.log.Warn("kvist: forget a conversation", "error", err)
			}
		}
		if !t.q.Forget { // what it has is worth keeping
			r.idle = append(r.idle, t.conv)
		}
	}
}

// callsPerStep bounds the calls that are served between two steps, so that many of them do not stop answers.
const callsPerStep = 16

// listen serves the calls that wait.
func (r *Runner) listen(tick <-chan time.Time) {
	for range callsPerStep {
		select {
		case f := <-r.calls:
			f()
		case <-tick:
			r.tendIdle(time.Now())
		default:
			return
		}
	}
}

// Health returns nil if the runner can answer.
//
// Errors: quant.ErrClosed; that of ctx; a failure that left the cache unusable.
func (r *Runner) Health(ctx context.Context) (err error) {
	e := r.do(ctx, func() { err = r.broken })
	return errors.Join(e, err)
}

// Counts count what a runner did since New.
type Counts struct {
	Running, Waiting, Idle int // now
	Steps                  uint64
	PromptTokens           uint64 // of requests that were admitted
	CachedTokens           uint64 // of them, those that were computed before
	AnswerTokens           uint64
	Finished               map[string]uint64 // requests by why they ended: FinishStop, FinishLength, "cancelled", "failed"
	Preempted              uint64            // answers put back into the queue for want of memory
	Closed                 uint64            // idle conversations closed, or parked, for want of memory
	Resumed                uint64            // parked conversations brought back
	Parked                 int               // conversations in the folder, now
	Faded                  uint64            // idle conversations that gave up bytes
	Loosened               uint64            // pinned conversations that pressure may take from, because nothing else was left
	Refused                uint64            // requests that found the queue full
}

// Stats returns the state of the runner and of its cache. It waits for the step under way and looks at every
// block: call it a few times a second at most.
//
// Errors: quant.ErrClosed; that of ctx; a failure that left the cache unusable.
func (r *Runner) Stats(ctx context.Context) (c Counts, s engine.Stats, err error) {
	e := r.do(ctx, func() {
		c, s, err = r.counts, r.cache.Stats(), r.broken
		c.Running, c.Waiting, c.Idle = len(r.running), len(r.queue), len(r.idle)
		if r.shelf != nil {
			c.Parked = len(r.shelf.notes)
		}
		c.Finished = make(map[string]uint64, len(r.counts.Finished))
		for k, v := range r.counts.Finished {
			c.Finished[k] = v
		}
	})
	return c, s, errors.Join(e, err)
}
