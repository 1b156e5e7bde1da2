// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/quant"
)

// conversation is what the cache holds of one, running or idle.
type conversation struct {
	id     string
	salt   []byte
	seq    *engine.Sequence
	tokens []int32 // that the cache holds
	busy   bool    // an answer is under way
	pinned bool
	loose  bool // it is pinned, but pressure may take from it: nothing else was left; see loosen
	faded  bool // it has given up bytes since it was last used
	lost   bool // seq was closed: parking has failed half-way
	// published are how many first tokens the store may have been given of it.
	published int
	used      time.Time
	seen      history
}

func newConversation(salt []byte, seq *engine.Sequence, tokens []int32) *conversation {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return &conversation{id: hex.EncodeToString(id[:]), salt: slices.Clone(salt), seq: seq,
		tokens: slices.Clone(tokens), used: time.Now()}
}

// rest makes a conversation idle, or drops it.
func (r *Runner) rest(c *conversation, q Request) error {
	c.busy, c.faded, c.used = false, false, time.Now()
	if q.Forget {
		err := erase(r, c)
		if e := (*StillSharedError)(nil); errors.As(err, &e) { // the answer is as good, and the store is asked again
			r.log.Warn("kvist: forget a conversation", "error", e)
			return nil
		}
		return err
	}
	if r.o.Idle == 0 && !q.Save || len(c.tokens) == 0 || r.broken != nil {
		return c.seq.Close()
	}
	publish(r, c)
	if err := c.seq.Rest(); err != nil { // its window may fade as well
		return errors.Join(err, c.seq.Close())
	}
	if q.Fade > 0 {
		if err := c.seq.Demote(q.Fade); err != nil {
			return errors.Join(err, c.seq.Close())
		}
		c.faded = true
		r.counts.Faded++
	}
	if err := c.look(r.m); err != nil {
		return errors.Join(err, c.seq.Close())
	}
	if q.Save {
		err := r.shelf.park(c)
		if err == nil {
			return nil
		}
		if !c.lost {
			r.idle = append(r.idle, c) // it is still there, but not saved
		}
		return err
	}
	r.idle = append(r.idle, c)
	var err error
	for len(r.idle) > r.o.Idle { // more than one: parked ones came back to be looked at
		first := r.idle[0]
		r.idle = slices.Delete(r.idle, 0, 1)
		err = errors.Join(err, r.put(first))
	}
	return err
}

// put parks a conversation, or closes it where there is no folder. One that cannot be parked is closed too.
func (r *Runner) put(c *conversation) error {
	if r.shelf == nil {
		return c.seq.Close()
	}
	if err := r.shelf.park(c); err != nil {
		return errors.Join(err, c.seq.Close())
	}
	return nil
}

// tendIdle takes from the conversations that were idle for long, and parks those that were for longer.
func (r *Runner) tendIdle(now time.Time) {
	retryUnpublish(r, now)
	if r.shelf != nil {
		if err := r.shelf.tidy(); err != nil {
			r.log.Warn("kvist: forget a parked conversation", "error", err)
		}
	}
	for r.shelf != nil && r.o.ParkAfter > 0 {
		i := slices.IndexFunc(r.idle, func(c *conversation) bool { return !c.pinned && now.Sub(c.used) >= r.o.ParkAfter })
		if i < 0 {
			break
		}
		c := r.idle[i]
		r.idle = slices.Delete(r.idle, i, i+1)
		if err := r.put(c); err != nil {
			r.log.Warn("kvist: park a conversation", "error", err)
		}
	}
	if r.o.FadeAfter == 0 || r.o.Fade == 0 {
		return
	}
	for _, c := range r.idle {
		if c.faded || c.pinned || now.Sub(c.used) < r.o.FadeAfter {
			continue
		}
		c.faded = true
		if err := c.seq.Demote(r.o.Fade); err != nil {
			r.log.Warn("kvist: fade an idle conversation", "error", err)
			continue
		}
		r.counts.Faded++
		if err := c.look(r.m); err != nil {
			r.log.Warn("kvist: look at a conversation", "error", err)
		}
	}
}

// tend keeps a conversation within a budget of its own and notes what is left of its tokens, now and then.
func (r *Runner) tend(c *conversation, budget int64) error {
	if len(c.tokens) < c.seen.due {
		return nil
	}
	if c.pinned && !c.loose && r.pinnedBytes(false) > r.o.Cache.Budget/2 { // it grew since it was let in
		if err := release(r, c); err != nil {
			return err
		}
	}
	if have := c.seq.Bytes(); budget > 0 && have > budget {
		if err := c.seq.Demote(1 - float64(budget)/float64(have)); err != nil {
			return err
		}
	}
	c.seen.due = len(c.tokens) + max(lookEvery, len(c.tokens)/16)
	return c.look(r.m)
}

// find returns the conversation of a salt with an id. A parked one is brought back.
func (r *Runner) find(salt []byte, id string) (*conversation, error) {
	for c := range r.all {
		if c.id == id && string(c.salt) == string(salt) {
			return c, nil
		}
	}
	if r.shelf != nil {
		if n := r.shelf.find(salt, id); n != nil {
			if c, err := r.resume(n); c != nil || err != nil {
				return c, err
			}
		}
	}
	return nil, fmt.Errorf("kvist/runner: no conversation %q: %w", id, quant.ErrClosed)
}

// all goes through the conversations, those with answers under way first.
func (r *Runner) all(yield func(*conversation) bool) {
	for _, t := range r.running {
		if !yield(t.conv) {
			return
		}
	}
	for i := len(r.idle) - 1; i >= 0; i-- {
		if !yield(r.idle[i]) {
			return
		}
	}
}

// Summary tells of a conversation what a list of them shows.
type Summary struct {
	ID     string
	Tokens int
	Bytes  int64 // that its rows take, shared ones included
	Exact  int64 // what they would take in binary16
	Busy   bool  // an answer is under way
	Pinned bool
	Parked bool // it is in the folder, not in memory: Bytes are what it took in memory
	Used   time.Time
	First  []int32 // its first tokens, up to 64
}

// Conversations lists the conversations of a salt: answers under way first, then those used last.
//
// Errors: quant.ErrClosed; that of ctx.
func (r *Runner) Conversations(ctx context.Context, salt []byte) (list []Summary, err error) {
	err = r.do(ctx, func() {
		for c := range r.all {
			if string(c.salt) == string(salt) {
				list = append(list, r.summary(c))
			}
		}
		if r.shelf == nil {
			return
		}
		for i := len(r.shelf.notes) - 1; i >= 0; i-- {
			n := r.shelf.notes[i]
			here := slices.ContainsFunc(list, func(s Summary) bool { return s.ID == n.ID })
			if string(n.Salt) == string(salt) && !here {
				list = append(list, Summary{ID: n.ID, Tokens: len(n.Tokens), Bytes: n.Bytes, Parked: true, Used: n.Parked,
					Exact: ExactBytes(r.m, len(n.Tokens)), First: slices.Clone(n.Tokens[:min(64, len(n.Tokens))])})
			}
		}
	})
	return list, err
}

func (r *Runner) summary(c *conversation) Summary {
	return Summary{ID: c.id, Tokens: len(c.tokens), Bytes: c.seq.Bytes(), Exact: ExactBytes(r.m, len(c.tokens)),
		Busy: c.busy, Pinned: c.pinned, Used: c.used, First: slices.Clone(c.tokens[:min(64, len(c.tokens))])}
}

// Description tells what is kept of a conversation.
type Description struct {
	Summary
	All     []int32            // its tokens
	Kept    []engine.TokenInfo // of each
	Fading  []Fading           // of each
	Moments []Moment           // over its life
	Held    int64              // bytes of the whole cache
	Budget  int64              // of the whole cache
}

// Describe tells what is kept of a conversation, token by token.
//
// Errors: quant.ErrClosed if there is no such conversation under the salt; that of ctx; those of the backend.
func (r *Runner) Describe(ctx context.Context, salt []byte, id string) (d Description, err error) {
	e := r.do(ctx, func() {
		var c *conversation
		if c, err = r.find(salt, id); err != nil {
			return
		}
		if err = c.look(r.m); err != nil {
			return
		}
		s := r.cache.Stats()
		d = Description{Summary: r.summary(c), All: slices.Clone(c.tokens), Kept: slices.Clone(c.seen.info),
			Fading: slices.Clone(c.seen.fading), Moments: slices.Clone(c.seen.moments), Held: s.HeldBytes,
			Budget: s.BudgetBytes}
	})
	if e != nil {
		err = e
	}
	return d, err
}

// Forget drops an idle conversation, or a parked one. Nothing of it is left in memory, in the index of prefixes and
// in the folder, where its bytes are overwritten, but for what other conversations share. Of what it has published the
// store keeps first tokens that other conversations of this runner have under the salt.
//
// Errors: *StillSharedError if it is gone but for the store; quant.ErrClosed if there is none under the salt;
// quant.ErrFull while an answer is under way; that of ctx; those of the backend.
func (r *Runner) Forget(ctx context.Context, salt []byte, id string) (err error) {
	parked := false
	e := r.do(ctx, func() {
		for c := range r.all {
			if c.id == id {
				return
			}
		}
		if r.shelf == nil {
			return
		}
		if n := r.shelf.find(salt, id); n != nil {
			parked = true
			err = errors.Join(r.shelf.drop(id), unpublish(r, n.Salt, n.Tokens, n.Published))
			_, e := r.cache.ForgetPrefix(n.Salt, n.Tokens)
			err = errors.Join(err, e)
		}
	})
	if e != nil || parked {
		return errors.Join(e, err)
	}
	return r.change(ctx, salt, id, func(c *conversation) error {
		r.idle = slices.DeleteFunc(r.idle, func(x *conversation) bool { return x == c })
		return erase(r, c)
	})
}

// Fade makes an idle conversation give up a share of the bytes of its rows, those first that cost least.
//
// Errors: as Forget; quant.ErrShape for a share outside [0, 1].
func (r *Runner) Fade(ctx context.Context, salt []byte, id string, share float64) error {
	return r.change(ctx, salt, id, func(c *conversation) error {
		if err := c.seq.Demote(share); err != nil {
			return err
		}
		c.faded = true
		r.counts.Faded++
		return c.look(r.m)
	})
}

// Pin keeps the rows of an idle conversation as they are, or no longer.
//
// Errors: as Forget.
func (r *Runner) Pin(ctx context.Context, salt []byte, id string, on bool) error {
	return r.change(ctx, salt, id, func(c *conversation) error {
		if on && !c.pinned && r.pinnedBytes(true) > r.o.Cache.Budget/2 {
			return errPins
		}
		c.pinned, c.loose = on, false
		return c.seq.Pin(on)
	})
}

func (r *Runner) change(ctx context.Context, salt []byte, id string, f func(*conversation) error) (err error) {
	e := r.do(ctx, func() {
		var c *conversation
		if c, err = r.find(salt, id); err != nil {
			return
		}
		if c.busy {
			err = fmt.Errorf("kvist/runner: an answer of conversation %s is under way: %w", id, quant.ErrFull)
			return
		}
		err = f(c)
	})
	if e != nil {
		return e
	}
	return err
}

// Park moves an idle conversation to the folder. A later prompt, or a call that asks for it, brings it back.
//
// Errors: as Forget; quant.ErrUnsupported without a folder; those of the folder.
func (r *Runner) Park(ctx context.Context, salt []byte, id string) error {
	if r.shelf == nil {
		return fmt.Errorf("kvist/runner: no folder to park conversations in: %w", quant.ErrUnsupported)
	}
	return r.change(ctx, salt, id, func(c *conversation) error {
		err := r.shelf.park(c)
		if err == nil || c.lost {
			r.idle = slices.DeleteFunc(r.idle, func(x *conversation) bool { return x == c })
		}
		return err
	})
}

// Save writes the rows of an idle conversation as a .kvist file, exactly as they are; see engine.Sequence.Save. It
// returns the tokens, which are not in the file.
//
// Errors: as Forget; those of w.
func (r *Runner) Save(ctx context.Context, salt []byte, id string, w io.Writer) (tokens []int32, err error) {
	err = r.change(ctx, salt, id, func(c *conversation) error {
		tokens = slices.Clone(c.tokens)
		return c.seq.Save(ctx, w)
	})
	return tokens, err
}

// Load makes a conversation of what Save wrote and returns its id.
//
// Errors: quant.ErrShape if there are not so many tokens in the file; those of engine.Cache.Load; that of ctx.
func (r *Runner) Load(ctx context.Context, salt []byte, tokens []int32, file io.ReaderAt, size int64) (id string, err error) {
	e := r.do(ctx, func() {
		var seq *engine.Sequence
		seq, err = r.room(func() (*engine.Sequence, error) { return r.cache.Load(ctx, file, size) })
		if err != nil {
			return
		}
		if seq.Len() != int64(len(tokens)) {
			err = errors.Join(shapef("%d tokens, the file has rows of %d", len(tokens), seq.Len()), seq.Close())
			return
		}
		c := newConversation(salt, seq, tokens)
		id, err = c.id, errors.Join(own(r, c), r.rest(c, Request{}))
	})
	return id, errors.Join(e, err)
}
