// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/runner"
)

// tinyModel writes a random model.
func tinyModel(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, os.WriteFile(path, gguftest.Tiny(3).Bytes(), 0o600))
	return path
}

func chatWith(t *testing.T, input string, args ...string) (out, errs string, status int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = run(context.Background(), append([]string{"chat"}, args...), strings.NewReader(input), &stdout, &stderr)
	return stdout.String(), stderr.String(), status
}

func TestChat_Piped(t *testing.T) {
	m := tinyModel(t)
	out, errs, status := chatWith(t, "Hello there, and good morning to all of you\nAnd again, \\\nover two lines\n/memory\n", m, "--max-tokens", "8",
		"--kv-budget", "4MiB", "--json")
	require.Zero(t, status, errs)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 3)
	var a, b answerJSON
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &a))
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &b))
	require.Zero(t, a.Cached)
	require.GreaterOrEqual(t, b.Cached, a.Prompt, "the conversation goes on")
	require.Greater(t, b.Prompt, a.Prompt+len("And again, \nover two lines"))
	require.Equal(t, int64(4<<20), b.Budget)
	require.Positive(t, b.Bytes)
	require.Positive(t, b.Exact)
	var mem memoryJSON
	require.NoError(t, json.Unmarshal([]byte(lines[2]), &mem))
	require.Len(t, mem.Kept, mem.Tokens)
	require.Equal(t, b.Tokens, mem.Tokens)
	require.Equal(t, mem.Tokens, mem.Bits[0].Tokens, "all exact")
	require.LessOrEqual(t, mem.Held, mem.Budget)
	var said strings.Builder
	for _, k := range mem.Kept {
		said.WriteString(k.Text)
	}
	require.Contains(t, said.String(), "<|im_start|>user\nHello there, and good morning to all of you<|im_end|>")
}

// Without --json the answers stand alone, and what a terminal would act on in them is shown.
func TestChat_Text(t *testing.T) {
	m := tinyModel(t)
	out, errs, status := chatWith(t, "one\n/memory\n/fade 50%\n/pin\n/unpin\n/reset\n/quit\nnever\n", m, "--max-tokens", "40",
		"--kv-budget", "4MiB", "--temperature", "5", "--system", "be brief")
	require.Zero(t, status, errs)
	require.Empty(t, errs)
	requireSeen(t, out)
	require.Contains(t, out, "in f16 they take")
	require.Contains(t, out, "kept at")
	require.NotContains(t, out, "\x1b")
}

// A conversation that was saved goes on elsewhere without being computed again; a damaged file is refused.
func TestChat_SaveAndLoad(t *testing.T) {
	m := tinyModel(t)
	file := filepath.Join(t.TempDir(), "said.chat")
	first := strings.Repeat("a long line about something ", 12)
	out, errs, status := chatWith(t, first+"\n/save "+file+"\nand then?\n", m, "--max-tokens", "12", "--kv-budget", "4MiB", "--json")
	require.Zero(t, status, errs)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 2)
	out, errs, status = chatWith(t, "/load "+file+"\nand then?\n", m, "--max-tokens", "12", "--kv-budget", "4MiB", "--json")
	require.Zero(t, status, errs)
	var want, got answerJSON
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &want))
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Equal(t, want.Content, got.Content)
	require.Equal(t, want.Cached, got.Cached)
	require.Greater(t, got.Cached, len(first))
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	for name, b := range map[string][]byte{"cut": whole[:len(whole)/2], "head": append([]byte("kvist-chat 1 00000000"), whole[21:]...),
		"empty": nil, "other": []byte("hello\n"), "rows": append(append([]byte{}, whole[:len(whole)/2]...), append([]byte{1, 2, 3, 4}, whole[len(whole)/2+4:]...)...)} {
		bad := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(bad, b, 0o600))
		_, errs, status := chatWith(t, "/load "+bad+"\n", m, "--kv-budget", "4MiB")
		require.Equal(t, exitDamaged, status, "%s: %s", name, errs)
		require.Contains(t, errs, bad)
	}
}

func TestChat_WrongUse(t *testing.T) {
	m := tinyModel(t)
	for _, c := range []struct {
		status int
		input  string
		args   []string
		text   string
	}{
		{exitUsage, "", nil, "arg"},
		{exitUsage, "", []string{m, "--kv-budget", "lots"}, "--kv-budget"},
		{exitUsage, "", []string{m, "--context", "-1"}, "--context"},
		{exitUsage, "", []string{m, "--context", "9999999"}, "2048"},
		{exitUsage, "", []string{m, "--max-tokens", "-2"}, "--max-tokens"},
		{exitUsage, "", []string{m, "--format", "chatmI"}, "chatml"},
		{exitFailed, "", []string{m, "--kv-budget", "1k"}, "window"},
		{exitFailed, "", []string{m, "--window", "33"}, "window 33"},
		{exitFailed, "", []string{m + "x"}, "no such file"},
		{exitFailed, "/nonsense\n", []string{m, "--kv-budget", "4MiB"}, "/nonsense"},
		{exitFailed, "/memory\n", []string{m, "--kv-budget", "4MiB"}, "nothing was said"},
		{exitFailed, "hi\n/fade 7\n", []string{m, "--kv-budget", "4MiB", "--max-tokens", "2"}, "/fade"},
		{exitFailed, "hi\n", []string{m, "--kv-budget", "4MiB", "--temperature", "11"}, "temperature"},
		{exitFailed, strings.Repeat("x", 3000) + "\n", []string{m, "--kv-budget", "4MiB"}, "context"},
	} {
		_, errs, status := chatWith(t, c.input, c.args...)
		require.Equal(t, c.status, status, "%v: %s", c.args, errs)
		require.Contains(t, errs, c.text, c.args)
		require.Equal(t, 1, strings.Count(errs, "\n"), errs)
	}
}

// A file that cannot be loaded takes nothing of what was said.
func TestChat_LoadFails(t *testing.T) {
	ctx := context.Background()
	var errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: &errs, binary: io.Discard}
	var f chatFlags
	cmd := &cobra.Command{}
	f.add(cmd)
	f.sampling.add(cmd, 0)
	f.budget, f.sampling.most = "4MiB", 4
	w, err := f.open(a, tinyModel(t), runner.Options{Running: 1, Idle: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, w.close()) }()
	c := &chat{answering: w, a: a, f: &f, terminal: true}
	file := filepath.Join(t.TempDir(), "said.chat")
	for _, text := range []string{"hello", "/save " + file} {
		_, err = c.message(ctx, text)
		require.NoError(t, err)
	}
	said := slices.Clone(c.messages)
	require.Len(t, said, 2)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(file, b, 0o600))
	errs.Reset()
	_, err = c.message(ctx, "/load "+file)
	require.NoError(t, err)
	require.Contains(t, errs.String(), file)
	require.Equal(t, said, c.messages)
	_, err = c.message(ctx, "and now?")
	require.NoError(t, err)
	require.Len(t, c.messages, 4)
}
