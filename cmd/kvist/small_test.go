// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// asJSON runs a command line that prints JSON.
func asJSON(t *testing.T, v any, args ...string) {
	t.Helper()
	status, stdout, stderr := command(t, "", args...)
	require.Equal(t, exitOK, status, stderr)
	require.NoError(t, json.Unmarshal([]byte(stdout), v))
}

// What compress says of a file is what the file says of itself: config and profile.
func TestCompress_SaysWhatTheFileSays(t *testing.T) {
	const shipped = "../../testdata/smollm2.kvprofile"
	var prof struct {
		ID        string
		ArchiveID string `json:"archive_id"`
	}
	asJSON(t, &prof, "inspect", shipped, "--json")
	require.Len(t, prof.ID, 64)
	require.Len(t, prof.ArchiveID, 64)
	for name, c := range map[string]struct {
		args    []string
		profile string
		rowBias string
	}{
		"hot":            {[]string{"--form", "hot", "--bits", "3"}, "", "row-bias=true"},
		"hot levels":     {[]string{"--form", "hot", "--bits", "2"}, "", "row-bias=false"},
		"archive":        {[]string{"--bits", "2"}, "", "row-bias=false"},
		"lossless":       {[]string{"--lossless"}, "", "row-bias=false"},
		"hot profile":    {[]string{"--form", "hot", "--bits", "3", "--profile", shipped}, prof.ID, ""},
		"archive profil": {[]string{"--bits", "2", "--profile", shipped}, prof.ArchiveID, ""},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out.kvist")
			var made compressJSON
			asJSON(t, &made, append([]string{"compress", kvCapture, "-o", out, "--json"}, c.args...)...)
			var is struct {
				Kvist struct{ Config, Profile string }
			}
			asJSON(t, &is, "inspect", out, "--json")
			require.Equal(t, is.Kvist.Config, made.Config)
			require.Contains(t, made.Config, c.rowBias)
			require.Equal(t, is.Kvist.Profile, made.Profile)
			require.Equal(t, c.profile, made.Profile)
			if c.profile != "" {
				_, text, _ := command(t, "", "inspect", out)
				require.Contains(t, text, "profile   "+c.profile[:16])
				_, text, _ = command(t, "", "inspect", shipped)
				require.Contains(t, text, c.profile[:16])
			}
		})
	}
}

// A ratio is to f16: a file that is larger than that is not said to be smaller.
func TestCompress_LargerThanF16(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.safetensors"), filepath.Join(dir, "out.kvist")
	writeRows(t, in, "x", nil) // F32
	status, text, stderr := command(t, "", "compress", in, "-o", out, "--lossless")
	require.Equal(t, exitOK, status, stderr)
	_, shown, _ := command(t, "", "inspect", out)
	for _, s := range []string{text, shown} {
		line, _, _ := strings.Cut(s, "\n")
		require.Regexp(t, `, 1\.\d\dx the size of f16 \(65,536 bytes\), `+
			`1\.\d\dx smaller than the original \(131,072 bytes\)$`, line)
	}
	var made compressJSON
	asJSON(t, &made, "compress", in, "-o", out, "--lossless", "--force", "--json")
	require.Less(t, made.Ratio, 1.0, "it stays f16 bytes over bytes")
	require.Equal(t, int64(131072), made.SourceBytes)
}

func TestSizeText(t *testing.T) {
	require.Equal(t, "2.00x smaller than f16 (200 bytes)", sizeText(100, 200, 200))
	require.Equal(t, "2.00x smaller than f16 (200 bytes)", sizeText(100, 200, 0))
	require.Equal(t, "1.50x the size of f16 (200 bytes), 1.33x smaller than the original (400 bytes)",
		sizeText(300, 200, 400))
	require.Equal(t, "1.00x smaller than f16 (200 bytes)", sizeText(200, 200, 200))
	require.Equal(t, "0.00x smaller than f16 (0 bytes)", sizeText(300, 0, 0))
}

func TestNearest(t *testing.T) {
	names := []string{"compress", "decompress", "inspect", "truncate", "eval", "tune"}
	for typed, want := range map[string]string{"comprss": "compress", "compres": "compress",
		"inspekt": "inspect", "truncat": "truncate", "eva": "eval", "evl": "eval", "decompres": "decompress",
		"xyz": "", "": "", "q": "", "doctor": "", strings.Repeat("x", 1000): ""} {
		require.Equal(t, want, nearest(typed, names), typed)
	}
}
