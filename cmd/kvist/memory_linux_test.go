// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/attack"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// peakVariable makes of the test binary the program, which says at its end on standard error what memory it
// took. Neither wait4 nor getrusage tells: both count what the process that started it had.
const peakVariable = "KVIST_PEAK"

func peakChild() int {
	code := mainCode()
	peak, err := peakMemory()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	fmt.Fprintf(os.Stderr, "\npeak %d\n", peak)
	return code
}

// peakOf runs one command line in a process of its own.
func peakOf(t *testing.T, args ...string) (peak int64, code int, said string) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), peakVariable+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	text, tail, ok := strings.Cut(out.String(), "\npeak ")
	require.True(t, ok, "%v: %s", args, &out)
	_, err = fmt.Sscan(tail, &peak)
	require.NoError(t, err)
	return peak, cmd.ProcessState.ExitCode(), text
}

// randomCapture writes a capture of one model with noise for K and V.
func randomCapture(t *testing.T, path string, layers, kvHeads, dim, tokens int) {
	g := quant.Geometry{Layers: layers, Heads: kvHeads, KVHeads: kvHeads, HeadDim: dim, HeadDimV: dim}
	g.Rope.Layout = quant.RopeNone
	var decls []capture.Decl
	for l := range layers {
		for _, side := range []string{"k", "v"} {
			decls = append(decls, capture.Decl{Name: fmt.Sprintf("layers.%d.%s", l, side), DTypeName: "F16",
				Shape: []int64{int64(kvHeads), int64(tokens), int64(dim)}})
		}
	}
	meta := capture.KVMetadata(g, "noise", 0)
	meta["rope_applied"] = "true"
	f, err := os.Create(path)
	require.NoError(t, err)
	w, err := capture.NewWriter(f, decls, meta)
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(7, 7))
	data := make([]byte, 2*kvHeads*tokens*dim)
	for _, d := range w.Tensors() {
		for i := 0; i < len(data); i += 2 {
			binary.LittleEndian.PutUint16(data[i:], quant.F32ToF16(float32(r.NormFloat64())))
		}
		require.NoError(t, w.WriteAt(d.Name, 0, data))
	}
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
}

// TestMemory holds what every verb that reads a .kvist file takes, beside the code of the program that is in
// memory: 32 MiB and four times what its largest record stands for.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("seconds")
	}
	const layers, kvHeads, dim, tokens, segment = 2, 4, 128, 8192, 8192
	own, code, said := peakOf(t, "version")
	require.Zero(t, code, said)
	own += 32 << 20
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	in, out := at("in.safetensors"), at("out")
	randomCapture(t, in, layers, kvHeads, dim, tokens)
	for _, how := range []string{"--form hot --bits 4 --segment 8192", "--form archive --bits 3 --segment 8192 --streams 3",
		"--form archive --bits 4 --segment 512", "--lossless"} {
		file := at("file.kvist")
		args := append([]string{"compress", in, "-o", file, "--force"}, strings.Fields(how)...)
		_, code, said := peakOf(t, args...)
		require.Zero(t, code, said)
		for _, verb := range []string{"verify F", "inspect F", "inspect F --json", "report F -o O --force",
			"report F -o O --json --force", "decompress F -o O --force", "decompress F -o O --salvage --force",
			"truncate F -o O --bits 2.2 --force"} {
			args := strings.Fields(verb)
			for i, a := range args {
				args[i] = map[string]string{"F": file, "O": out}[a]
				if args[i] == "" {
					args[i] = a
				}
			}
			peak, code, said := peakOf(t, args...)
			if !strings.HasPrefix(verb, "truncate") || strings.Contains(how, "streams") { // else nothing to leave out
				require.Zero(t, code, "%s: %s: %s", how, verb, said)
			}
			limit := own + 4*(segment*kvHeads*dim*2*2)
			if strings.Contains(how, "512") {
				limit = own + 4*(512*kvHeads*dim*2*2)
			}
			t.Logf("%s: %s took %d of %d MiB", how, verb, peak>>20, limit>>20)
			require.LessOrEqual(t, peak, limit, "%s: %s took %d MiB, want at most %d", how, verb, peak>>20, limit>>20)
		}
	}
}

// promising is a file of some 200 bytes with one record of 32768 dropped tokens; its header says rows of
// 16384 values, so that it stands for 2 GiB.
func promising(t *testing.T) []byte {
	h := &container.Header{Kind: container.KindCache, Tokens: 32768, SegmentTokens: 32768, Layers: []int{0},
		KType: quant.Float16, VType: quant.Float16,
		Geometry: quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8}}
	all := make([]uint16, 32768)
	for i := range all {
		all[i] = uint16(i)
	}
	var b bytes.Buffer
	w, err := container.NewWriter(&b, h)
	require.NoError(t, err)
	require.NoError(t, w.WriteRecord(&container.Record{Heads: []container.Head{{Blocks: []container.Block{
		{Level: quant.Dropped, Tokens: all}}}}}))
	require.NoError(t, w.Close())
	const headDim = 32 + 12 // of the geometry, which is the first field
	return attack.SetHeader(b.Bytes(), headDim, 0, 0x40, 0, 0, 0, 0x40, 0, 0)
}

// Every verb refuses a record that stands for more than the limit, by name, and takes no memory for it.
func TestMemory_Promises(t *testing.T) {
	dir := t.TempDir()
	file, out := filepath.Join(dir, "small.kvist"), filepath.Join(dir, "out")
	require.NoError(t, os.WriteFile(file, promising(t), 0o644))
	for _, args := range [][]string{{"verify", file}, {"inspect", file}, {"inspect", file, "--bytes"},
		{"report", file, "-o", out}, {"decompress", file, "-o", out}, {"decompress", file, "-o", out, "--salvage"},
		{"truncate", file, "-o", out, "--bits", "1"}, {"compress", file, "-o", out}, {"verify", file, "--json"}} {
		peak, code, said := peakOf(t, args...)
		require.Equal(t, exitDamaged, code, "%v: %s", args, said)
		require.Contains(t, said, "record layer 0 segment 0", "%v", args)
		require.Contains(t, said, "2147483648 bytes, the limit is 117440512", "%v", args)
		require.Contains(t, said, "small.kvist", "%v", args)
		require.Less(t, peak, int64(64<<20), "%v", args)
		require.NoFileExists(t, out)
	}
}

// cpuTime is what this process has used.
func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Work is in proportion to the number of tensors: four times as many must not take 16 times the time.
func TestManyTensors(t *testing.T) {
	if testing.Short() {
		t.Skip("seconds")
	}
	dir := t.TempDir()
	for _, form := range [][]string{{"--form", "hot"}, {"--form", "archive"}} {
		took := map[int]map[string]time.Duration{}
		for _, n := range []int{4000, 16000} {
			in, file, out := filepath.Join(dir, "in.safetensors"), filepath.Join(dir, "f.kvist"), filepath.Join(dir, "out")
			manyTensors(t, in, n)
			took[n] = map[string]time.Duration{}
			for _, args := range [][]string{append([]string{"compress", in, "-o", file, "--bits", "60", "--force"}, form...),
				{"inspect", in}, {"inspect", file}, {"verify", file, "--against", in}, {"report", file, "-o", out, "--force"},
				{"decompress", file, "-o", out, "--force"}, {"decompress", file, "-o", out, "--salvage", "--force"}} {
				start := cpuTime(t)
				var said bytes.Buffer
				require.Zero(t, run(context.Background(), args, strings.NewReader(""), &said, &said), "%v: %s", args, &said)
				took[n][strings.Join(append(args[:1:1], args[len(args)-2:]...), " ")] += cpuTime(t) - start
			}
			liftMemory()
		}
		for what, many := range took[16000] {
			few := took[4000][what]
			require.Less(t, many, 9*few+time.Second/2, "%s of 4000 tensors took %v", what, few)
		}
	}
}

// manyTensors writes a file of n tensors of one row each.
func manyTensors(t *testing.T, path string, n int) {
	var decls []capture.Decl
	for i := range n {
		decls = append(decls, capture.Decl{Name: fmt.Sprintf("tensor.%d", i), DTypeName: "F32", Shape: []int64{1, 32}})
	}
	f, err := os.Create(path)
	require.NoError(t, err)
	w, err := capture.NewWriter(f, decls, nil)
	require.NoError(t, err)
	row := make([]byte, 128)
	for i, d := range w.Tensors() {
		for j := range 32 {
			binary.LittleEndian.PutUint32(row[4*j:], 0x3f800000+uint32(i*31+j*j*4099)%0x7fffff)
		}
		require.NoError(t, w.WriteAt(d.Name, 0, row))
	}
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
}
