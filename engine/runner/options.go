// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// Options are the settings of a Runner. The zero value of a field is its default.
type Options struct {
	// Cache is how the cache is set up. Budget is required, and holds one window at least; windows, scale, soft cap and Model are those of
	// the model and set by New.
	Cache engine.Config
	// Running is the most answers in one step, 1 to 256; fewer if the budget does not hold so many windows.
	// Default 8.
	Running int
	// Waiting is the most requests in the queue, 1 to 65536. Default 64.
	Waiting int
	// Chunk is the most tokens of prompts in one step, 1 to 2048. Default 64.
	Chunk int
	// Context is the most tokens of a conversation. Default: the model's.
	Context int
	// Idle is the most conversations that are kept after their answers, up to 65536. Default 64; -1: none.
	Idle int
	// FadeAfter is how long a conversation is idle until it gives up Fade of its bytes, once.
	// Default 0: it does not; pressure alone takes from it.
	FadeAfter time.Duration
	// Fade is the share of the bytes of its rows that an idle conversation gives up, 0 to 1.
	Fade float64
	// Folder is where conversations are parked: those that were idle for ParkAfter, those that memory is
	// wanted from, those of requests with Save, and all of them on Close. A runner of the same model and
	// settings finds them again, also after its process was killed. A folder belongs to one runner at a
	// time. Default "": none is parked.
	Folder string
	// FolderBytes bounds the rows in the folder. Those parked for longest go when it is full. Default 0: no limit;
	// less than 1 MiB is refused.
	FolderBytes int64
	// Tenants is how many users share the cache fairly: the first so many each keep an equal part of half of the
	// budget, whatever others ask for, and memory is wanted first from the user that holds most. Default 0: it is
	// wanted from whoever was idle for longest.
	Tenants int
	// TenantOf names the user of a salt. Default nil: every salt is one.
	TenantOf func(salt []byte) string
	// Store is where first tokens of conversations are published after an answer, and looked for before one, so that
	// runners of the same model and settings on one store compute them once, whatever machine they are on. What is
	// published stays for a day, or until the conversation is forgotten; requests with Forget publish nothing. The
	// runner does not close the store. Steps wait for its calls: give one that ends them soon. nil: nothing is
	// published.
	Store store.Store
	// ParkAfter is how long a conversation is idle until it is parked. Default 0: it is not.
	ParkAfter time.Duration
	// Logger receives what the cache and the runner refuse. nil: nothing is logged.
	Logger *slog.Logger
}

func (o Options) withDefaults(m *model.Model) Options {
	for _, d := range []struct {
		x   *int
		def int
	}{{&o.Running, 8}, {&o.Waiting, 64}, {&o.Chunk, 64}, {&o.Context, m.Context}, {&o.Idle, 64}} {
		if *d.x == 0 {
			*d.x = d.def
		}
	}
	o.Idle = max(o.Idle, 0)
	return o
}

func (o Options) validate(m *model.Model) error {
	var errs []error
	bad := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format+": %w", append(a, quant.ErrShape)...))
		}
	}
	bad(o.Running >= 1 && o.Running <= 256, "%d running answers, want 1 to 256", o.Running)
	bad(o.Waiting >= 1 && o.Waiting <= 1<<16, "%d waiting requests, want 1 to %d", o.Waiting, 1<<16)
	bad(o.Chunk >= 1 && o.Chunk <= 2048, "chunk of %d tokens, want 1 to 2048", o.Chunk)
	bad(o.Context >= 2 && o.Context <= m.Context, "context of %d tokens, want 2 to %d", o.Context, m.Context)
	bad(o.Idle <= 1<<16, "%d idle conversations, want at most %d", o.Idle, 1<<16)
	bad(o.FadeAfter >= 0, "fade after %v, want 0 or more", o.FadeAfter)
	bad(o.ParkAfter >= 0, "park after %v, want 0 or more", o.ParkAfter)
	bad(o.FolderBytes == 0 || o.FolderBytes >= 1<<20, "folder of %d bytes, want 0 or at least %d", o.FolderBytes, 1<<20)
	bad(o.Tenants >= 0 && o.Tenants <= 1<<16, "%d tenants, want 0 to %d", o.Tenants, 1<<16)
	bad(o.Fade >= 0 && o.Fade <= 1, "fade %v, want 0 to 1", o.Fade)
	return errors.Join(errs...)
}

// cacheConfig completes the settings of the cache with how the model attends.
func cacheConfig(m *model.Model, o Options) (engine.Config, error) {
	cfg, att := o.Cache, m.Attention()
	cfg.LayerWindow = make([]int, len(att))
	for l, a := range att {
		cfg.LayerWindow[l] = a.Window
		if a.Scale != att[0].Scale || a.Softcap != att[0].Softcap {
			return cfg, fmt.Errorf("kvist/runner: layer %d has scale %v and soft cap %v, layer 0 %v and %v: %w", l,
				a.Scale, a.Softcap, att[0].Scale, att[0].Softcap, quant.ErrUnsupported)
		}
	}
	cfg.Scale, cfg.Softcap = float32(att[0].Scale), float32(att[0].Softcap)
	cfg.Layout = engine.NHD
	if cfg.Window == 0 {
		cfg.Window = 64
	}
	if cfg.Model == "" {
		cfg.Model = m.Name
	}
	if cfg.Logger == nil {
		cfg.Logger = o.Logger
	}
	return cfg, nil
}

// ExactBytes returns what the K and V of a conversation of so many tokens take in binary16: each layer as
// far as its window goes.
func ExactBytes(m *model.Model, tokens int) (n int64) {
	g := m.Geometry()
	for _, a := range m.Attention() {
		t := tokens
		if a.Window > 0 {
			t = min(t, a.Window)
		}
		n += 2 * int64(t) * int64(g.KVHeads*(g.HeadDim+g.HeadDimV))
	}
	return n
}

// exactFloor returns about what a conversation takes at least: a window, the pages that it begins and ends in,
// and room to recode a page and to add one.
func exactFloor(m *model.Model, window int) int64 { return ExactBytes(m, window+96) }

// Request asks for an answer.
type Request struct {
	Tokens    []int32 // the whole conversation so far, up to where the answer begins
	MaxTokens int     // of the answer. Default 0: what the context holds
	Sampling  Sampling
	IgnoreEnd bool // go on behind tokens that end an answer, as load tests do
	// Salt says whose conversation it is: only prompts with the same salt share tokens.
	Salt []byte
	// Pin keeps the rows of the conversation as they are: pressure takes from others. It is refused with
	// quant.ErrFull while pinned conversations hold half of the budget. Pinned conversations are the last to
	// fade: when nothing else is left for an answer under way, the longest unused of them is parked as it is,
	// or fades where there is no folder.
	Pin bool
	// Fade is the share of its bytes that the conversation gives up when the answer is complete, 0 to 1.
	Fade float64
	// Budget is the most bytes that the rows of the conversation may take, beside what its window needs.
	// Default 0: only that of the cache bounds it.
	Budget int64
	// Save parks the conversation when the answer is complete, so that it outlives the process.
	Save bool
	// Forget drops the conversation after the answer.
	Forget bool
}

// check refuses a request that can never be answered.
func (q *Request) check(m *model.Model, context int, parks bool) error {
	if err := q.Sampling.check(m.Vocab); err != nil {
		return err
	}
	switch {
	case len(q.Tokens) == 0:
		return shapef("a prompt without tokens")
	case len(q.Tokens) >= context:
		return fmt.Errorf("kvist/runner: a prompt of %d tokens, the context is %d and the answer needs one: %w",
			len(q.Tokens), context, quant.ErrTooLarge)
	case q.MaxTokens < 0:
		return shapef("an answer of %d tokens, want 0 or more", q.MaxTokens)
	case !(q.Fade >= 0 && q.Fade <= 1):
		return shapef("fade %v, want 0 to 1", q.Fade)
	case q.Save && !parks:
		return fmt.Errorf("kvist/runner: a conversation to save, and no folder to save it in: %w", quant.ErrUnsupported)
	case q.Budget < 0:
		return shapef("budget %d, want 0 or more", q.Budget)
	}
	for i, t := range q.Tokens {
		if t < 0 || int(t) >= m.Vocab {
			return shapef("token %d is %d, want 0 to %d", i, t, m.Vocab-1)
		}
	}
	return nil
}

func shapef(format string, a ...any) error {
	return fmt.Errorf("kvist/runner: "+format+": %w", append(a, quant.ErrShape)...)
}
