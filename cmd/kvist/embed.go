// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

// newEmbed is the verb for embeddings, which has verbs of its own.
func newEmbed(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "embed",
		Short: "Store embeddings at 1 to 6 bits a value, and search them",
		Long: `embed makes an index of vectors, searches it, and measures how much of the exact result it finds.

Vectors are read from .npy, .npz and safetensors files (rows of f16, bf16, f32 or f64), and from .fvecs.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := noVerb(cmd, args, "verb of embed"); err != nil {
				return err
			}
			return usagef("no verb given: want one of compress, search, eval, inspect")
		},
	}
	cmd.AddCommand(newEmbedCompress(a), newEmbedSearch(a), newEmbedEval(a), newEmbedInspect(a))
	return cmd
}

// codingFlags say how vectors are coded.
type codingFlags struct {
	bytes, bits     string
	metric, tensor  string
	oblivious       bool
	sample          int
	tilt            float64
	seed            uint64
	calibrationFile string
}

func (f *codingFlags) add(cmd *cobra.Command, many string) {
	fl := cmd.Flags()
	fl.StringVar(&f.bytes, "bytes", "", "`BYTES` of a vector, all bytes of the file counted"+many)
	fl.StringVar(&f.bits, "bits", "", "`BITS` of a value, all bytes counted; whole ones with --oblivious"+many)
	fl.StringVar(&f.metric, "metric", "ip", "what makes vectors alike: ip, cosine or l2")
	fl.StringVar(&f.tensor, "tensor", "", "the `NAME` of the tensor, where a file has several")
	fl.BoolVar(&f.oblivious, "oblivious", false, "rotate vectors at random instead of calibrating")
	fl.IntVar(&f.sample, "sample", 10_000, "number of vectors to calibrate on, evenly spread over the file")
	fl.StringVar(&f.calibrationFile, "calibrate-on", "", "a `FILE` of other vectors to calibrate on")
	fl.Float64Var(&f.tilt, "tilt", 0, "how much more bits count where queries are large; 0 is 0.75, negative is none")
	fl.Uint64Var(&f.seed, "seed", 0, "of the rotation of --oblivious")
}

// target is one size to code at.
type target struct {
	bytes float64 // calibrated
	bits  int     // oblivious
}

// targets reads --bytes or --bits, commas between several.
func (f *codingFlags) targets(dim int) ([]target, error) {
	if (f.bytes == "") == (f.bits == "") {
		return nil, usagef("give one of --bytes and --bits")
	}
	if f.oblivious && f.bits == "" {
		return nil, usagef("--oblivious takes --bits: all values have the same whole number of bits")
	}
	var out []target
	for _, s := range strings.Split(f.bytes+f.bits, ",") {
		var x float64
		if _, err := fmt.Sscanf(s+" ", "%g ", &x); err != nil || !(x > 0 && x < math.MaxInt32) {
			return nil, usagef("%q: want a positive number", s)
		}
		switch {
		case f.oblivious && (x != math.Trunc(x) || x > 6):
			return nil, usagef("--oblivious --bits %q: want a whole number from 1 to 6", s)
		case f.oblivious:
			out = append(out, target{bits: int(x)})
		case f.bits != "":
			out = append(out, target{bytes: x * float64(dim) / 8})
		default:
			out = append(out, target{bytes: x})
		}
	}
	return out, nil
}

// check refuses flags that cannot be, before anything is read.
func (f *codingFlags) check() (vectors.Metric, error) {
	m, err := vectors.ParseMetric(f.metric)
	if err != nil {
		return 0, usagef("--metric %q: want ip, cosine or l2", f.metric)
	}
	if f.sample < 64 || f.sample > 10_000 {
		return 0, usagef("--sample %d: want 64 to 10000", f.sample)
	}
	if _, err := f.targets(1); err != nil {
		return 0, err
	}
	return m, nil
}

// open returns an empty index for rows.
func (f *codingFlags) open(t target, rows, sample quant.Rows, m vectors.Metric) (*vectors.Index, error) {
	if f.oblivious {
		return vectors.Oblivious(rows.Dim, t.bits, m, f.seed)
	}
	n := min(sample.Len(), f.sample)
	x := quant.Rows{Dim: sample.Dim, Data: make([]float32, 0, n*sample.Dim)}
	for i := range n {
		x.Data = append(x.Data, sample.Row(i*sample.Len()/n)...)
	}
	return vectors.Calibrate(x, vectors.Options{Bytes: t.bytes, Rows: rows.Len(), Metric: m, Tilt: f.tilt})
}

type embedFlags struct {
	codingFlags
	out         string
	json, force bool
}

func newEmbedCompress(a *app) *cobra.Command {
	var f embedFlags
	cmd := &cobra.Command{
		Use:   "compress VECTORS -o INDEX.kvist (--bytes BYTES | --bits BITS)",
		Short: "Make an index of vectors",
		Long: `compress calibrates a coding on the vectors, or on those of another file, and writes an index. The id of a
vector is its number.

Fields of --json: input, output, vectors, dim, metric, bytes, bytes_per_vector, row_bytes, drift.`,
		Example: `  kvist embed compress vectors.npy -o index.kvist --bytes 100
  kvist embed compress vectors.fvecs -o index.kvist --bits 2 --metric l2 --oblivious`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			m, err := f.check()
			if err != nil {
				return err
			}
			return a.embedCompress(cmd.Context(), args[0], &f, m)
		}),
	}
	f.add(cmd, "")
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace the output if it exists")
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

type embeddedJSON struct {
	Input          string  `json:"input"`
	Output         string  `json:"output"`
	Vectors        int     `json:"vectors"`
	Dim            int     `json:"dim"`
	Metric         string  `json:"metric"`
	Bytes          int64   `json:"bytes"`
	BytesPerVector float64 `json:"bytes_per_vector"`
	RowBytes       int     `json:"row_bytes"`
	Drift          float64 `json:"drift"`
}

func (a *app) embedCompress(ctx context.Context, name string, f *embedFlags, m vectors.Metric) (err error) {
	if err := a.checkOutputs([]string{name, f.calibrationFile}, destination{"-o", f.out, f.force}); err != nil {
		return err
	}
	rows, err := a.readVectors(ctx, name, f.tensor)
	if err != nil {
		return err
	}
	sample, err := a.readSample(ctx, rows, &f.codingFlags)
	if err != nil {
		return err
	}
	list, err := f.targets(rows.Dim)
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return usagef("compress makes one index: give one size")
	}
	x, err := f.open(list[0], rows, sample, m)
	if err == nil {
		err = x.Add(ctx, nil, rows)
	}
	if err != nil {
		return err
	}
	out, err := a.create(ctx, f.out, f.force)
	if err != nil {
		return err
	}
	counted := &countingWriter{w: bufio.NewWriterSize(out, 1<<20)}
	if err = x.Write(counted); err == nil {
		err = counted.w.Flush()
	}
	out.finish(&err)
	if err != nil {
		return err
	}
	st := x.Stats()
	sum := &embeddedJSON{inputName(name), out.name, st.Rows, st.Dim, m.String(), counted.n,
		float64(counted.n) / float64(max(1, st.Rows)), st.RowBytes, st.Drift}
	w := a.summaryTo(f.out)
	if f.json {
		return printJSON(w, sum)
	}
	p := &printer{w: w}
	p.printf("%s: %s vectors of %d values, %s bytes, %.4g bytes/vector, %.3gx smaller than f16\n", sum.Output,
		count(int64(st.Rows)), st.Dim, count(sum.Bytes), sum.BytesPerVector, 2*float64(st.Dim)/sum.BytesPerVector)
	return p.err
}

// countingWriter counts what it writes.
type countingWriter struct {
	w *bufio.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// readSample reads the vectors to calibrate on.
func (a *app) readSample(ctx context.Context, rows quant.Rows, f *codingFlags) (quant.Rows, error) {
	if f.calibrationFile == "" || f.oblivious {
		return rows, nil
	}
	sample, err := a.readVectors(ctx, f.calibrationFile, f.tensor)
	if err == nil && sample.Dim != rows.Dim {
		err = fmt.Errorf("%s has vectors of %d values, want %d: %w", inputName(f.calibrationFile), sample.Dim, rows.Dim,
			quant.ErrShape)
	}
	return sample, err
}

func newEmbedInspect(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect INDEX.kvist",
		Short: "Show what an index holds",
		Long: `inspect shows the size and the coding of an index, and how well the vectors fit the calibration.

Fields of --json: those of vectors.Stats in Go.`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			x, err := a.openIndex(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			st := x.Stats()
			if asJSON {
				return errors.Join(printJSON(a.stdout, st), x.Close())
			}
			p := &printer{w: a.stdout}
			p.printf("%s: %s vectors of %d values, metric %s\n", inputName(args[0]), count(int64(st.Rows)), st.Dim,
				x.Metric().String())
			p.printf("bytes: %d a vector, %s shared, %s of ids\n", st.RowBytes, count(int64(st.SharedBytes)),
				count(int64(st.IDBytes)))
			for b, n := range st.Bits {
				if n > 0 {
					p.printf("  %4d components of %d bits\n", n, b)
				}
			}
			p.printf("error %.4g, expected %.4g, drift %.3g; %d of %s vectors lie far from the calibration\n", st.Error,
				st.Calibrated, st.Drift, st.Bounded, count(int64(st.Added)))
			return errors.Join(p.err, x.Close())
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
