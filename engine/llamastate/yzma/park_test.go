// SPDX-License-Identifier: Apache-2.0

package yzma_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/llamastate"
	"github.com/kvist-project/kvist/engine/llamastate/yzma"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// need returns the model, once llama.cpp is loaded from KVIST_LLAMA, the folder of libllama.so (make check-yzma).
func need(t *testing.T) string {
	folder := os.Getenv("KVIST_LLAMA")
	if folder == "" {
		t.Skip("KVIST_LLAMA does not name the folder of a libllama.so: make check-yzma builds one")
	}
	path, err := model.Find()
	if err != nil {
		t.Skip(err)
	}
	no(t, llama.Load(folder))
	llama.LogSet(llama.LogSilent())
	llama.BackendInit()
	return path
}

func no(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A conversation is parked in an eighth of its bytes, goes on in another context, and says what it would have said.
func TestPark_Continues(t *testing.T) {
	path := need(t)
	m, err := llama.ModelLoadFromFile(path, llama.ModelDefaultParams())
	no(t, err)
	defer llama.ModelFree(m)
	vocab := llama.ModelGetVocab(m)
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "bench", "quality", "texts", "eval-encyclopedia.txt"))
	no(t, err)
	prompt := llama.Tokenize(vocab, string(text), true, false)[:400]
	c, err := model.ReadConfig(path, len(prompt))
	no(t, err)
	g, err := c.CacheGeometry()
	no(t, err)
	facts := llamastate.Facts{Geometry: g, Interleaved: c.Interleaved()}
	p, err := profile.Open("../../../testdata/smollm2.kvprofile", profile.Limits{})
	no(t, err)

	first := newContext(t, m)
	defer llama.Free(first)
	next := decode(t, first, vocab, prompt)
	size := int(llama.StateSeqGetSize(first, 0))
	exact := make([]byte, size)
	llama.StateSeqGetData(first, exact, 0)
	parked := map[int][]byte{}
	for _, bits := range []int{8, 2} {
		parked[bits], err = yzma.Park(context.Background(), first, 0, facts,
			kvfile.Options{Bits: float64(bits), Profiles: []*profile.Profile{p}})
		no(t, err)
	}
	want := answer(t, first, vocab, next)
	other := newContext(t, m)
	defer llama.Free(other)
	llama.StateSeqSetData(other, exact, 0)
	if n := agree(t, other, vocab, next, want); n != len(want) {
		t.Fatalf("llama.cpp's own state gives %d of %d tokens: nothing can be measured", n, len(want))
	}
	for bits, file := range parked {
		if len(file)*16 > size*bits {
			t.Errorf("%d bits: %d bytes of %d", bits, len(file), size)
		}
		second := newContext(t, m)
		defer llama.Free(second)
		no(t, yzma.Resume(context.Background(), second, 0, file, kvfile.Options{Profiles: []*profile.Profile{p}}))
		same := agree(t, second, vocab, next, want)
		t.Logf("%d bits: %.1f times smaller, %d of %d tokens the same", bits, float64(size)/float64(len(file)), same, len(want))
		// Where two tokens are as likely, rounding alone chooses: a cache that llama.cpp itself fills in other pieces moves
		// one token in twenty (bench/results/llama-state.md).
		if least := len(want) * 3 / 4; same < least {
			t.Errorf("%d bits: only %d of %d tokens are the same, want %d", bits, same, len(want), least)
		}
	}
	err = yzma.Resume(context.Background(), first, 0, parked[2][:1000], kvfile.Options{Profiles: []*profile.Profile{p}})
	if !errors.Is(err, quant.ErrCorrupt) {
		t.Errorf("a file cut short: %v", err)
	}
}

func newContext(t *testing.T, m llama.Model) llama.Context {
	p := llama.ContextDefaultParams()
	p.NCtx, p.NBatch, p.NUbatch, p.NSeqMax = 512, 512, 512, 1
	p.NThreads, p.NThreadsBatch = 1, 1
	c, err := llama.InitFromModel(m, p)
	no(t, err)
	return c
}

// decode runs tokens and returns the likeliest one behind them.
func decode(t *testing.T, c llama.Context, vocab llama.Vocab, tokens []llama.Token) llama.Token {
	_, err := llama.Decode(c, llama.BatchGetOne(tokens))
	no(t, err)
	logits, err := llama.GetLogitsIth(c, -1, int(llama.VocabNTokens(vocab)))
	no(t, err)
	best := 0
	for i, x := range logits {
		if x > logits[best] {
			best = i
		}
	}
	return llama.Token(best)
}

// answer goes on greedily.
func answer(t *testing.T, c llama.Context, vocab llama.Vocab, next llama.Token) (all []llama.Token) {
	for range 24 {
		next = decode(t, c, vocab, []llama.Token{next})
		all = append(all, next)
	}
	return all
}

// agree gives a context the answer that was wanted, and counts the tokens of it that it would have given.
func agree(t *testing.T, c llama.Context, vocab llama.Vocab, next llama.Token, want []llama.Token) (n int) {
	for _, w := range want {
		if decode(t, c, vocab, []llama.Token{next}) == w {
			n++
		}
		next = w
	}
	return n
}
