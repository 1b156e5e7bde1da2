// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/quant"
)

// task is a request that is not finished.
type task struct {
	ctx     context.Context
	q       Request
	box     mailbox
	sample  *sampler
	tokens  []int32       // the prompt and the answer so far
	most    int           // tokens of the answer
	conv    *conversation // nil while it waits
	cached  int           // tokens of the prompt that were computed before it was first admitted
	begun   bool
	pinned  bool // it has pinned its conversation, which was not before
	came    time.Time
	started time.Time
	first   time.Time
}

func newTask(ctx context.Context, q Request, context int) *task {
	t := &task{ctx: ctx, q: q, sample: newSampler(q.Sampling), tokens: slices.Clone(q.Tokens),
		most: context - len(q.Tokens), came: time.Now()}
	if q.MaxTokens > 0 {
		t.most = min(t.most, q.MaxTokens)
	}
	t.box.more = sync.NewCond(&t.box.mu)
	return t
}

// answer returns the number of tokens of the answer so far.
func (t *task) answer() int { return len(t.tokens) - len(t.q.Tokens) }

// pending returns the tokens that are still to be run.
func (t *task) pending() []int32 { return t.tokens[len(t.conv.tokens):] }

func (t *task) result() Result {
	res := Result{Prompt: len(t.q.Tokens), Cached: t.cached, Answer: t.answer(), Total: time.Since(t.came)}
	if t.begun {
		res.Queued = t.started.Sub(t.came)
	}
	if !t.first.IsZero() {
		res.First = t.first.Sub(t.came)
	}
	if t.conv != nil && !t.q.Forget {
		res.Conversation = t.conv.id
	}
	return res
}

func (r *Runner) enqueue(t *task) error {
	switch {
	case r.broken != nil:
		return r.broken
	case len(r.queue) >= r.o.Waiting:
		r.counts.Refused++
		return fmt.Errorf("kvist/runner: %d requests wait already: %w", len(r.queue), quant.ErrFull)
	}
	r.queue = append(r.queue, t)
	return nil
}

// cull ends the tasks whose callers have gone.
func (r *Runner) cull() {
	for _, list := range [][]*task{slices.Clone(r.queue), slices.Clone(r.running)} {
		for _, t := range list {
			if t.ctx.Err() != nil {
				r.end(t, "", t.ctx.Err())
			}
		}
	}
}

// end finishes a task. Its conversation becomes idle.
func (r *Runner) end(t *task, finish string, err error) {
	is := func(x *task) bool { return x == t }
	r.queue, r.running = slices.DeleteFunc(r.queue, is), slices.DeleteFunc(r.running, is)
	res := t.result()
	res.Finish = finish
	switch {
	case err == nil:
		r.counts.Finished[finish]++
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		r.counts.Finished["cancelled"]++
	default:
		r.counts.Finished["failed"]++
	}
	if t.conv != nil {
		if t.pinned && errors.Is(err, quant.ErrFull) { // what did not fit must not keep others out
			t.conv.pinned = false
			err = errors.Join(err, t.conv.seq.Pin(false))
		}
		if e := r.rest(t.conv, t.q); err == nil {
			err = e
		}
		if r.o.Idle == 0 && !t.q.Save {
			res.Conversation = "" // it was not kept
		}
		t.conv = nil
	}
	r.limit = min(r.limit+1, r.most)
	t.box.finish(res, err)
}

// admit moves requests from the queue to the next step, as far as there is room.
func (r *Runner) admit() {
	for len(r.queue) > 0 && len(r.running) < r.limit && r.broken == nil {
		t := r.queue[0]
		if t.q.Pin && !r.goesOnPinned(t) && r.pinnedBytes(true) > r.o.Cache.Budget/2 {
			r.end(t, "", errPins)
			continue
		}
		conv, err := r.attach(t)
		switch {
		case errors.Is(err, quant.ErrFull) && len(r.running) > 0:
			return // one of them will end
		case err != nil:
			r.end(t, "", err)
			continue
		}
		r.queue = r.queue[1:]
		t.conv = conv
		if !t.begun {
			t.begun, t.started, t.cached = true, time.Now(), len(conv.tokens)
			r.counts.PromptTokens += uint64(len(t.q.Tokens))
			r.counts.CachedTokens += uint64(t.cached)
		}
		r.running = append(r.running, t)
	}
}

// attach returns a conversation that holds as many of the first tokens of a task as can be found: an idle one
// that the task goes on with, a copy of one that it shares a beginning with, or what the index of prefixes
// has.
func (r *Runner) attach(t *task) (*conversation, error) {
	if err := r.wake(t); err != nil {
		return nil, err
	}
	best, same := r.longest(t)
	if best != nil && same == len(best.tokens) {
		r.idle = slices.DeleteFunc(r.idle, func(c *conversation) bool { return c == best })
		return best, r.prepare(best, t)
	}
	seq, err := r.room(func() (*engine.Sequence, error) { return r.match(t) })
	if err != nil {
		return nil, err
	}
	if best != nil && int64(same) >= seq.Len()+copyGain && slices.Contains(r.idle, best) {
		if fork, err := r.branch(best, same); err == nil {
			seq, fork = fork, seq
			if err := fork.Close(); err != nil {
				return nil, err
			}
		}
	}
	conv := newConversation(t.q.Salt, seq, t.tokens[:seq.Len()])
	if err := own(r, conv); err != nil {
		return nil, errors.Join(err, seq.Close())
	}
	return conv, r.prepare(conv, t)
}

// match returns a sequence with the first tokens of a task that the index of prefixes has, or the store.
func (r *Runner) match(t *task) (*engine.Sequence, error) {
	if r.o.Store == nil {
		return r.cache.MatchPrefix(t.q.Salt, t.tokens)
	}
	return r.cache.RecallPrefix(t.ctx, t.q.Salt, t.tokens)
}

// copyGain is the number of tokens that make the copy of a conversation worth its memory.
const copyGain = 16

// branch returns a copy of the first tokens of a conversation.
func (r *Runner) branch(from *conversation, tokens int) (*engine.Sequence, error) {
	fork, err := from.seq.Fork()
	if err != nil {
		return nil, err
	}
	if err := fork.Truncate(int64(tokens)); err != nil {
		return nil, errors.Join(err, fork.Close())
	}
	return fork, nil
}

// longest returns the idle conversation that shares most first tokens with a task, and how many. One token is
// left to run.
func (r *Runner) longest(t *task) (best *conversation, same int) {
	for i := len(r.idle) - 1; i >= 0; i-- {
		c := r.idle[i]
		if string(c.salt) != string(t.q.Salt) {
			continue
		}
		if n := shared(c.tokens, t.tokens); n > same {
			best, same = c, n
		}
	}
	return best, same
}

// wake brings back the parked conversation of which a task has most tokens, if no idle one has more.
func (r *Runner) wake(t *task) error {
	if r.shelf == nil {
		return nil
	}
	for {
		n, same := r.shelf.longest(t.q.Salt, t.tokens)
		if _, have := r.longest(t); n == nil || same < max(copyGain, have+1) {
			return nil
		}
		c, err := r.resume(n)
		if errors.Is(err, quant.ErrFull) && len(r.running) == 0 { // nobody will make room: the prompt is computed
			r.log.Info("kvist: no memory to bring a conversation back", "tokens", len(n.Tokens))
			return nil
		}
		if c != nil || err != nil {
			return err
		} // it is not on the shelf any more: another one may be
	}
}

// resume brings a parked conversation back among the idle ones, under its id unless that is here already: a
// conversation stays parked as it was while it goes on. One that is damaged or gone is dropped. One that cannot
// be read, as that of a cache of other settings, is left in the folder for who can.
func (r *Runner) resume(n *note) (c *conversation, err error) {
	r.parkFor(len(n.Tokens) + pageTokens)
	for {
		c, err = r.shelf.resume(n)
		if err == nil || !errors.Is(err, quant.ErrFull) || !r.dropIdle() && (len(r.running) > 0 || !loosen(r)) {
			break
		}
	}
	switch {
	case errors.Is(err, quant.ErrFull):
		return nil, err
	case errors.Is(err, quant.ErrCorrupt), errors.Is(err, fs.ErrNotExist):
		r.log.Warn("kvist: a parked conversation is damaged", "error", errors.Join(err, r.shelf.drop(n.ID)))
		return nil, nil
	case err != nil:
		r.log.Warn("kvist: a parked conversation cannot be read and stays in the folder", "error", err)
		r.shelf.take(n.ID)
		return nil, nil
	}
	here := false
	for x := range r.all {
		here = here || x.id == n.ID
	}
	if !here {
		c.id = n.ID
	}
	if err := own(r, c); err != nil {
		return nil, errors.Join(err, c.seq.Close())
	}
	if n.Pinned && r.pinnedBytes(true)+c.seq.Bytes() <= r.o.Cache.Budget/2 {
		c.pinned = true
		if err := c.seq.Pin(true); err != nil {
			return nil, errors.Join(err, c.seq.Close())
		}
	}
	r.counts.Resumed++
	r.idle = append(r.idle, c)
	if err := c.seq.Rest(); err != nil {
		return c, err
	}
	return c, c.look(r.m)
}

// room calls f until there is memory for it, and parks or closes idle conversations in between.
func (r *Runner) room(f func() (*engine.Sequence, error)) (*engine.Sequence, error) {
	for {
		s, err := f()
		if err == nil || !errors.Is(err, quant.ErrFull) || !r.dropIdle() && (len(r.running) > 0 || !loosen(r)) {
			return s, err
		}
	}
}

// dropIdle parks or closes the conversation that was unused for longest, of the user that holds most where users
// share the cache; not one that is pinned.
func (r *Runner) dropIdle() bool {
	i := -1
	if r.o.Tenants > 0 {
		held, most := heldByUser(r), int64(-1)
		for j, c := range r.idle {
			if n := held[userOf(r, c)]; !c.pinned && n > most {
				i, most = j, n
			}
		}
	} else {
		i = slices.IndexFunc(r.idle, func(c *conversation) bool { return !c.pinned })
	}
	if i < 0 {
		return false
	}
	c := r.idle[i]
	r.idle = slices.Delete(r.idle, i, i+1)
	r.counts.Closed++
	r.log.Info("kvist: an idle conversation goes for want of memory", "tokens", len(c.tokens))
	if err := r.put(c); err != nil {
		r.log.Warn("kvist: close conversation", "error", err)
	}
	return true
}

// errPins refuses a pin: pins must leave room for others.
var errPins = fmt.Errorf("kvist/runner: pinned conversations hold half of the budget already: %w", quant.ErrFull)

// goesOnPinned reports whether a task goes on with a conversation that is pinned already.
func (r *Runner) goesOnPinned(t *task) bool {
	c, same := r.longest(t)
	return c != nil && c.pinned && same == len(c.tokens)
}

// pinnedBytes returns what the pinned conversations take, with or without those that pressure may take from.
func (r *Runner) pinnedBytes(loose bool) (n int64) {
	for c := range r.all {
		if c.pinned && (loose || !c.loose) {
			n += c.seq.Bytes()
		}
	}
	return n
}

// prepare sets up a conversation for a task.
func (r *Runner) prepare(c *conversation, t *task) error {
	c.busy = true
	if c.pinned != t.q.Pin || c.loose {
		if err := c.seq.Pin(t.q.Pin); err != nil {
			return err
		}
		c.pinned, c.loose, t.pinned = t.q.Pin, false, t.q.Pin
	}
	return nil
}
