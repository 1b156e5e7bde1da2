// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestParseBudget(t *testing.T) {
	for text, want := range map[string]struct {
		bytes int64
		share float64
	}{"12%": {0, 0.12}, "3000000": {3000000, 0}, "512KiB": {512 << 10, 0}, "2MiB": {2 << 20, 0}, "1GiB": {1 << 30, 0}} {
		bytes, share, err := parseBudget(text)
		require.NoError(t, err, text)
		require.Equal(t, want.bytes, bytes, text)
		require.InDelta(t, want.share, share, 1e-12, text)
	}
	for _, text := range []string{"", "%", "0", "-5", "0%", "x", "9999999999GiB", "1.5", "NaN%"} {
		_, _, err := parseBudget(text)
		require.ErrorIs(t, err, quant.ErrShape, text)
	}
}

// Two targets are an error that names them; one replaces that of the config.
func TestOptions_Targets(t *testing.T) {
	for _, o := range []Options{{Bits: 3, Budget: "12%"}, {Budget: "12%", MaxError: 0.1}, {MaxError: 0.1, Lossless: true},
		{Bits: 3, Lossless: true}} {
		_, err := o.config()
		require.ErrorIs(t, err, quant.ErrShape)
		require.ErrorContains(t, err, "2 targets")
	}
	given := DefaultConfig()
	given.Bits, given.Soft, given.Seed = 2, true, 7
	got, err := (&Options{Config: &given, Budget: "2MiB"}).config()
	require.NoError(t, err)
	want := given
	want.Bits, want.Bytes, want.Soft = 0, 2<<20, false
	require.Equal(t, want, got)
	require.Equal(t, 2.0, given.Bits, "the caller's config is the caller's")
	got, err = (&Options{Config: &given}).config()
	require.NoError(t, err)
	require.Equal(t, given, got)
	got, err = (&Options{}).config()
	require.NoError(t, err)
	require.Equal(t, defaultBits, got.Bits)
	require.True(t, got.Soft)
	got, err = (&Options{Lossless: true}).config()
	require.NoError(t, err)
	require.NoError(t, got.Validate())
	require.True(t, got.Lossless)
	require.Equal(t, FormArchive, got.Form)
}
