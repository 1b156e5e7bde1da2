// SPDX-License-Identifier: Apache-2.0

package tune_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

func opened(t *testing.T, path string) *capture.Source {
	t.Helper()
	src, err := capture.Open(path, capture.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, src.Close()) })
	return src
}

func openCPU(t *testing.T) *cpu.Backend {
	t.Helper()
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, be.Close()) })
	return be
}

// compressed returns the file that a capture of testdata is compressed to.
func compressed(t *testing.T, path string, form string, bits float64) *container.Reader {
	t.Helper()
	src, be := opened(t, path), openCPU(t)
	cfg := kvfile.DefaultConfig()
	cfg.Form, cfg.Bits = form, bits
	var file bytes.Buffer
	_, err := kvfile.Compress(t.Context(), src, &file, kvfile.Options{Config: &cfg, Backend: be})
	require.NoError(t, err)
	r, err := container.Open("made", bytes.NewReader(file.Bytes()), int64(file.Len()), container.Limits{})
	require.NoError(t, err)
	return r
}

// The sides of the layers take most of an archive, and no more than its records.
func TestArchiveSides(t *testing.T) {
	r := compressed(t, "../../testdata/smollm2-sqlite-1k.safetensors", kvfile.FormArchive, 2)
	sides, err := tune.ArchiveSides(r)
	require.NoError(t, err)
	require.Len(t, sides, r.Header().Stored())
	var sum, payload int64
	for _, s := range sides {
		require.Positive(t, s[0])
		require.Positive(t, s[1])
		sum += s[0] + s[1]
	}
	for i := range r.Records() {
		rec, err := r.ReadRecord(i)
		require.NoError(t, err)
		payload += int64(len(rec.Archive))
	}
	require.LessOrEqual(t, sum, payload)
	require.Greater(t, sum, payload*9/10)
}

func TestArchiveSides_Refused(t *testing.T) {
	r := compressed(t, "../../testdata/minilm-queries-256x384.npy", kvfile.FormArchive, 3)
	_, err := tune.ArchiveSides(r)
	require.ErrorIs(t, err, quant.ErrShape)
	r = compressed(t, "../../testdata/smollm2-sqlite-1k.safetensors", kvfile.FormHot, 3)
	_, err = tune.ArchiveSides(r)
	require.ErrorIs(t, err, quant.ErrShape)
}
