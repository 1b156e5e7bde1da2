// SPDX-License-Identifier: Apache-2.0

// Package modeltest gives tests the real models, opened once for all tests of a package.
package modeltest

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/kvist-project/kvist/engine/model"
)

// SmolLM2 returns SmolLM2-135M-Instruct. It skips the test where the model is missing or tests are to be short,
// and fails it where KVIST_REQUIRE has "model".
func SmolLM2(t testing.TB) *model.Model {
	t.Helper()
	return opened(t, "model", openSmolLM2)
}

// Gemma returns Gemma 3 270M, as SmolLM2 does; KVIST_REQUIRE has "gemma".
func Gemma(t testing.TB) *model.Model {
	t.Helper()
	return opened(t, "gemma", openGemma)
}

var (
	openSmolLM2 = opener(model.Find)
	openGemma   = opener(model.FindGemma)
)

// found is a model, or why there is none: it is missing, or is there and does not open.
type found struct {
	m               *model.Model
	missing, broken error
}

func opener(find func() (string, error)) func() found {
	return sync.OnceValue(func() (f found) {
		path, err := find()
		if err != nil {
			f.missing = err // it says which target to make
			return f
		}
		f.m, f.broken = model.Open(path, model.Options{})
		return f
	})
}

func opened(t testing.TB, name string, open func() found) *model.Model {
	t.Helper()
	if testing.Short() {
		t.Skip("a real model takes seconds, minutes under the race detector: not with -short")
	}
	f := open()
	switch {
	case f.broken != nil:
		t.Fatal(f.broken)
	case f.missing != nil && strings.Contains(os.Getenv("KVIST_REQUIRE"), name):
		t.Fatal(f.missing)
	case f.missing != nil:
		t.Skip(f.missing)
	}
	return f.m
}
