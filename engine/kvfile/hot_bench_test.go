// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
)

// BenchmarkHot measures compression to hot form, with FULL alone and with all levels. It counts the
// bytes of K and V.
func BenchmarkHot(b *testing.B) {
	data, err := os.ReadFile(*benchCapture)
	require.NoError(b, err)
	be := openCPU(b)
	for _, bits := range []string{"4.25", "2.75"} {
		b.Run(fmt.Sprintf("op=compress/bits=%s", bits), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				src, err := capture.New("in", bytes.NewReader(data), int64(len(data)), capture.Limits{})
				require.NoError(b, err)
				var file bytes.Buffer
				res, err := kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: settings(b, "bits="+bits), Backend: be})
				require.NoError(b, err)
				b.SetBytes(res.OriginalBytes)
			}
		})
	}
}
