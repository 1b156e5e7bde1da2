// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/offline"
	"github.com/kvist-project/kvist/quant"
)

// Options say how methods are measured. The zero value is the standard measurement.
type Options struct {
	// Context is the number of tokens that are compressed. Default 1024.
	Context int
	// Next is the number of tokens that follow, on which the damage is measured. Default 256.
	Next int
	// Decode measures with errors feeding back as well (see Decoding).
	Decode bool
	// Window is the recent tokens that stay exact while decoding. Default 128.
	Window int
	// Chunk is the tokens that go through the model between two compressions while decoding.
	// Default 128.
	Chunk int
	// Progress, if set, is told what was done, of how much. The unit is a continuation.
	Progress func(stage string, done, total int64)
}

func (o *Options) defaults() error {
	for _, f := range []struct {
		name string
		v    *int
		def  int
	}{{"context", &o.Context, 1024}, {"next", &o.Next, 256}, {"window", &o.Window, 128},
		{"chunk", &o.Chunk, 128}} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < 1 || *f.v > 1<<20 {
			return shapef("options", "%s %d, want 1 to %d", f.name, *f.v, 1<<20)
		}
	}
	if o.Next < 2 {
		return shapef("options", "next %d, want 2 or more: one to run and one to predict", o.Next)
	}
	return nil
}

// Input is a text to measure on.
type Input struct {
	Name   string
	Tokens []int32 // at least Context + Next; what is beyond them is not used
}

// TextResult is one text, and what each method did to it, in the order of the methods.
type TextResult struct {
	Name     string
	Exact    Score // the run on the exact cache: KL 0, Bytes those of float32
	Prefill  []Score
	Decoding []Score // empty unless Options.Decode
}

// EvaluateText measures every method on one text: the context goes through the model once, then
// every method compresses it and the continuation is run over what is left.
//
// Errors: quant.ErrShape for a text that is too short; those of the model and of the methods.
func EvaluateText(ctx context.Context, m *model.Model, in Input, methods []Method,
	o Options) (*TextResult, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	run := &textRun{m: m, in: in, o: o, total: int64(len(methods)) + 1}
	if o.Decode {
		run.total += int64(len(methods))
	}
	return run.do(ctx, methods)
}

// textRun is the measurement of one text.
type textRun struct {
	m           *model.Model
	in          Input
	o           Options
	ref         *reference
	done, total int64
}

func (t *textRun) say() {
	t.done++
	if t.o.Progress != nil {
		t.o.Progress(t.in.Name, t.done, t.total)
	}
}

func (t *textRun) do(ctx context.Context, methods []Method) (*TextResult, error) {
	n := t.o.Context + t.o.Next
	if len(t.in.Tokens) < n {
		return nil, shapef("evaluate "+t.in.Name, "%d tokens, want %d of context and %d after",
			len(t.in.Tokens), t.o.Context, t.o.Next)
	}
	t.in.Tokens = t.in.Tokens[:n:n]
	res := &TextResult{Name: t.in.Name}
	c, kv, err := prefill(ctx, t.m, t.in.Tokens[:t.o.Context])
	if err != nil {
		return nil, err
	}
	t.ref = newReference(t.m.Vocab, t.in.Tokens[t.o.Context:])
	if err := t.next(kv, t.ref.add); err != nil {
		return nil, err
	}
	if res.Exact, err = t.exact(); err != nil {
		return nil, err
	}
	t.say()
	for _, method := range methods {
		s, err := t.prefilled(ctx, c, method)
		if err != nil {
			return nil, methodErr("evaluate "+t.in.Name, method, err)
		}
		res.Prefill = append(res.Prefill, s)
		t.say()
	}
	for _, method := range methods {
		if !t.o.Decode {
			break
		}
		s, err := t.decoded(ctx, method)
		if err != nil {
			return nil, methodErr("decode "+t.in.Name, method, err)
		}
		res.Decoding = append(res.Decoding, s)
		t.say()
	}
	return res, nil
}

// prefill runs a context through the model and returns it as methods see it, and its cache.
func prefill(ctx context.Context, m *model.Model, tokens []int32) (*Context, *model.ExactKV,
	error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	kv, err := m.NewKV(model.KVOptions{})
	if err != nil {
		return nil, nil, err
	}
	c := newCollector(m.Geometry(), len(tokens))
	fo := model.ForwardOptions{Logits: model.LogitsNone, Observer: c.observe}
	if _, err := m.Forward(tokens, kv, 0, fo); err != nil {
		return nil, nil, err
	}
	all := c.context(tokens, len(tokens))
	all.Memo = &offline.Memo{}
	return all, kv, nil
}

// next runs the continuation over a cache that holds the context.
func (t *textRun) next(kv model.KVStore, on func(int, []float32) error) error {
	tokens := t.in.Tokens[t.o.Context:]
	_, err := t.m.Forward(tokens, kv, t.o.Context,
		model.ForwardOptions{Logits: model.LogitsAll, OnLogits: on})
	return err
}

// exact scores the reference against itself.
func (t *textRun) exact() (Score, error) {
	s := scorer{ref: t.ref}
	for i := range t.ref.lse {
		if err := s.add(i, t.ref.logits[i*t.ref.vocab:(i+1)*t.ref.vocab]); err != nil {
			return Score{}, err
		}
	}
	score, err := s.score()
	return t.sized(score, 4*values(t.m.Geometry(), t.o.Context), t.o.Context), err
}

// sized adds the bytes of a cache of n tokens to a score.
func (t *textRun) sized(s Score, bytes int64, n int) Score {
	s.Bytes = bytes
	s.BitsPerValue = quant.BitsPerValue(bytes, values(t.m.Geometry(), n))
	return s
}

// prefilled measures one method with the whole context compressed at once.
func (t *textRun) prefilled(ctx context.Context, c *Context, method Method) (Score, error) {
	kv, bytes, err := compressed(ctx, t.m, c, method)
	if err != nil {
		return Score{}, err
	}
	s := scorer{ref: t.ref}
	if err := t.next(kv, s.add); err != nil {
		return Score{}, err
	}
	score, err := s.score()
	return t.sized(score, bytes, t.o.Context), err
}

// compressed returns a cache with what a method left of a context, and the bytes it took.
func compressed(ctx context.Context, m *model.Model, c *Context, method Method) (*model.ExactKV,
	int64, error) {
	left, err := compressChecked(ctx, method, c)
	if err != nil {
		return nil, 0, err
	}
	kv, err := m.NewKV(model.KVOptions{})
	if err != nil {
		return nil, 0, err
	}
	if err := fill(kv, left, len(c.Tokens)); err != nil {
		return nil, 0, err
	}
	return kv, left.Bytes, nil
}

// Evaluate measures every method on every text, one text after the other.
//
// Errors: those of EvaluateText; quant.ErrShape without texts.
func Evaluate(ctx context.Context, m *model.Model, texts []Input, methods []Method,
	o Options) (*Results, error) {
	if len(texts) == 0 {
		return nil, shapef("evaluate", "no texts")
	}
	if err := o.defaults(); err != nil {
		return nil, err
	}
	res := newResults(m, methods, o)
	per := int64(len(methods)) + 1
	if o.Decode {
		per += int64(len(methods))
	}
	say := o.Progress
	for i, in := range texts {
		if say != nil {
			o.Progress = func(_ string, done, _ int64) {
				say("texts", int64(i)*per+done, int64(len(texts))*per)
			}
		}
		t, err := EvaluateText(ctx, m, in, methods, o)
		if err != nil {
			return nil, err
		}
		res.addText(t)
		runtime.GC() // the reference's distributions are 100 MB a text
	}
	res.finish()
	return res, nil
}

// Tokenize turns a text into an input of as many tokens as the options need.
//
// Errors: those of the tokenizer; quant.ErrShape for a text that is too short.
func Tokenize(tok *model.Tokenizer, name, body string, o Options) (Input, error) {
	if err := o.defaults(); err != nil {
		return Input{}, err
	}
	tokens, err := tok.Encode(body, false)
	if err != nil {
		return Input{}, fmt.Errorf("kvist/quality: text %s: %w", name, err)
	}
	want := o.Context + o.Next
	if len(tokens) < want {
		return Input{}, shapef("text "+name, "%d tokens, want %d", len(tokens), want)
	}
	return Input{Name: name, Tokens: tokens[:want:want]}, nil
}
