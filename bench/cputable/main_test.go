// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRun_Medians(t *testing.T) {
	const attend = "BenchmarkAttend/backend=cpu-avx512/format=lm3/head_dim=64/gqa=3/set=cache/workers=1-2 1 7 ns/op "
	raw := "cpu: Test Processor\n" +
		attend + "9 cpu-ns/pair 20 ns/pair\n" +
		attend + "10 cpu-ns/pair 20 ns/pair\n" +
		attend + "30 cpu-ns/pair 20 ns/pair\n" +
		"BenchmarkAttendRatio/backend=cpu-avx2/head_dim=64/gqa=3-2 1 0.5 lm3-x-of-f16 0.25 lm2-x-of-f16\n" +
		"BenchmarkHadamard/backend=cpu-avx2/head_dim=64-2 1 5 ns/op 3.25 cpu-Gvalues/s\nPASS\n"
	file := filepath.Join(t.TempDir(), "raw.txt")
	require.NoError(t, os.WriteFile(file, []byte(raw), 0o600))
	var out strings.Builder
	require.NoError(t, run(&out, "", "", []string{file}))
	require.Contains(t, out.String(), "Test Processor")
	require.Contains(t, out.String(), "| lm3 | - | 10.0 |")
	require.Contains(t, out.String(), "| Hadamard, 64 values | - | 3.25 | - |")
	require.Contains(t, out.String(), "## Attention, avx2, as a part of the time of f16")
	require.Contains(t, out.String(), "| lm3 | - | 0.50 |")
	require.Contains(t, out.String(), "| lm2 | - | 0.25 |")
}

func TestRun_Errors(t *testing.T) {
	require.Error(t, run(&strings.Builder{}, "", "", []string{filepath.Join(t.TempDir(), "none")}))
	file := filepath.Join(t.TempDir(), "raw.txt")
	require.NoError(t, os.WriteFile(file, []byte("BenchmarkX 1 five ns/op\n"), 0o600))
	require.ErrorContains(t, run(&strings.Builder{}, "", "", []string{file}), "five")
	require.Error(t, run(&strings.Builder{}, file, "", nil), "no such routine")
}

func TestInstructions_OfTheCommittedAssembly(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(&out, "../../cpu/internal/attend/attend_amd64.s", "", nil))
	require.Contains(t, out.String(), "| lm3 |")
	n, err := count("TEXT ·f(SB), X\n\tA\nl:\n\tB\n\tC x\n\tJNZ l\n", "f", "l")
	require.NoError(t, err)
	require.Equal(t, 3, n)
	n, err = count("TEXT ·f(SB), X\n// doc\n\tA\nl:\n\tB\n\tRET\n\nTEXT ·g(SB), X\n\tRET\n", "f", "")
	require.NoError(t, err)
	require.Equal(t, 3, n)
}

// The page shows what the raw files hold: every number comes from a file.
func TestPage_ShowsResults(t *testing.T) {
	files, err := filepath.Glob("../../bench/results/cpu-*.txt")
	require.NoError(t, err)
	require.Len(t, files, 4)
	r, err := open(files)
	require.NoError(t, err)
	page, err := os.ReadFile("../../bench/README.md")
	require.NoError(t, err)
	want, err := markers.Splice(string(page), r.short())
	require.NoError(t, err)
	require.Equal(t, want, string(page), "run: make bench-cpu")
	require.NotContains(t, r.short(), "| - ", "a benchmark is missing")
}
