// SPDX-License-Identifier: Apache-2.0

package llama_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/llama"
	"github.com/kvist-project/kvist/engine/gguf"
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
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := read(data)
		if err != nil {
			requireTyped(t, err)
			return
		}
		if _, err := llama.NewTokenizer(file); err != nil {
			requireTyped(t, err)
		}
		model, err := llama.Load(file, llama.Options{Workers: 1})
		if err != nil {
			return // typed as well, or ErrShape from the geometry
		}
		kv, err := model.NewKV(llama.KVOptions{})
		require.NoError(t, err)
		_, err = model.Forward([]int32{0, 0}, kv, 0, llama.ForwardOptions{})
		if model.Context > 1 {
			require.NoError(t, err)
		}
	})
}
