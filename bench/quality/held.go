// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"math"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/store"
)

// HeldOptions configure MeasureHeld.
type HeldOptions struct {
	Budget int64 // of the cache
	Chunk  int   // tokens a step. Default 32
	Config engine.Config
	Awake  bool // the cache is not told that conversations rest, and their windows stay exact
	OnTold func(conversation int)
	// Park parks each conversation in Config.Store when it is told, and resumes it when it is asked.
	Park bool
}

// Held is what a cache that holds many conversations still knows of them.
type Held struct {
	Found [][]bool // [contexts][questions]: every token of the answer was the arg max
	Bytes int64    // of the rows of all conversations that are not parked
	// Resume is the longest time that a parked conversation took to come back.
	Resume time.Duration
	Stats  engine.Stats
}

// MeasureHeld tells a cache the contexts of a retrieval one after the other, as conversations that rest when
// they are told. Then it asks each its questions, of forks, so that no question changes what others find.
//
// Errors: those of the model and of the cache.
func MeasureHeld(ctx context.Context, be backend.Backend, m *model.Model, r *Retrieval, o HeldOptions) (*Held, error) {
	if o.Chunk == 0 {
		o.Chunk = 32
	}
	cfg, g := servingConfig(m, o.Config), m.Geometry()
	if cfg.Budget = o.Budget; o.Awake {
		cfg.IdleSteps = -1
	}
	c, err := engine.Open(be, g, cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // it holds memory alone
	h := &Held{}
	var told []*SequenceStore
	var parked []store.Key
	for i, rc := range r.Contexts {
		s, err := NewSequenceStore(ctx, c, g.Layers)
		if err != nil {
			return nil, err
		}
		for p := 0; p < len(rc.Tokens); p += o.Chunk {
			part := rc.Tokens[p:min(p+o.Chunk, len(rc.Tokens))]
			if _, err := m.Forward(part, s, p, model.ForwardOptions{Logits: model.LogitsNone}); err != nil {
				return nil, err
			}
		}
		if !o.Awake && !o.Park {
			if err := s.Seq.Rest(); err != nil {
				return nil, err
			}
		}
		if o.Park {
			id, err := s.Seq.Park(ctx, nil, time.Time{})
			if err != nil {
				return nil, err
			}
			parked = append(parked, id)
		}
		if told = append(told, s); o.OnTold != nil {
			o.OnTold(i)
		}
	}
	for i, rc := range r.Contexts {
		found := make([]bool, len(rc.Questions))
		if o.Park {
			begin := time.Now()
			if told[i].Seq, err = c.Resume(ctx, nil, parked[i]); err != nil {
				return nil, err
			}
			h.Resume = max(h.Resume, time.Since(begin))
		}
		for j, q := range rc.Questions {
			if found[j], err = askFork(m, told[i], q); err != nil {
				return nil, err
			}
		}
		h.Found = append(h.Found, found)
		if o.Park {
			if err := told[i].Seq.Close(); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range told {
		if !o.Park {
			h.Bytes += s.Seq.Bytes()
		}
	}
	h.Stats = c.Stats()
	return h, nil
}

// askFork asks a copy of a conversation and reports whether it gives the answer.
func askFork(m *model.Model, s *SequenceStore, q Question) (found bool, err error) {
	fork, err := s.Seq.Fork()
	if err != nil {
		return false, err
	}
	defer func() {
		if e := fork.Close(); err == nil {
			err = e
		}
	}()
	x := &SequenceStore{Ctx: s.Ctx, Cache: s.Cache, Seq: fork, layers: s.layers}
	tokens := append(append([]int32{}, q.PromptTokens...), q.AnswerTokens[:len(q.AnswerTokens)-1]...)
	found = true
	_, err = m.Forward(tokens, x, int(fork.Len()), model.ForwardOptions{Logits: model.LogitsAll, OnLogits: func(i int, logits []float32) error {
		if at := i - (len(q.PromptTokens) - 1); at >= 0 {
			found = found && model.Argmax(logits) == q.AnswerTokens[at] && !math.IsNaN(float64(logits[q.AnswerTokens[at]]))
		}
		return nil
	}})
	return found, err
}
