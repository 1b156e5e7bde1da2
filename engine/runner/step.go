// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// part is what a step does for one task.
type part struct {
	t      *task
	tokens []int32
}

// last reports whether the part brings the task to where its next token is sampled.
func (p part) last() bool { return len(p.tokens) == len(p.t.pending()) }

// smallChunk is the length of chunks below which dividing them makes no more room.
const smallChunk = 16

// plan returns the parts of the next step: one token of each answer, then chunks of prompts in the order
// in which they came.
func (r *Runner) plan() []part {
	var answers, prompts []part
	left := r.o.Chunk
	for _, t := range r.running {
		switch p := t.pending(); {
		case len(p) == 1:
			answers = append(answers, part{t, p})
		case left > 0:
			n := min(left, len(p))
			prompts = append(prompts, part{t, p[:n]})
			left -= n
		}
	}
	return append(answers, prompts...)
}

// step runs the next tokens of the tasks under way.
func (r *Runner) step() {
	parts := r.plan()
	n := 0
	for _, p := range parts {
		n += len(p.tokens) + pageTokens // a page may begin
	}
	r.parkFor(n)
	for len(parts) > 0 {
		st, err := r.begin(parts)
		if err == nil {
			r.run(st, parts)
			return
		}
		parts = r.lessen(parts, err)
	}
}

// pageTokens is how many tokens memory is taken for at once.
const pageTokens = 32

// parkFor parks idle conversations until so many tokens fit without taking detail from others, where parked ones keep
// more than those from which detail was taken.
func (r *Runner) parkFor(tokens int) {
	if r.shelf == nil || r.o.Cache.Archiver == nil {
		return
	}
	for len(r.idle) > 0 && r.cache.Spare() < ExactBytes(r.m, tokens) && r.dropIdle() {
	}
}

func (r *Runner) begin(parts []part) (engine.Step, error) {
	rows := make([]engine.Row, len(parts))
	for i, p := range parts {
		rows[i] = engine.Row{Seq: p.t.conv.seq, Tokens: len(p.tokens), IDs: p.tokens}
	}
	return r.cache.Begin(r.ctx, rows)
}

// lessen makes a step that did not fit smaller, or room for it. It returns the parts to try next.
func (r *Runner) lessen(parts []part, err error) []part {
	if r.ctx.Err() != nil {
		return nil // the loop ends everything
	}
	full := errors.Is(err, quant.ErrFull)
	if !full && !errors.Is(err, quant.ErrBudget) {
		r.endAll(parts, err)
		return nil
	}
	if full && r.dropIdle() {
		return parts
	}
	smaller := false
	for i, p := range parts {
		if n := len(p.tokens); n > smallChunk {
			parts[i].tokens, smaller = p.tokens[:max(n/2, smallChunk)], true
		}
	}
	if smaller {
		return parts
	}
	if full && loosen(r) {
		return parts
	}
	if len(r.running) > 1 {
		newest := r.running[len(r.running)-1]
		r.preempt(newest)
		return slices.DeleteFunc(parts, func(p part) bool { return p.t == newest })
	}
	r.endAll(parts, err)
	return nil
}

// preempt gives up the memory of a task and puts it back into the queue, in front.
func (r *Runner) preempt(t *task) {
	r.counts.Preempted++
	r.running = slices.DeleteFunc(r.running, func(x *task) bool { return x == t })
	r.limit = max(len(r.running), 1)
	r.log.Info("kvist: an answer waits for memory", "tokens", len(t.tokens), "running", len(r.running))
	if err := t.conv.seq.Close(); err != nil {
		r.log.Warn("kvist: close conversation", "error", err)
	}
	t.conv = nil
	r.queue = slices.Insert(r.queue, 0, t)
}

func (r *Runner) endAll(parts []part, err error) {
	for _, p := range parts {
		r.end(p.t, "", err)
	}
}

// run takes the parts of a step through the model, commits them and hands out the sampled tokens. If that
// fails, the parts run alone, so that one does not end the others.
func (r *Runner) run(st engine.Step, parts []part) {
	batch := make([]model.Part, len(parts))
	for i, p := range parts {
		batch[i] = model.Part{Tokens: p.tokens, Pos: len(p.t.conv.tokens), Logits: p.last()}
	}
	sampled := make([]*Token, len(parts))
	err := r.m.ForwardBatch(batch, st, func(i int, logits []float32) error {
		t := parts[i].t.sample.next(logits)
		sampled[i] = &t
		if math.IsNaN(t.LogProb) || math.IsInf(t.LogProb, 0) { // a token of such logits would mean nothing
			return fmt.Errorf("kvist/runner: the model gives token %d a log probability of %v: %w", t.ID, t.LogProb,
				quant.ErrRange)
		}
		return nil
	})
	if err == nil {
		if err = st.Commit(math.MaxInt); err != nil {
			r.fail(err)
			return
		}
		r.counts.Steps++
		for i, p := range parts {
			r.advance(p, sampled[i])
		}
		return
	}
	if e := st.Rollback(); e != nil {
		r.fail(errors.Join(err, e))
		return
	}
	if r.ctx.Err() != nil {
		return
	}
	for i, p := range parts {
		if sampled[i] != nil {
			p.t.sample.forget(sampled[i].ID)
		}
	}
	if len(parts) == 1 {
		r.end(parts[0].t, "", err)
		return
	}
	r.log.Warn("kvist: a step failed; its parts run alone", "error", err)
	for _, p := range parts {
		alone := []part{p}
		if st, err := r.begin(alone); r.ctx.Err() != nil {
			return
		} else if err != nil {
			r.end(p.t, "", err)
		} else {
			r.run(st, alone)
		}
	}
}

// fail ends everything: the cache is no longer usable.
func (r *Runner) fail(err error) {
	r.broken = err
	r.log.Error("kvist: the cache can no longer be used", "error", err)
	for _, t := range append(slices.Clone(r.running), r.queue...) {
		r.end(t, "", err)
	}
}

// advance notes what a step did for a task: the tokens that the cache now holds, and the next token.
func (r *Runner) advance(p part, next *Token) {
	t := p.t
	t.conv.tokens = append(t.conv.tokens, p.tokens...)
	if err := r.tend(t.conv, t.q.Budget); err != nil {
		r.fail(err)
		return
	}
	if next == nil {
		return
	}
	if t.first.IsZero() {
		t.first = time.Now()
	}
	if !t.q.IgnoreEnd && r.m.Tokenizer() != nil && r.m.Tokenizer().IsEnd(next.ID) {
		r.end(t, FinishStop, nil)
		return
	}
	r.counts.AnswerTokens++
	t.tokens = append(t.tokens, next.ID)
	t.box.put(*next)
	if t.answer() >= t.most {
		r.end(t, FinishLength, nil)
	}
}
