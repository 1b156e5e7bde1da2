// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
)

const raw = `goos: linux
BenchmarkEncode/step8=-12 	 80	 13860024 ns/op	 9.46 MB/s	 0.7781 bits/value	 87.55 cpu-MB/s
BenchmarkEncode/step8=-12 	 80	 13842002 ns/op	 9.47 MB/s	 0.7781 bits/value	 79.01 cpu-MB/s
BenchmarkLossless/op=encode 	 80	 88340798 ns/op	 1.48 MB/s	 16.58 cpu-MB/s
PASS
`

func TestTable(t *testing.T) {
	rows := codecRows(raw)
	require.Equal(t, []*codecRow{{"BenchmarkEncode/step8=-12", "0.7781", 87.55},
		{"BenchmarkLossless/op=encode", "", 16.58}}, rows)
	m := &measured{verb: "compress", with: "profile", cores: 2, tokens: 1024, bytes: 30e6, wall: time.Second / 2,
		cpu: time.Second, peak: 44e6}
	var b bytes.Buffer
	require.NoError(t, table(&b, rows, []*measured{m}, []*measured{m}))
	require.Contains(t, b.String(), "| Encode/step8=-12 | 0.7781 | 88 |\n")
	require.Contains(t, b.String(), "| compress | profile | 2 | 30.0 | 60 | 30 | 44 |\n")
	require.Contains(t, b.String(), "| compress | profile | 1024 | 30.0 | 30 | 44 |\n")
	require.Equal(t, "verb=compress/with=profile/cores=2/tokens=1024 f16-bytes=30000000 wall-s=0.5000 cpu-s=1.0000 "+
		"peak-bytes=44000000", m.raw())
}

// The rows come back as often as asked, for each head.
func TestRepeat(t *testing.T) {
	const from = "../../testdata/smollm2-sqlite-1k.safetensors"
	to := filepath.Join(t.TempDir(), "many.safetensors")
	require.NoError(t, repeat(from, to, 2))
	a, err := capture.Open(from, capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	b, err := capture.Open(to, capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	require.Equal(t, 2*a.Info().Tokens, b.Info().Tokens)
	ta, _ := a.KV(9, capture.Q)
	tb, _ := b.KV(9, capture.Q)
	want, got := make([]byte, 3*ta.RowBytes()), make([]byte, 3*ta.RowBytes())
	require.NoError(t, ta.Read(4, 7, 3, want))
	require.NoError(t, tb.Read(4, a.Info().Tokens+7, 3, got))
	require.Equal(t, want, got)
}
