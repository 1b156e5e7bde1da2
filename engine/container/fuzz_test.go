// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// fuzzLimits make one run of the fuzzer cheap. The fuzzer also tests that they hold.
var fuzzLimits = Limits{MaxHeaderBytes: 1 << 16, MaxRecordBytes: 1 << 20, MaxSideBytes: 1 << 16,
	MaxRecords: 1 << 10, MaxSides: 64, MaxRecordTokens: 1 << 16}

func addSeeds(f *testing.F) {
	for _, dir := range []string{goldenDir, corruptDir} {
		paths, err := filepath.Glob(filepath.Join(dir, "*.kvist"))
		require.NoError(f, err)
		require.NotEmpty(f, paths)
		for _, p := range paths {
			b, err := os.ReadFile(p)
			require.NoError(f, err)
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Add([]byte(magicHead))
}

// exercise calls every method of a reader of b, and checks that what it read can be written.
func exercise(t *testing.T, b []byte) {
	got, err := readAll(b, fuzzLimits)
	if err == nil {
		again, err := readAll(got.write(t), fuzzLimits)
		require.NoError(t, err)
		requireSame(t, got, again)
	} else {
		requireTyped(t, err)
	}
	if r, err := openBytes(b, fuzzLimits); err == nil {
		require.NoError(t, Dump(io.Discard, r, DumpOptions{Tokens: true}))
	}
	if r, _, err := salvage(t, b, fuzzLimits); err == nil {
		require.NoError(t, Dump(io.Discard, r, DumpOptions{MaxBytes: -1}))
	}
}

// FuzzReader reads arbitrary bytes.
func FuzzReader(f *testing.F) {
	addSeeds(f)
	f.Fuzz(exercise)
}

// FuzzReaderRepaired corrects the checksums first, so that the fuzzer reaches the code after them.
func FuzzReaderRepaired(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		repair(b)
		exercise(t, b)
	})
}
