// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/attack"
	"github.com/kvist-project/kvist/engine/capture"
)

// What attacks start from, by name in one folder: a small model, and what is made with it.
const (
	seedModel   = "model.gguf"
	seedText    = "text.txt"
	seedCapture = "capture.safetensors"
	seedRows    = "rows.npy"
	seedTensors = "tensors.safetensors"
	seedWeights = "weights.npy"
	seedOwn     = "weights.safetensors"
	seedProfile = "own.kvprofile"
	seedCoded   = "profile.kvist" // an archive made with seedProfile
	seedHot     = "hot.kvist"
	seedWindows = "windows.safetensors" // of layers that differ
	seedVectors = "vectors.npy"
	seedFvecs   = "vectors.fvecs"
	seedIndex   = "index.kvist" // of seedVectors
	seedChat    = "said.kvchat" // of /save
	seedRecord  = "record.json" // of bench
	seedStates  = "llama.gguf"  // the model of states of llama.cpp, state-*.bin
)

// makeSeeds fills a folder with seeds, through the program itself, and adds the golden files.
func makeSeeds(t *testing.T, dir string) {
	write := func(name string, b []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	}
	write(seedModel, attack.GGUF())
	write(seedText, []byte(strings.Repeat("The ship left the harbour at noon, and nobody saw it again. ", 8)))
	do := func(args ...string) {
		t.Helper()
		for i, a := range args {
			if strings.HasPrefix(a, "@") {
				args[i] = filepath.Join(dir, a[1:])
			}
		}
		var out bytes.Buffer
		require.Zero(t, run(context.Background(), args, strings.NewReader(""), &out, &out), "%v: %s", args, &out)
	}
	do("capture", "@"+seedModel, "@"+seedText, "-o", "@"+seedCapture, "--context", "192", "--next", "32")
	do("calibrate", "@"+seedCapture, "-o", "@"+seedProfile)
	makeRows(t, dir)
	in, profile := "@"+seedCapture, "@"+seedProfile
	do("compress", in, "-o", "@"+seedHot, "--form", "hot", "--bits", "6", "--segment", "64", "--weights", "@"+seedWeights)
	do("compress", in, "-o", "@plain.kvist", "--form", "hot", "--bits", "6")
	do("compress", in, "-o", "@archive.kvist", "--form", "archive", "--bits", "6", "--segment", "64")
	do("compress", in, "-o", "@streams.kvist", "--form", "archive", "--bits", "6", "--streams", "3")
	do("compress", in, "-o", "@lossless.kvist", "--lossless")
	do("compress", in, "-o", "@"+seedCoded, "--form", "archive", "--bits", "5", "--profile", profile)
	do("compress", "@"+seedRows, "-o", "@rows-hot.kvist", "--form", "hot", "--bits", "8")
	do("compress", "@"+seedTensors, "-o", "@rows-archive.kvist", "--form", "archive", "--bits", "24")
	writeWindowed(t, filepath.Join(dir, seedWindows), 100)
	windows := "@" + seedWindows
	do("compress", windows, "-o", "@windows-hot.kvist", "--form", "hot", "--bits", "6", "--segment", "32")
	do("compress", windows, "-o", "@windows-archive.kvist", "--form", "archive", "--bits", "6", "--segment", "32")
	do("embed", "compress", "@"+seedVectors, "-o", "@"+seedIndex, "--bytes", "30")
	do("embed", "compress", "@"+seedFvecs, "-o", "@index-oblivious.kvist", "--bits", "2", "--metric", "l2", "--oblivious")
	for from, to := range map[string]string{"llamastate/testdata/llama-f16-transposed.bin": "state-f16.bin",
		"llamastate/testdata/turned-q4_0.bin": "state-q4_0.bin", "llamastate/testdata/gemma3-f16.bin": "state-windows.bin",
		"llamastate/testdata/llama-f16-session.bin": "state-session.bin", "model/testdata/models/llama.gguf": seedStates} {
		b, err := os.ReadFile("../../engine/" + from)
		require.NoError(t, err)
		write(to, b)
	}
	do("compress", "@state-f16.bin", "-o", "@state-archive.kvist", "--model", "@"+seedStates, "--bits", "20")
	do("compress", "@state-q4_0.bin", "-o", "@state-lossless.kvist", "--lossless")
	makeChat(t, filepath.Join(dir, seedModel), filepath.Join(dir, seedChat))
	golden, err := filepath.Glob("../../testdata/golden/v1/*.kv*")
	require.NoError(t, err)
	require.NotEmpty(t, golden)
	for _, name := range golden {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		write("golden-"+filepath.Base(name), b)
	}
}

// makeChat saves a conversation with a model.
func makeChat(t *testing.T, model, name string) {
	var out bytes.Buffer
	args := []string{"chat", model, "--format", "chatml", "--kv-budget", "1MiB", "--max-tokens", "8"}
	said := strings.Repeat("The ship left the harbour. ", 12) + "\n/save " + name + "\n"
	require.Zero(t, run(context.Background(), args, strings.NewReader(said), &out, &out), "%s", &out)
	require.FileExists(t, name, "%s", &out)
}

// typed is what a command line of readings gets on its standard input.
func typed(args []string, file string) string {
	if args[0] == "chat" {
		return "/load " + file + "\n/memory\nWhy?\n"
	}
	return ""
}

// makeRows writes rows, vectors and weights.
func makeRows(t *testing.T, dir string) {
	values := func(n int) (b []byte) {
		for i := range n {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(1+math.Sin(float64(i*i%997)))))
		}
		return b
	}
	fill := func(name string, decls []capture.Decl, npy bool) {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		var w *capture.Writer
		if npy {
			w, err = capture.NewNpyWriter(f, decls[0])
		} else {
			w, err = capture.NewWriter(f, decls, map[string]string{"made": "for attacks"})
		}
		require.NoError(t, err)
		for _, d := range w.Tensors() {
			require.NoError(t, w.WriteAt(d.Name, 0, values(int(d.Bytes)/4)))
		}
		require.NoError(t, w.Close())
		require.NoError(t, f.Close())
	}
	one := func(name string, shape ...int64) []capture.Decl {
		return []capture.Decl{{Name: name, DTypeName: "F32", Shape: shape}}
	}
	fill(seedRows, one("", 96, 24), true)
	fill(seedVectors, one("", 128, 20), true)
	var fvecs []byte
	for vectors := values(128 * 20); len(vectors) > 0; vectors = vectors[80:] {
		fvecs = append(binary.LittleEndian.AppendUint32(fvecs, 20), vectors[:80]...)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, seedFvecs), fvecs, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, seedRecord), []byte(recordSeed), 0o644))
	fill(seedWeights, one("", 192), true)
	fill(seedOwn, one("layers.0.weights", 1, 192), false)
	fill(seedTensors, append(append(one("a", 40, 16), one("b", 3, 4, 8)...), one("side", 5)...), false)
}

// recordSeed is a record of kvist bench.
const recordSeed = `{"format": "kvist-bench/1", "version": "v", "command": "kvist bench", "date": "2026-12-01",
"machine": {"processor": "P", "cores": 2, "memory_bytes": 9000000000, "os": "linux", "arch": "amd64"},
"backend": {"name": "cpu", "isa": "avx2", "memory_bytes": 9000000000}, "threads": 2, "working_set_bytes": 1000000,
"noise": {"spread": 0.01, "waiting": 0.02}, "results": [
{"name": "attend/head_dim=64/gqa=3/kv_heads=3/coding=f16/context=8192/threads=2", "unit": "row pair",
"ns": {"median": 30, "low": 29, "high": 31}, "cpu_ns": {"median": 60, "low": 59, "high": 61}, "bytes": 256, "plain_bytes": 256,
"threads": 2, "baseline": "read", "relative": [{"median": 5, "low": 4, "high": 6}, {"median": 5.1, "low": 4, "high": 6}], "runs": 9},
{"name": "attend/head_dim=64/gqa=3/kv_heads=3/coding=f16/context=1024/threads=2", "unit": "row pair",
"ns": {"median": 20, "low": 19, "high": 21}, "cpu_ns": {"median": 40, "low": 39, "high": 41}, "bytes": 48, "plain_bytes": 256,
"threads": 2, "baseline": "read", "relative": [{"median": 3, "low": 2, "high": 4}, {"median": 3.1, "low": 2, "high": 4}], "runs": 9},
{"name": "serve/op=step/seqs=8/threads=2", "unit": "token", "ns": {"median": 300, "low": 290, "high": 310}, "device_ns":
{"median": 100, "low": 90, "high": 110}, "threads": 2, "baseline": "none", "relative": [{"median": 3, "low": 2, "high": 4}], "runs": 9}]}`

// originalOf is what a seed was made from.
func originalOf(seed string) string {
	switch seed {
	case "rows-hot.kvist":
		return seedRows
	case "rows-archive.kvist":
		return seedTensors
	case "windows-hot.kvist", "windows-archive.kvist":
		return seedWindows
	case seedIndex, "index-oblivious.kvist":
		return seedVectors
	}
	return seedCapture
}

// placed returns a command line of readings with the names of files in it.
func placed(line []string, dir, work, file, seed string) []string {
	args := slices.Clone(line)
	for i, a := range args {
		switch {
		case a == "F":
			args[i] = file
		case a == "@":
			args[i] = filepath.Join(dir, originalOf(seed))
		case strings.HasPrefix(a, "O"):
			args[i] = filepath.Join(work, "out"+a[1:])
		case strings.HasPrefix(a, "@"):
			args[i] = filepath.Join(dir, a[1:])
		}
	}
	return args
}

// TestAttack_Readings holds that the command lines of an attack do read: each of them succeeds with a
// seed as it is.
func TestAttack_Readings(t *testing.T) {
	dir := t.TempDir()
	makeSeeds(t, dir)
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	worked, said := map[string]bool{}, map[string]string{}
	for _, e := range list {
		work := t.TempDir()
		file := filepath.Join(work, "file"+filepath.Ext(e.Name()))
		for _, line := range readings(e.Name()) {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file, b, 0o644))
			var out bytes.Buffer
			args := placed(line, dir, work, file, e.Name())
			code := run(context.Background(), args, strings.NewReader(typed(args, file)), &out, &out)
			require.NotEqual(t, exitUsage, code, "%v: %s", line, &out)
			require.NoError(t, os.RemoveAll(filepath.Join(work, "out")))
			require.NoError(t, os.RemoveAll(filepath.Join(work, "out.kvprofile")))
			key := filepath.Ext(e.Name()) + " " + strings.Join(line, " ")
			worked[key] = worked[key] || code == exitOK
			said[key] += out.String()
		}
	}
	liftMemory()
	// Nothing but capture takes a text, .fvecs is for embed alone, and rows are of no model.
	never := regexp.MustCompile(`^\.txt (inspect|compress|verify)|^\.(gguf|fvecs|kvchat) inspect|^\.npy (calibrate|tune|verify|report)`)
	for key, ok := range worked {
		if !never.MatchString(key) {
			require.True(t, ok, "%s: %s", key, said[key])
		}
	}
}

// readings are the command lines that read a file F of a kind, by what its name ends on. O is an output,
// @name a seed, @ the one that the seed was made from.
func readings(name string) [][]string {
	lines := func(s string) (list [][]string) {
		for line := range strings.Lines(s) {
			if f := strings.Fields(line); len(f) > 0 {
				list = append(list, f)
			}
		}
		return list
	}
	switch {
	case name == seedRecord:
		return lines(`bench --from F
bench --from F --html O
bench --from F --compare @record.json --json
bench --from @record.json --compare F --go-bench`)
	case strings.HasPrefix(name, "index"):
		return lines(`embed inspect F
embed inspect F --json
embed search F --queries @
embed search F --queries @ --exhaustive --rescore @ --json
verify F
inspect F`)
	case strings.HasPrefix(name, "vectors"):
		return lines(`embed compress F -o O --bits 3
embed compress F -o O --bits 2 --oblivious --metric cosine
embed search @index.kvist --queries F
embed search @index.kvist --queries @vectors.npy --rescore F
embed eval F --queries @vectors.npy --bytes 30 --calibrate-on F
inspect F`)
	}
	switch filepath.Ext(name) {
	case ".bin":
		return lines(`inspect F
inspect F --json
compress F -o O --lossless
compress F -o O --model @llama.gguf --bits 20
compress F -o O --model @llama.gguf --form hot --bits 20 --run-model=false`)
	case ".kvist":
		return lines(`verify F
verify F --profile @own.kvprofile --json
verify F --profile @own.kvprofile --against @
inspect F
inspect F --bytes
inspect F --records --spectrum --json
inspect F --why --against @
report F -o O
decompress F -o O --profile @own.kvprofile
decompress F -o O --salvage
truncate F -o O --bits 4 --force
compress F -o O --form hot --bits 16 --profile @own.kvprofile
compress F -o O --form hot --bits 16
compress F -o O --form archive --profile @own.kvprofile --bits 6`)
	case ".kvprofile":
		return lines(`inspect F
inspect F --json
inspect F --bytes
verify @profile.kvist --profile F
decompress @profile.kvist -o O --profile F
compress @capture.safetensors -o O --form archive --profile F --bits 6
compress @capture.safetensors -o O --form hot --profile F --bits 6
calibrate -o F --also-named other`)
	case ".gguf":
		return lines(`capture F @text.txt -o O --context 32 --next 8
eval F @text.txt --context 32 --next 8 --methods f16 --results O
inspect F`)
	case ".kvchat":
		return lines(`chat @model.gguf --format chatml --kv-budget 1MiB --max-tokens 4
inspect F`)
	case ".txt":
		return lines(`capture @model.gguf F -o O --context 32 --next 8
inspect F
compress @capture.safetensors --weights F -o O
verify @hot.kvist --profile F`)
	}
	if strings.HasPrefix(name, "weights") {
		return lines(`compress @capture.safetensors --weights F -o O --form hot --bits 6
inspect @hot.kvist --why --against @capture.safetensors --weights F`)
	}
	return lines(`inspect F
inspect F --spectrum --json
compress F -o O --form hot --bits 24
compress F -o O --form archive --bits 24
compress F -o O --lossless
verify @hot.kvist --against F
report @hot.kvist --against F -o O
calibrate F -o O.kvprofile
tune F -o O.kvprofile --evaluations 1 --bits 6`)
}
