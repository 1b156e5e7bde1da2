// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
	"github.com/kvist-project/kvist/engine/capture"
)

// evil is what a terminal or a browser acts on: a title of the window, colour by ESC and by C1, a
// line taken back, a name turned round, a second line. evilPath is what of it a path may hold.
const (
	evil     = "e\x1b]0;owned\a\x1b[31m\u009b31m\x7f\rx\u202egnp.\u2066y\u200f\nkvist: intact"
	evilPath = "e\x1b[31m\u009b31m\x7f\r\u202egnp\xff"
)

// writeRows writes a safetensors file with one tensor of rows, and one beside it whose name is as
// long.
func writeRows(t *testing.T, path, tensor string, metadata map[string]string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	w, err := capture.NewWriter(f, []capture.Decl{{Name: tensor, DTypeName: "F32",
		Shape: []int64{1024, 32}}, {Name: tensor + "i", DTypeName: "U8", Shape: []int64{3}}}, metadata)
	require.NoError(t, err)
	data := make([]byte, 4*1024*32)
	for i := range data {
		data[i] = []byte{byte(i / 7), byte(i), byte(i / 4 * 31 % 97), 0x3f}[i%4] // 0.5 to 1
	}
	require.NoError(t, w.WriteAt(tensor, 0, data))
	require.NoError(t, w.WriteAt(tensor+"i", 0, []byte{1, 2, 3}))
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
}

// requireSeen fails where a text holds what should be seen, but acts.
func requireSeen(t *testing.T, text string, what ...any) {
	t.Helper()
	require.Equal(t, visible.Text(text), text, what...)
}

// Names of tensors, metadata and paths reach every verb; none may reach the terminal as they are.
func TestTerminal_NothingActs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), evilPath)
	require.NoError(t, os.Mkdir(dir, 0o777))
	at := func(name string) string { return filepath.Join(dir, name) }
	in, out := at("in.safetensors"), at("out.kvist")
	writeRows(t, in, evil, map[string]string{evil: evil, "model": evil})
	damaged := at("damaged.kvist")
	seen := 0
	for _, args := range [][]string{
		{"compress", in, "-o", out, "--form", "hot", "--verbose"},
		{"compress", in, "-o", at("archive.kvist"), "--json"},
		{"compress", in, "-o", out}, // it exists
		{"verify", out, "--against", in}, {"verify", out, "--against", in, "--json"},
		{"inspect", in}, {"inspect", in, "--json", "--spectrum"},
		{"inspect", out}, {"inspect", out, "--json", "--records"}, {"inspect", out, "--bytes"},
		{"report", out, "-o", at("page.html"), "--against", in},
		{"report", out, "-o", "-"}, {"report", out, "-o", "-", "--json"},
		{"decompress", out, "-o", at("back.safetensors"), "--json"},
		{"verify", damaged}, {"verify", damaged, "--json"},
		{"decompress", damaged, "-o", at("rest.safetensors"), "--salvage"},
		{"inspect", at("missing")}, {"inspect", evil}, {evil}, {"help", evil}, {"completion", evil},
		{"compress", in, "-o", out, "--" + evil}, {"compress", in, "-o", out, "--bits", evil},
		{"compress", in, "-o", out, "--importance", evil}, {"compress", in, "-o", out, "--coding", evil},
		{"compress", in, "-o", out, "--backend", evil}, {"__complete", "compress", "--form", evil},
	} {
		if slices.Contains(args, damaged) {
			b, err := os.ReadFile(out)
			require.NoError(t, err)
			b[len(b)/2] ^= 0xff
			require.NoError(t, os.WriteFile(damaged, b, 0o600))
		}
		status, stdout, stderr := command(t, "", args...)
		if args[0] == "compress" && len(args) == 7 {
			require.Equal(t, exitOK, status, stderr)
		}
		requireSeen(t, stdout, "%q", args)
		requireSeen(t, stderr, "%q", args)
		require.NotContains(t, "\n"+stdout+"\n"+stderr, "\nkvist: intact", "%q forges a line", args)
		if strings.Contains(stdout+stderr, `\u202e`) {
			seen++
		}
	}
	require.Greater(t, seen, 15, "it is shown, not dropped")
	page, err := os.ReadFile(at("page.html"))
	require.NoError(t, err)
	requireSeen(t, string(page))
}

// What is no text goes to standard output as it is.
func TestTerminal_FilesPassUnchanged(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.safetensors"), filepath.Join(dir, "out.kvist")
	writeRows(t, in, "x\u009b", nil)
	status, _, stderr := command(t, "", "compress", in, "-o", out)
	require.Equal(t, exitOK, status, stderr)
	want, err := os.ReadFile(out)
	require.NoError(t, err)
	status, stdout, stderr := command(t, "", "compress", in, "-o", "-")
	require.Equal(t, exitOK, status, stderr)
	require.True(t, string(want) == stdout, "the file on standard output is the file")
	require.NotEqual(t, visible.Text(stdout), stdout, "it holds bytes that would be shown")
}

// JSON says the same as before: what a terminal would act on is escaped as JSON does it.
func TestTerminal_JSONKeepsStrings(t *testing.T) {
	in := filepath.Join(t.TempDir(), "in.safetensors")
	writeRows(t, in, "x", map[string]string{"k": evil})
	_, stdout, _ := command(t, "", "inspect", in, "--json")
	requireSeen(t, stdout)
	var v struct{ Metadata map[string]string }
	require.NoError(t, json.Unmarshal([]byte(stdout), &v))
	require.Equal(t, evil, v.Metadata["k"])
}

// Completion scripts are programs of the shell: they come out byte by byte.
func TestTerminal_CompletionScriptsPassUnchanged(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		status, stdout, stderr := command(t, "", "completion", shell)
		require.Equal(t, exitOK, status, stderr)
		root := newRoot(&app{})
		var want bytes.Buffer
		require.NoError(t, map[string]func() error{
			"bash": func() error { return root.GenBashCompletionV2(&want, true) },
			"zsh":  func() error { return root.GenZshCompletion(&want) },
			"fish": func() error { return root.GenFishCompletion(&want, true) },
			"powershell": func() error {
				return root.GenPowerShellCompletionWithDesc(&want)
			}}[shell]())
		require.Equal(t, want.String(), stdout)
	}
}

// The results that eval shows again may come from anybody.
func TestTerminal_EvalResults(t *testing.T) {
	dir := t.TempDir()
	b, err := os.ReadFile("../../bench/results/quality.json")
	require.NoError(t, err)
	var res *quality.Results
	res, err = quality.ReadResults(bytes.NewReader(b))
	require.NoError(t, err)
	format := res.Format
	res = visible.Map(res, func(s string) string { return s + evil })
	res.Format = format
	from := filepath.Join(dir, "results.json")
	f, err := os.Create(from)
	require.NoError(t, err)
	require.NoError(t, json.NewEncoder(f).Encode(res))
	require.NoError(t, f.Close())
	page, plot := filepath.Join(dir, "page.html"), filepath.Join(dir, "plot.svg")
	status, stdout, stderr := command(t, "", "eval", "--from", from, "--html", page, "--plot", plot,
		"--results", dir)
	requireSeen(t, stdout)
	requireSeen(t, stderr)
	if status != exitOK {
		t.Fatalf("exit status %d: %s", status, stderr)
	}
	for _, name := range []string{page, plot, filepath.Join(dir, "quality.md"),
		filepath.Join(dir, "quality.json"), filepath.Join(dir, "quality.svg")} {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		requireSeen(t, string(b), name)
	}
}

// A string of a file takes a stated part of what is printed, however long it is.
func TestInspect_LongStringsAreCut(t *testing.T) {
	in := filepath.Join(t.TempDir(), "in.safetensors")
	const long = 6 << 20
	writeRows(t, in, "x", map[string]string{"k": strings.Repeat("v", long), strings.Repeat("k", 1000): "v"})
	status, stdout, stderr := command(t, "", "inspect", in)
	require.Equal(t, exitOK, status, stderr)
	require.Less(t, len(stdout), 16<<10)
	require.Contains(t, stdout, "... (6291200 more bytes)")
	require.Contains(t, stdout, "... (744 more bytes)")
	status, stdout, stderr = command(t, "", "inspect", in, "--json")
	require.Equal(t, exitOK, status, stderr)
	require.Less(t, len(stdout), 4*maxJSON)
	var v struct{ Metadata map[string]string }
	require.NoError(t, json.Unmarshal([]byte(stdout), &v))
	require.Equal(t, strings.Repeat("v", maxJSON)+"... (6225920 more bytes)", v.Metadata["k"])
	require.Equal(t, "v", v.Metadata[strings.Repeat("k", 1000)])
}

// An error of any length is a line of bounded length.
func TestErrors_AreBounded(t *testing.T) {
	var stdout, stderr bytes.Buffer
	status := run(context.Background(), []string{strings.Repeat("v", 1<<20)}, nil, &stdout, &stderr)
	require.Equal(t, exitUsage, status)
	require.Less(t, stderr.Len(), 2*maxLine)
	require.Contains(t, stderr.String(), "more bytes)")
}
