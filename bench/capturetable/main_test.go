// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README shows the table that the results hold: no number without a file.
func TestReadme_ShowsResults(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	results, err := os.ReadFile("../../" + resultFile)
	require.NoError(t, err)
	at := strings.Index(string(results), "| coding of K and V")
	require.GreaterOrEqual(t, at, 0)
	want, err := markers.Splice(string(readme), shown(string(results[at:])))
	require.NoError(t, err)
	require.Equal(t, want, string(readme), "run: go run ./bench/capturetable")
}
