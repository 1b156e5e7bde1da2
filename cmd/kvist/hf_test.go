// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// torchPython returns a Python that has torch and transformers: the one on the path, or that of
// engine/model/python.sh. Without one the test is skipped.
func torchPython(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("KVIST_CACHE")
	if home, err := os.UserHomeDir(); err == nil && cache == "" {
		cache = filepath.Join(home, ".cache", "kvist")
	}
	for _, python := range []string{"python3", filepath.Join(cache, "python", "bin", "python")} {
		path, err := exec.LookPath(python)
		if err == nil && exec.Command(path, "-c", "import torch, transformers, safetensors").Run() == nil {
			return path
		}
	}
	const hint = "no Python with torch, transformers and safetensors: engine/model/python.sh sets one up"
	if strings.Contains(os.Getenv("KVIST_REQUIRE"), "torch") {
		t.Fatal(hint)
	}
	t.Skip(hint)
	return ""
}

// TestHuggingFace: random models of transformers are captured, compressed, decompressed and put back, and
// continue with the same logits, windows, soft caps, scales and layers without RoPE included.
func TestHuggingFace(t *testing.T) {
	if testing.Short() {
		t.Skip("imports torch: not with -short")
	}
	python := torchPython(t)
	dir := t.TempDir()
	kvist := filepath.Join(dir, "kvist")
	out, err := exec.Command("go", "build", "-o", kvist, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	script := filepath.Join("..", "..", "engine", "capture", "testdata", "hf_roundtrip.py")
	out, err = exec.Command(python, script, kvist, dir).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "passed")
	t.Log(string(out))
}
