// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README and signals.md show what the results hold: no number without a file.
func TestPages_ShowResults(t *testing.T) {
	dir := "../../" + results
	q, err := open(dir, "quality")
	require.NoError(t, err)
	asked, err := open(dir, "retrieval")
	require.NoError(t, err)
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	kl, err := open(dir, "ablation")
	require.NoError(t, err)
	found, err := open(dir, "ablation-retrieval")
	require.NoError(t, err)
	require.Equal(t, asked.Exact.Retrieval, found.Exact.Retrieval, "other questions")
	want, err := markers.Splice(string(readme), table(q, asked, found))
	require.NoError(t, err)
	require.Equal(t, want, string(readme), "run: go run ./bench/modeltable")

	page, err := os.ReadFile(dir + "/signals.md")
	require.NoError(t, err)
	require.Equal(t, signals(kl, found), string(page), "run: go run ./bench/modeltable")
	for _, w := range ways {
		require.NotNil(t, find(kl, "kvist:2.25"+w.method), w.name)
		require.NotNil(t, find(found, "kvist:2.25"+w.method), w.name)
	}
	for _, r := range rows {
		require.NotNil(t, find(q, r.method), r.name)
	}
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{0.00093: "0.00093", 0.0000412: "0.000041", 0.0301: "0.030", 1.234: "1.2"} {
		require.Equal(t, want, number(x))
	}
}
