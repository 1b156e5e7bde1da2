// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
)

var benchCapture = flag.String("capture", "../../testdata/smollm2-sqlite-1k.safetensors",
	"a capture of the test model, for BenchmarkArchive")

// BenchmarkArchive holds compress and decompress to archive form, whole: bytes are those of K and V.
// With GOMAXPROCS=1 it is what one core does. The profile is read each time, as the command does, or kept, as a
// server does.
func BenchmarkArchive(b *testing.B) {
	data, err := os.ReadFile(*benchCapture)
	require.NoError(b, err)
	raw, err := os.ReadFile("../../testdata/smollm2.kvprofile")
	require.NoError(b, err)
	be := openCPU(b)
	ctx := context.Background()
	var kept []*profile.Profile
	for _, with := range []string{"read", "kept", "no"} {
		load := func(b *testing.B) []*profile.Profile {
			if with == "no" || with == "kept" && kept != nil {
				return map[string][]*profile.Profile{"kept": kept}[with]
			}
			x, err := profile.Read("model", bytes.NewReader(raw), int64(len(raw)), profile.Limits{})
			require.NoError(b, err)
			kept = []*profile.Profile{x}
			return kept
		}
		var file bytes.Buffer
		squeeze := func(b *testing.B) *kvfile.Result {
			src, err := capture.New("in", bytes.NewReader(data), int64(len(data)), capture.Limits{})
			require.NoError(b, err)
			cfg := config(b, "bits=1.5 form=archive")
			if p := load(b); p != nil {
				cfg.Profile = p[0]
			}
			file.Reset()
			res, err := kvfile.Compress(ctx, src, &file, kvfile.Options{Config: &cfg, Backend: be})
			require.NoError(b, err)
			return res
		}
		b.Run("op=compress/profile="+with, func(b *testing.B) {
			b.SetBytes(squeeze(b).OriginalBytes)
			b.ReportAllocs()
			for b.Loop() {
				squeeze(b)
			}
		})
		b.Run("op=decompress/profile="+with, func(b *testing.B) {
			b.SetBytes(squeeze(b).OriginalBytes)
			b.ReportAllocs()
			for b.Loop() {
				m := memory{b: make([]byte, 0, len(data))}
				_, err := kvfile.Decompress(ctx, reader(b, file.Bytes()), &m, kvfile.Options{Profiles: load(b)})
				require.NoError(b, err)
			}
		})
	}
}
