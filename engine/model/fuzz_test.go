// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// requireTyped checks that an error has a place and a category.
func requireTyped(t testing.TB, err error, msg ...any) {
	t.Helper()
	var fe *gguf.FileError
	require.ErrorAs(t, err, &fe, msg...)
	require.Equal(t, "test.gguf", fe.File)
	for _, c := range []error{quant.ErrCorrupt, quant.ErrVersion, quant.ErrUnsupported,
		quant.ErrTooLarge} {
		if errors.Is(err, c) {
			return
		}
	}
	t.Fatalf("%v has no category", err)
}

func FuzzGGUF(f *testing.F) {
	m := newTiny(1)
	m.layers = 1
	m.Set("llama.block_count", uint32(1))
	m.fill(false, gguf.TensorQ8_0, gguf.TensorQ4_1)
	addVocabulary(&m.Builder, m.vocab)
	f.Add(m.Bytes())
	for _, name := range []string{"gemma2", "gemma3", "phi3", "granite"} {
		b, err := os.ReadFile(filepath.Join(referenceDir, name+".gguf"))
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := read(data)
		if err != nil {
			requireTyped(t, err)
			return
		}
		if _, err := model.NewTokenizer(file); err != nil {
			requireTyped(t, err)
		}
		lm, err := model.Load(file, model.Options{Workers: 1})
		if err != nil {
			return // typed as well, or ErrShape from the geometry
		}
		kv, err := lm.NewKV(model.KVOptions{})
		require.NoError(t, err)
		_, err = lm.Forward([]int32{0, 0}, kv, 0, model.ForwardOptions{})
		if lm.Context > 1 {
			require.NoError(t, err)
		}
	})
}
