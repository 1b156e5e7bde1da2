// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/model"
)

// Options configure a measurement. The zero value is the standard measurement.
type Options struct {
	// Context is the number of tokens that are compressed. Default 1024.
	Context int
	// Next is the number of tokens after them, on which the damage is measured. Default 256.
	Next int
	// Decode also measures with errors feeding back (see Decoding).
	Decode bool
	// Window is the number of recent tokens that stay exact while decoding. Default 128.
	Window int
	// Chunk is the number of tokens between two compressions while decoding. Default 128.
	Chunk int
	// Surprisal computes the surprisal of the context's tokens. Only settings that use it need it.
	Surprisal bool
	// OnDecoding, if set, is called with the divergence of each position after the context while decoding.
	OnDecoding func(i int, kl float64)
	// Progress, if set, is called after each continuation.
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
	Tokens []int32 // at least Context + Next; later ones are not used
}

// TextResult holds the scores of one text, in the order of the methods.
type TextResult struct {
	Name     string
	Exact    Score // the run on the exact cache: KL 0, Bytes those of float32
	Prefill  []Score
	Decoding []Score // empty unless Options.Decode
}

// EvaluateText measures every method on one text. The context goes through the model once. Then each
// method compresses it, and the continuation runs over the result.
//
// Errors: quant.ErrShape for a text that is too short; those of the model and of the methods.
func EvaluateText(ctx context.Context, m *model.Model, in Input, list []methods.Method,
	o Options) (*TextResult, error) {
	r, err := NewRun(ctx, m, in, o)
	if err != nil {
		return nil, err
	}
	r.Context.Memo = &kvfile.Memo{}
	res := &TextResult{Name: in.Name}
	if res.Exact, err = r.exact(); err != nil {
		return nil, err
	}
	done, total := int64(0), int64(len(list))+1
	if o.Decode {
		total += int64(len(list))
	}
	say := func() {
		done++
		if o.Progress != nil {
			o.Progress(in.Name, done, total)
		}
	}
	say()
	for _, method := range list {
		s, err := r.Measure(ctx, method)
		if err != nil {
			return nil, methodErr("evaluate "+in.Name, method, err)
		}
		res.Prefill = append(res.Prefill, s)
		say()
	}
	for _, method := range list {
		if !o.Decode {
			break
		}
		s, err := r.decoded(ctx, method)
		if err != nil {
			return nil, methodErr("decode "+in.Name, method, err)
		}
		res.Decoding = append(res.Decoding, s)
		say()
	}
	return res, nil
}

// Evaluate measures every method on every text, one text after the other.
//
// Errors: those of EvaluateText; quant.ErrShape without texts.
func Evaluate(ctx context.Context, m *model.Model, texts []Input, list []methods.Method,
	o Options) (*Results, error) {
	if len(texts) == 0 {
		return nil, shapef("evaluate", "no texts")
	}
	if err := o.defaults(); err != nil {
		return nil, err
	}
	res := newResults(m, list, o)
	per := int64(len(list)) + 1
	if o.Decode {
		per += int64(len(list))
	}
	say := o.Progress
	for i, in := range texts {
		if say != nil {
			o.Progress = func(_ string, done, _ int64) {
				say("texts", int64(i)*per+done, int64(len(texts))*per)
			}
		}
		t, err := EvaluateText(ctx, m, in, list, o)
		if err != nil {
			return nil, err
		}
		res.addText(t)
		runtime.GC() // the reference's distributions are 100 MB a text
	}
	res.finish()
	return res, nil
}

// Tokenize turns a text into an input with the number of tokens that the options need.
//
// Errors: those of the tokenizer; quant.ErrShape for a text that is too short.
func Tokenize(tok *model.Tokenizer, name, body string, o Options) (Input, error) {
	if err := o.defaults(); err != nil {
		return Input{}, err
	}
	tokens, err := tok.Start(body, false)
	if err != nil {
		return Input{}, fmt.Errorf("kvist/quality: text %s: %w", name, err)
	}
	want := o.Context + o.Next
	if len(tokens) < want {
		return Input{}, shapef("text "+name, "%d tokens, want %d", len(tokens), want)
	}
	return Input{Name: name, Tokens: tokens[:want:want]}, nil
}
