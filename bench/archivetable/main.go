// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command archivetable runs kvist compress and kvist decompress over a capture, on one core and on
// all, and over the same rows several times over, and writes what they took: times of the clock and of the
// processor, and the most memory the process held. Raw numbers are appended to a file, which may
// hold Go benchmarks of the codec already; a table of all goes to standard output.
//
//	go run ./bench/archivetable -kvist PROGRAM -capture FILE -profile FILE RAW > TABLE.md
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kvist-project/kvist/engine/capture"
)

var errNoRaw = errors.New("want one argument: the file of raw numbers")

type options struct {
	kvist, capture, profile string
	runs                    int
}

func main() {
	var o options
	flag.StringVar(&o.kvist, "kvist", "", "`PROGRAM` to run")
	flag.StringVar(&o.capture, "capture", "", "capture `FILE` with queries")
	flag.StringVar(&o.profile, "profile", "", "profile `FILE` of its model")
	flag.IntVar(&o.runs, "runs", 5, "`times` each verb is run")
	flag.Parse()
	if err := o.run(flag.Args(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "archivetable:", err)
		os.Exit(1)
	}
}

func (o *options) run(args []string, w io.Writer) (err error) {
	if len(args) != 1 {
		return errNoRaw
	}
	dir, err := os.MkdirTemp("", "archivetable")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	verbs, err := o.verbs(dir)
	if err != nil {
		return err
	}
	sizes, err := o.sizes(dir)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	codec, err := io.ReadAll(f)
	if err == nil {
		for _, m := range append(verbs, sizes...) {
			if _, err = fmt.Fprintln(f, m.raw()); err != nil {
				break
			}
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return table(w, codecRows(string(codec)), verbs, sizes)
}

// measured is a run of a verb, the quickest of several.
type measured struct {
	verb, with string // compress; "profile"
	cores      int
	tokens     int
	bytes      int64 // of K and V as f16
	wall, cpu  time.Duration
	peak       int64 // bytes
}

func (m *measured) raw() string {
	return fmt.Sprintf("verb=%s/with=%s/cores=%d/tokens=%d f16-bytes=%d wall-s=%.4f cpu-s=%.4f peak-bytes=%d",
		m.verb, m.with, m.cores, m.tokens, m.bytes, m.wall.Seconds(), m.cpu.Seconds(), m.peak)
}

func rate(bytes int64, d time.Duration) string {
	return strconv.FormatFloat(float64(bytes)/1e6/d.Seconds(), 'f', 0, 64)
}

// verbs measures the whole of each verb, input and output included.
func (o *options) verbs(dir string) ([]*measured, error) {
	var all []*measured
	for _, with := range []string{"profile", "file", "lossless"} {
		cores := []int{1}
		if n := runtime.NumCPU(); n > 1 {
			cores = append(cores, n)
		}
		for _, n := range cores {
			c, d, err := o.both(dir, o.capture, with, n, o.runs)
			if err != nil {
				return nil, err
			}
			all = append(all, c, d)
		}
	}
	return all, nil
}

// both compresses and decompresses, several times. with says what the archive is made with: a
// profile, what is fitted to the file, or nothing because it is lossless.
func (o *options) both(dir, input, with string, cores, runs int) (c, d *measured, err error) {
	made, back := filepath.Join(dir, "x.kvist"), filepath.Join(dir, "x.safetensors")
	compress := []string{"compress", input, "-o", made, "--force"}
	decompress := []string{"decompress", made, "-o", back, "--force"}
	switch with {
	case "lossless":
		compress = append(compress, "--lossless")
	case "profile":
		compress = append(compress, "--bits", "1.8", "--profile", o.profile)
		decompress = append(decompress, "--profile", o.profile)
	default:
		compress = append(compress, "--bits", "1.8")
	}
	tokens, bytes, err := sizeOf(input)
	if err != nil {
		return nil, nil, err
	}
	c = &measured{verb: "compress", with: with, cores: cores, tokens: tokens, bytes: bytes}
	d = &measured{verb: "decompress", with: with, cores: cores, tokens: tokens, bytes: bytes}
	for range runs {
		if err := c.take(o.kvist, compress); err != nil {
			return nil, nil, err
		}
		if err := d.take(o.kvist, decompress); err != nil {
			return nil, nil, err
		}
	}
	return c, d, nil
}

// take runs the program once more and keeps the least times and the most memory.
func (m *measured) take(program string, args []string) error {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(m.cores))
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	wall := time.Since(start)
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	cpu := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if m.wall == 0 {
		m.wall, m.cpu = wall, cpu
	}
	m.wall, m.cpu, m.peak = min(m.wall, wall), min(m.cpu, cpu), max(m.peak, u.Maxrss<<10)
	return nil
}

// sizes measures memory over captures that hold the rows of the input once, twice and so on.
func (o *options) sizes(dir string) ([]*measured, error) {
	var all []*measured
	input := filepath.Join(dir, "many.safetensors")
	for _, times := range []int{1, 4, 8} {
		if err := repeat(o.capture, input, times); err != nil {
			return nil, err
		}
		for _, with := range []string{"profile", "file"} {
			c, d, err := o.both(dir, input, with, runtime.NumCPU(), 1)
			if err != nil {
				return nil, err
			}
			all = append(all, c, d)
		}
	}
	return all, nil
}

func sizeOf(path string) (tokens int, bytes int64, err error) {
	src, err := capture.Open(path, capture.Limits{})
	if err != nil {
		return 0, 0, err
	}
	g := src.Info().Geometry
	bytes = 2 * int64(len(src.Info().Layers)) * int64(g.KVHeads) * int64(src.Info().Tokens) * int64(g.HeadDim+g.HeadDimV)
	return src.Info().Tokens, bytes, src.Close()
}

// repeat writes a capture whose tokens are those of another, so many times over.
func repeat(from, to string, times int) (err error) {
	src, err := capture.Open(from, capture.Limits{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	var decls []capture.Decl
	var tensors []capture.Tensor
	heads := []int{}
	g := src.Info().Geometry
	for _, n := range src.Info().Layers {
		for _, p := range []capture.Part{capture.K, capture.V, capture.Q} {
			t, ok := src.KV(n, p)
			if !ok {
				continue
			}
			h := g.KVHeads
			if p == capture.Q {
				h = g.Heads
			}
			tensors, heads = append(tensors, t), append(heads, h)
			decls = append(decls, capture.Decl{Name: t.Name(), DTypeName: t.DType().String(),
				Shape: []int64{int64(h), int64(times * t.Rows()), int64(t.Dim())}})
		}
	}
	w, err := capture.NewWriter(out, decls, capture.KVMetadata(g, src.Info().Model, src.Info().FirstPosition))
	if err != nil {
		return err
	}
	for i, t := range tensors {
		rows := make([]byte, t.Rows()*t.RowBytes())
		for h := range heads[i] {
			if err := t.Read(h, 0, t.Rows(), rows); err != nil {
				return err
			}
			for k := range times {
				if err := w.WriteAt(t.Name(), int64(h*times+k)*int64(len(rows)), rows); err != nil {
					return err
				}
			}
		}
	}
	return w.Close()
}

// codecRow is a benchmark of the codec, the best of several.
type codecRow struct {
	name string
	bits string
	best float64
}

// codecRows reads the lines of Go benchmarks that have cpu-MB/s.
func codecRows(text string) (rows []*codecRow) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		if len(rows) == 0 || rows[len(rows)-1].name != f[0] {
			rows = append(rows, &codecRow{name: f[0]})
		}
		r := rows[len(rows)-1]
		for i := 2; i < len(f); i += 2 {
			switch v, unit := f[i], strings.Join(f[i+1:min(i+2, len(f))], ""); unit {
			case "cpu-MB/s":
				if x, err := strconv.ParseFloat(v, 64); err == nil {
					r.best = max(r.best, x)
				}
			case "bits/value":
				r.bits = v
			}
		}
	}
	return rows
}

// table writes all of it as Markdown.
func table(w io.Writer, codec []*codecRow, verbs, sizes []*measured) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Speed and memory of the archive\n\nmake bench-archive, %s/%s, %d cores. MB are of K and V as "+
		"f16, in both directions. cpu-MB/s: by the processor time\nof the process, what one core gives. The quickest "+
		"of several runs; memory is the most of any.\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if len(codec) > 0 {
		b.WriteString("\n## The codec alone\n\n| benchmark | bits/value | cpu-MB/s |\n|---|---|---|\n")
		for _, r := range codec {
			fmt.Fprintf(&b, "| %s | %s | %.0f |\n", strings.TrimPrefix(r.name, "Benchmark"), r.bits, r.best)
		}
	}
	b.WriteString("\n## The verbs, files and start of the program included\n\n" +
		"| verb | made with | cores | MB | wall MB/s | cpu-MB/s | peak MB |\n|---|---|---|---|---|---|---|\n")
	for _, m := range verbs {
		fmt.Fprintf(&b, "| %s | %s | %d | %.1f | %s | %s | %.0f |\n", m.verb, m.with, m.cores, float64(m.bytes)/1e6,
			rate(m.bytes, m.wall), rate(m.bytes, m.cpu), float64(m.peak)/1e6)
	}
	b.WriteString("\n## Memory over sizes\n\nThe rows of the capture once, 4 and 8 times over, on all cores.\n\n" +
		"| verb | made with | tokens | MB | cpu-MB/s | peak MB |\n|---|---|---|---|---|---|\n")
	for _, m := range sizes {
		fmt.Fprintf(&b, "| %s | %s | %d | %.1f | %s | %.0f |\n", m.verb, m.with, m.tokens, float64(m.bytes)/1e6,
			rate(m.bytes, m.cpu), float64(m.peak)/1e6)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
