// SPDX-License-Identifier: Apache-2.0

// Command truncatetable holds archives that were cut to a size against ones coded at that size from
// the start: the capture in testdata, and those named as arguments. It writes
// bench/results/truncate.md.
//
//	kvist capture smollm2 bench/quality/texts/calib-recipes.txt -o recipes.safetensors
//	go run ./bench/truncatetable recipes.safetensors
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvist-project/kvist/bench/readme"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/report"
)

const (
	captureFile = "testdata/smollm2-sqlite-1k.safetensors"
	resultFile  = "bench/results/truncate.md"
	streams     = 4
)

// sizes are those of the table, in bits a value; files of the sizes in wholes are cut to them.
var (
	sizes  = []float64{4, 3.5, 3, 2.5, 2, 1.6, 1.2, 1, 0.75, 0.5}
	wholes = []float64{4, 2, 1}
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "truncatetable:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, captures []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Cut to a size, and coded at it\n\n"+
		"Made by `go run ./bench/truncatetable` and a capture of all layers (`kvist capture smollm2 "+
		"bench/quality/texts/calib-recipes.txt`). Files of 4, 2 and 1 bits a value, made with `--streams %d`, cut by "+
		"`kvist truncate` to ten sizes; beside them the original coded at that size without streams. Errors are the mean "+
		"future-attention error of layers; times are those of coding afresh, in brackets as the file predicts them. "+
		"Refused: not written without `--force`.\n", streams)
	for _, path := range append([]string{captureFile}, captures...) {
		if err := table(ctx, &b, path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return readme.Write(resultFile, b.String())
}

// table adds the table of a capture.
func table(ctx context.Context, b *strings.Builder, path string) error {
	be, err := cpu.Open(cpu.Options{})
	if err != nil {
		return err
	}
	defer be.Close()
	src, err := capture.Open(path, capture.Limits{})
	if err != nil {
		return err
	}
	defer src.Close()
	m := &measurer{src: src, be: be}
	fmt.Fprintf(b, "\n## %s: %d layers, %d tokens\n\n| bits/value | coded at it |", filepath.Base(path),
		len(src.Info().Layers), src.Info().Tokens)
	var files [][]byte
	for _, bits := range wholes {
		fmt.Fprintf(b, " cut from %g |", bits)
		file, err := m.compress(ctx, bits, streams)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(wholes)) + "\n")
	for _, bits := range sizes {
		afresh, err := m.compress(ctx, bits, 1)
		if err != nil {
			return err
		}
		want, err := m.future(ctx, afresh)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "| %g | %s |", bits, percent(want))
		for i, whole := range wholes {
			cell := ""
			if bits <= whole {
				if cell, err = m.cut(ctx, files[i], bits, want); err != nil {
					return err
				}
			}
			fmt.Fprintf(b, " %s |", cell)
		}
		b.WriteString("\n")
	}
	return nil
}

func percent(x float64) string { return fmt.Sprintf("%.3g %%", 100*x) }

// measurer makes files of a capture and measures them.
type measurer struct {
	src *capture.Source
	be  backend.Backend
}

func (m *measurer) compress(ctx context.Context, bits float64, chunks int) ([]byte, error) {
	cfg, err := kvfile.ParseConfig(fmt.Sprintf("form=archive bits=%g chunks=%d", bits, chunks))
	if err != nil {
		return nil, err
	}
	var file bytes.Buffer
	_, err = kvfile.Compress(ctx, m.src, &file, kvfile.Options{Config: &cfg, Backend: m.be})
	return file.Bytes(), err
}

func opened(file []byte) (*container.Reader, error) {
	return container.Open("table", bytes.NewReader(file), int64(len(file)), container.Limits{})
}

func (m *measurer) future(ctx context.Context, file []byte) (float64, error) {
	r, err := opened(file)
	if err != nil {
		return math.NaN(), err
	}
	cmp, err := report.Compare(ctx, r, m.src, report.Options{Backend: m.be})
	if err != nil {
		return math.NaN(), err
	}
	return cmp.FutureError, nil
}

// cut tells what cutting a file to a size makes of it, beside the error of coding afresh.
func (m *measurer) cut(ctx context.Context, file []byte, bits, afresh float64) (string, error) {
	r, err := opened(file)
	if err != nil {
		return "", err
	}
	total := int64(bits * float64(r.Header().Values()) / 8)
	refused := ""
	var out bytes.Buffer
	res, err := kvfile.Truncate(ctx, r, &out, total, kvfile.Options{})
	var coarse *kvfile.CoarseError
	if errors.As(err, &coarse) {
		refused = "refused: "
		out.Reset()
		res, err = kvfile.Truncate(ctx, r, &out, total, kvfile.Options{Force: true})
	}
	if err != nil {
		return "", err
	}
	e, err := m.future(ctx, out.Bytes())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s%s, %.2f x (%.2f x)", refused, percent(e), e/afresh, res.Predicted.Times()), nil
}
