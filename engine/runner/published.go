// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kvist-project/kvist/quant"
)

// What runners share in Options.Store, and how it goes again.

// publishedFor is how long what is published is found.
const publishedFor = 24 * time.Hour

// Of first tokens that the store did not give up when it was asked: how often it is asked again, and how many such
// texts are remembered.
const (
	unpublishEvery = time.Minute
	mostUnpublish  = 1024
)

// StillSharedError says that a conversation is deleted, but that the store did not give up its first tokens. The runner
// asks it again every minute; what it has not given up when the runner ends expires.
type StillSharedError struct {
	Until time.Time // when they have expired
	Err   error
}

// Error says what is left, until when, and why.
func (e *StillSharedError) Error() string {
	return fmt.Sprintf("kvist/runner: the conversation is deleted, but the store has its first tokens, until %s or until it answers: %v",
		e.Until.UTC().Format(time.RFC3339), e.Err)
}

// Unwrap returns the cause.
func (e *StillSharedError) Unwrap() error { return e.Err }

// sharedText is what a deleted conversation has published.
type sharedText struct {
	salt   []byte
	tokens []int32
	until  time.Time
}

// publish puts the first tokens of a conversation into the store. Who asks for an answer has it already: what fails is
// told to the log.
func publish(r *Runner, c *conversation) {
	if r.o.Store == nil {
		return
	}
	c.published = len(c.tokens) // also if it fails half-way
	err := c.seq.Publish(r.ctx, c.salt, time.Now().Add(publishedFor))
	switch {
	case errors.Is(err, quant.ErrFull): // no memory to move it in, or no room in the store: the next answer may find some
		r.log.Info("kvist: no room to publish the first tokens of a conversation", "tokens", len(c.tokens), "error", err)
	case err != nil:
		r.log.Warn("kvist: publish the first tokens of a conversation", "tokens", len(c.tokens), "error", err)
	}
}

// erase closes a conversation and removes what is left of it: in the index of prefixes, in the folder and in
// the store, but for what others share.
func erase(r *Runner, c *conversation) error {
	err := c.seq.Close()
	if r.shelf != nil {
		err = errors.Join(err, r.shelf.drop(c.id))
	}
	err = errors.Join(err, unpublish(r, c.salt, c.tokens, c.published)) // while the index knows it
	if r.broken == nil {
		_, e := r.cache.ForgetPrefix(c.salt, c.tokens)
		err = errors.Join(err, e)
	}
	return err
}

// unpublish removes from the store what a conversation that is gone has published, but for first tokens of others that
// this runner has under the salt.
//
// Errors: *StillSharedError.
func unpublish(r *Runner, salt []byte, tokens []int32, published int) error {
	if r.o.Store == nil || published == 0 || r.broken != nil {
		return nil
	}
	x := sharedText{slices.Clone(salt), slices.Clone(tokens[:published]), time.Now().Add(publishedFor)}
	err := r.cache.Unpublish(r.ctx, x.salt, x.tokens, heldByOthers(r, x))
	if err == nil {
		return nil
	}
	if r.unshared = append(r.unshared, x); len(r.unshared) > mostUnpublish {
		r.unshared = r.unshared[1:]
	}
	return &StillSharedError{x.until, err}
}

// retryUnpublish asks the store again for what it did not give up.
func retryUnpublish(r *Runner, now time.Time) {
	if len(r.unshared) == 0 || now.Before(r.unpublishAt) || r.broken != nil {
		return
	}
	x := r.unshared[0]
	if x.until.After(now) {
		if err := r.cache.Unpublish(r.ctx, x.salt, x.tokens, heldByOthers(r, x)); err != nil {
			r.unpublishAt = now.Add(unpublishEvery)
			r.log.Warn("kvist: the store still has first tokens of a deleted conversation", "tokens", len(x.tokens), "error", err)
			return
		}
	}
	r.unshared = r.unshared[1:]
}

// heldByOthers returns how many first tokens conversations and requests under the same salt have as well.
func heldByOthers(r *Runner, x sharedText) (n int) {
	look := func(salt []byte, tokens []int32) {
		if string(salt) == string(x.salt) {
			n = max(n, common(tokens, x.tokens))
		}
	}
	for _, c := range r.idle {
		look(c.salt, c.tokens)
	}
	for _, t := range slices.Concat(r.running, r.queue) {
		if !t.q.Forget { // it leaves nothing there itself
			look(t.q.Salt, t.tokens)
		}
	}
	if r.shelf != nil {
		for _, y := range r.shelf.notes {
			look(y.Salt, y.Tokens)
		}
	}
	return n
}

// common returns how many first tokens two texts have in common.
func common(a, b []int32) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
