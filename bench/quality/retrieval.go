// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// Question asks for one fact of a context.
type Question struct {
	Kind   string  `json:"kind"`  // "fact": a sentence in the text; "list": a line of a list in it
	Depth  float64 `json:"depth"` // position of the fact, as a share of the context's tokens
	Prompt string  `json:"prompt"`
	Answer string  `json:"answer"`
	// PromptTokens and AnswerTokens follow the context, in this order.
	PromptTokens []int32 `json:"-"`
	AnswerTokens []int32 `json:"-"`
}

// RetrievalContext is a text with facts in it, and questions about them.
type RetrievalContext struct {
	Tokens    []int32
	Questions []Question
}

// Retrieval is a test of memory: the same contexts and questions for every method.
type Retrieval struct {
	Contexts []RetrievalContext
}

// Asked returns the number of questions.
func (r *Retrieval) Asked() int {
	n := 0
	for _, c := range r.Contexts {
		n += len(c.Questions)
	}
	return n
}

// Answers holds the answers of one method, [contexts][questions].
type Answers struct {
	Method string `json:"method"`
	// Found is true if every token of the answer was the arg max.
	Found [][]bool `json:"found"`
	// Nats is -log of the probability of the whole answer.
	Nats         [][]float64 `json:"nats"`
	BitsPerValue float64     `json:"bits_per_value"` // over all contexts
}

// Count returns the number of questions found and asked, of one kind or, with "", of all.
func (a *Answers) Count(r *Retrieval, kind string) (found, asked int) {
	for c, row := range a.Found {
		for q, ok := range row {
			if kind != "" && r.Contexts[c].Questions[q].Kind != kind {
				continue
			}
			asked++
			if ok {
				found++
			}
		}
	}
	return found, asked
}

// Ask asks the questions of the exact cache and of what each method leaves of the contexts. The exact
// cache is first in the result; the methods follow in order. No method sees a question.
//
// Errors: those of the model and of the methods.
func (r *Retrieval) Ask(ctx context.Context, m *model.Model, list []methods.Method,
	progress func(stage string, done, total int64)) ([]Answers, error) {
	out := make([]Answers, 1+len(list))
	out[0].Method = "exact"
	for i, method := range list {
		out[i+1].Method = method.Name()
	}
	bytes, vals := make([]int64, len(out)), int64(0)
	var done int64
	for _, rc := range r.Contexts {
		c, exact, err := Prefill(ctx, m, rc.Tokens, false)
		if err != nil {
			return nil, err
		}
		c.Memo = &kvfile.Memo{}
		x, err := newLayered(m, c, len(rc.Tokens))
		if err != nil {
			return nil, err
		}
		n := seen(m, 0, len(rc.Tokens), len(rc.Tokens))
		vals += n
		for i := range out {
			kv, size := exact, 4*n
			if i > 0 {
				if kv, size, err = x.compressed(ctx, m, list[i-1]); err != nil {
					return nil, methodErr("retrieval", list[i-1], err)
				}
			}
			bytes[i] += size
			if err := out[i].Ask(m, kv, rc); err != nil {
				return nil, fmt.Errorf("kvist/quality: retrieval: method %s: %w", out[i].Method,
					err)
			}
			done++
			if progress != nil {
				progress("questions", done, int64(len(out)*len(r.Contexts)))
			}
		}
	}
	for i := range out {
		out[i].BitsPerValue = 8 * float64(bytes[i]) / float64(vals)
	}
	return out, nil
}

// Ask asks the questions of one context of a cache that holds it, and adds the answers to a. All
// questions go through the model in one pass, which takes half the time of one for each. A question
// sees only the context and itself, but its position is behind the questions before it, up to some
// hundred tokens further from the context.
//
// Errors: quant.ErrRange for logits that are not finite; those of the model.
func (a *Answers) Ask(m *model.Model, kv *model.ExactKV, rc RetrievalContext) error {
	found, nats := make([]bool, len(rc.Questions)), make([]float64, len(rc.Questions))
	f := fan{geo: m.Geometry(), base: len(rc.Tokens)}
	var tokens []int32
	type target struct {
		question int
		token    int32 // -1: within the prompt
	}
	var targets []target
	for i, q := range rc.Questions {
		found[i] = true
		f.parts = append(f.parts, fanPart{kv: kv.Clone(), from: len(tokens)})
		tokens = append(tokens, q.PromptTokens...)
		tokens = append(tokens, q.AnswerTokens[:len(q.AnswerTokens)-1]...)
		f.parts[i].to = len(tokens)
		for range len(q.PromptTokens) - 1 {
			targets = append(targets, target{i, -1})
		}
		for _, t := range q.AnswerTokens {
			targets = append(targets, target{i, t})
		}
	}
	fo := model.ForwardOptions{Logits: model.LogitsAll, OnLogits: func(i int,
		logits []float32) error {
		t := targets[i]
		if t.token < 0 {
			return nil
		}
		found[t.question] = found[t.question] && model.Argmax(logits) == t.token
		s := logSumExp(logits) - float64(logits[t.token])
		if math.IsNaN(s) {
			return fmt.Errorf("question %d: surprisal %v: %w", t.question, s, quant.ErrRange)
		}
		nats[t.question] += s
		return nil
	}}
	if _, err := m.Forward(tokens, &f, f.base, fo); err != nil {
		return err
	}
	a.Found, a.Nats = append(a.Found, found), append(a.Nats, nats)
	return nil
}

// fan is a store of many continuations of one context, which do not see each other. Each part holds
// the tokens at positions [base+from, base+to).
type fan struct {
	geo   quant.Geometry
	base  int // tokens of the context
	parts []fanPart
}

type fanPart struct {
	kv       *model.ExactKV // holds the context
	from, to int
}

// each calls do for every part that has some of the tokens [pos, pos+n). These are the tokens [lo, hi)
// of the call, at position at of the part's cache.
func (f *fan) each(pos, n int, do func(kv *model.ExactKV, lo, hi, at int) error) error {
	for _, p := range f.parts {
		lo, hi := max(p.from, pos-f.base), min(p.to, pos-f.base+n)
		if lo >= hi {
			continue
		}
		if err := do(p.kv, lo+f.base-pos, hi+f.base-pos, f.base+lo-p.from); err != nil {
			return err
		}
	}
	return nil
}

// Append implements model.KVStore.
func (f *fan) Append(layer, pos int, k, v []float32, n int) error {
	dk, dv := f.geo.KVHeads*f.geo.HeadDim, f.geo.KVHeads*f.geo.HeadDimV
	return f.each(pos, n, func(kv *model.ExactKV, lo, hi, at int) error {
		return kv.Append(layer, at, k[lo*dk:hi*dk], v[lo*dv:hi*dv], hi-lo)
	})
}

// Attend implements model.KVStore.
func (f *fan) Attend(layer, pos int, q []float32, n int, out []float32) error {
	dq, do := f.geo.Heads*f.geo.HeadDim, f.geo.Heads*f.geo.HeadDimV
	return f.each(pos, n, func(kv *model.ExactKV, lo, hi, at int) error {
		return kv.Attend(layer, at, q[lo*dq:hi*dq], hi-lo, out[lo*do:hi*do])
	})
}

// pairFound compares the answers of two methods, a minus b, with a bootstrap over contexts.
func pairFound(a, b *Answers) Interval {
	d := make([][]float64, len(a.Found))
	for c := range a.Found {
		for q := range a.Found[c] {
			d[c] = append(d[c], truth(a.Found[c][q])-truth(b.Found[c][q]))
		}
	}
	return BootstrapClusters(d)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
