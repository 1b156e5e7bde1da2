// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
)

// cancelling is a file that cancels a context at its n-th write.
type cancelling struct {
	*os.File
	n      int
	cancel func()
}

func (c *cancelling) WriteAt(p []byte, off int64) (int, error) {
	if c.n--; c.n == 0 {
		c.cancel()
	}
	return c.File.WriteAt(p, off)
}

// Capture writes what WriteCapture does, and stops in the middle when its context ends.
func TestCapture_Cancelled(t *testing.T) {
	m := newTiny(13)
	m.fill(false, gguf.TensorF32)
	lm := m.load(t, model.Options{})
	tokens, o := m.tokens(30), model.CaptureOptions{Next: 10, Chunk: 7}
	dir := t.TempDir()
	create := func(n int, cancel func()) *cancelling {
		f, err := os.Create(filepath.Join(dir, "a"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		return &cancelling{f, n, cancel}
	}
	all := create(-1, nil)
	require.NoError(t, lm.Capture(context.Background(), all, tokens, o))
	require.NoError(t, lm.WriteCapture(filepath.Join(dir, "b"), tokens, o))
	a, err := os.ReadFile(filepath.Join(dir, "a"))
	require.NoError(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "b"))
	require.NoError(t, err)
	require.Equal(t, b, a)

	ctx, cancel := context.WithCancel(context.Background())
	f := create(5, cancel)
	require.ErrorIs(t, lm.Capture(ctx, f, tokens, o), context.Canceled)
	require.Less(t, 5-f.n, -1-all.n, "it wrote as much as without the cancellation")
}
