// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A run that is interrupted ends soon and leaves nothing: part of a record would pass for a whole one.
func TestBench_Interrupted(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(200*time.Millisecond, cancel)
	defer cancel()
	var stderr bytes.Buffer
	status := run(ctx, []string{"bench", "--rounds", "1000", "--working-set", "8", "--backend", "cpu", "-o", filepath.Join(dir, "run.json"),
		"--html", filepath.Join(dir, "run.html")}, nil, io.Discard, &stderr)
	require.Equal(t, exitInterrupted, status, stderr.String())
	require.Contains(t, stderr.String(), "interrupted")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
