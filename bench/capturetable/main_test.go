// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The page shows the table that the results hold: every number comes from a file.
func TestPage_ShowsResults(t *testing.T) {
	page, err := os.ReadFile("../../" + pageFile)
	require.NoError(t, err)
	results, err := os.ReadFile("../../" + resultFile)
	require.NoError(t, err)
	at := strings.Index(string(results), "| coding of K and V")
	require.GreaterOrEqual(t, at, 0)
	want, err := markers.Splice(string(page), shown(string(results[at:])))
	require.NoError(t, err)
	require.Equal(t, want, string(page), "run: go run ./bench/capturetable")
}
