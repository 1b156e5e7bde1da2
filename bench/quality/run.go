// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// Run is a text that went through the model: its context, as methods see it, and the exact
// continuation. Continuations over compressed contexts are compared with the exact one.
type Run struct {
	Name    string
	Context *methods.Context

	m      *model.Model
	seen   *layered // the context as methods compress it
	o      Options
	tokens []int32 // context and continuation
	ref    *reference
}

// NewRun runs a text through the model.
//
// Errors: quant.ErrShape for a text that is too short; those of the model.
func NewRun(ctx context.Context, m *model.Model, in Input, o Options) (*Run, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	n := o.Context + o.Next
	if len(in.Tokens) < n {
		return nil, shapef("run "+in.Name, "%d tokens, want %d of context and %d after",
			len(in.Tokens), o.Context, o.Next)
	}
	r := &Run{Name: in.Name, m: m, o: o, tokens: in.Tokens[:n:n]}
	c, kv, err := Prefill(ctx, m, r.tokens[:o.Context], o.Surprisal)
	if err != nil {
		return nil, err
	}
	if r.seen, err = newLayered(m, c, o.Context); err != nil {
		return nil, err
	}
	r.Context, r.ref = c, newReference(m.Vocab, r.tokens[o.Context:])
	return r, r.next(kv, r.ref.add)
}

// Prefill runs a context through the model. It returns the context as methods see it, with its
// surprisal if asked to, and its exact cache.
//
// Errors: those of the model.
func Prefill(ctx context.Context, m *model.Model, tokens []int32, surprisal bool) (
	*methods.Context, *model.ExactKV, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	kv, err := m.NewKV(model.KVOptions{})
	if err != nil {
		return nil, nil, err
	}
	c := newCollector(m.Geometry(), len(tokens))
	fo := model.ForwardOptions{Logits: model.LogitsNone, Observer: c.observe}
	var nats []float32
	if surprisal {
		nats = make([]float32, len(tokens))
		fo.Logits, fo.To = model.LogitsRange, len(tokens)-1
		fo.OnLogits = func(i int, logits []float32) error {
			nats[i+1] = float32(model.Surprisal(logits, tokens[i+1]))
			return ctx.Err()
		}
	}
	if _, err := m.Forward(tokens, kv, 0, fo); err != nil {
		return nil, nil, err
	}
	out := c.context(tokens, len(tokens))
	out.Surprisal = nats
	return out, kv, nil
}

// First returns the run of the same context with a continuation of at most n tokens.
func (r *Run) First(n int) *Run {
	x, ref := *r, *r.ref
	n = min(n, len(ref.lse))
	x.tokens = r.tokens[:r.o.Context+n]
	ref.lse, ref.top, ref.next = ref.lse[:n], ref.top[:n], ref.next[:n]
	x.ref = &ref
	return &x
}

// PerLayer returns the context with how each layer attends in its geometry, as a methods.PerLayer gets it.
func (r *Run) PerLayer() *methods.Context {
	if r.seen.perLayer == nil {
		return r.Context
	}
	c := *r.seen.perLayer
	c.Memo = r.Context.Memo
	return &c
}

// Measure compresses the context with a method and scores the continuation over the result.
//
// Errors: those of the method and of Score.
func (r *Run) Measure(ctx context.Context, method methods.Method) (Score, error) {
	x := *r.seen
	x.whole = r.Context // a caller may have given it a memo
	left, err := x.compress(ctx, method)
	if err != nil {
		return Score{}, err
	}
	return r.Score(left)
}

// Score scores the continuation over a cache that replaces the context.
//
// Errors: quant.ErrShape for a cache of another shape; quant.ErrRange for logits that are not
// finite; those of the model.
func (r *Run) Score(left *methods.Cache) (Score, error) {
	kv, err := filled(r.m, left, len(r.Context.Tokens))
	if err != nil {
		return Score{}, err
	}
	s := scorer{ref: r.ref}
	if err := r.next(kv, s.add); err != nil {
		return Score{}, err
	}
	score, err := s.score()
	return r.sized(score, left.Bytes, seen(r.m, 0, r.o.Context, r.o.Context)), err
}

// next runs the continuation over a cache that holds the context.
func (r *Run) next(kv model.KVStore, on func(int, []float32) error) error {
	_, err := r.m.Forward(r.tokens[r.o.Context:], kv, r.o.Context,
		model.ForwardOptions{Logits: model.LogitsAll, OnLogits: on})
	return err
}

// exact scores the reference against itself.
func (r *Run) exact() (Score, error) {
	s := scorer{ref: r.ref}
	for i := range r.ref.lse {
		if err := s.add(i, r.ref.logits[i*r.ref.vocab:(i+1)*r.ref.vocab]); err != nil {
			return Score{}, err
		}
	}
	score, err := s.score()
	values := seen(r.m, 0, r.o.Context, r.o.Context)
	return r.sized(score, 4*values, values), err
}

// sized adds the bytes of a cache to a score. values are those that later queries see.
func (r *Run) sized(s Score, bytes, values int64) Score {
	s.Bytes = bytes
	s.BitsPerValue = quant.BitsPerValue(bytes, values)
	return s
}

// Compressed compresses a context with a method. It returns a cache of the model with the result, and
// the bytes that the method stored.
//
// Errors: quant.ErrShape for a cache of another shape; those of the method and of the model.
func Compressed(ctx context.Context, m *model.Model, c *methods.Context, method methods.Method) (
	*model.ExactKV, int64, error) {
	x, err := newLayered(m, c, len(c.Tokens))
	if err != nil {
		return nil, 0, err
	}
	return x.compressed(ctx, m, method)
}

// compressed is Compressed of a context that was split before.
func (x *layered) compressed(ctx context.Context, m *model.Model, method methods.Method) (
	*model.ExactKV, int64, error) {
	left, err := x.compress(ctx, method)
	if err != nil {
		return nil, 0, err
	}
	kv, err := filled(m, left, len(x.whole.Tokens))
	if err != nil {
		return nil, 0, err
	}
	return kv, left.Bytes, nil
}

// filled returns a cache of the model with the rows of a method's cache of n tokens.
func filled(m *model.Model, left *methods.Cache, n int) (*model.ExactKV, error) {
	kv, err := m.NewKV(model.KVOptions{})
	if err != nil {
		return nil, err
	}
	return kv, fill(kv, left, n)
}
