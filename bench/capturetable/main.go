// SPDX-License-Identifier: Apache-2.0

// Command capturetable measures the capture in testdata in every coding and under several budgets,
// with all bytes counted, and reports the error of future attention. It writes every row to
// bench/results/capture.md and the most useful ones to bench/README.md, between its markers.
//
//	go run ./bench/capturetable
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
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
	resultFile  = "bench/results/capture.md"
	pageFile    = "bench/README.md"
)

var markers = readme.Markers{Name: "table", Command: "go run ./bench/capturetable"}

// row is a row of the table.
type row struct {
	name, config string
	shown        bool // in pageFile too
}

// configs are the rows of the table. A single coding keeps no sinks, like the system it stands for,
// unless its name says so. The planner's rows keep 4.
var configs = []row{
	{"f16", "k=f16 v=f16 sinks=0", true},
	{"ggml-q8_0", "k=ggml-q8_0 v=ggml-q8_0 sinks=0", true},
	{"u8", "k=u8 v=u8 sinks=0", false},
	{"u8+s8", "k=u8+s8 v=u8+s8 sinks=0", false},
	{"ggml-q4_0", "k=ggml-q4_0 v=ggml-q4_0 sinks=0", true},
	{"TurboQuant-mse 4", "k=tqmse4 v=tqmse4 sinks=0", false},
	{"TurboQuant-mse 4, 4 sinks f16", "k=tqmse4 v=tqmse4", true},
	{"lm4", "k=lm4 v=lm4 sinks=0", false},
	{"lm4+ip", "k=lm4+ip v=lm4+ip sinks=0", false},
	{"lm4+len+s8", "k=lm4+len+s8 v=lm4+len+s8 sinks=0", false},
	{"**planned, 4.3 bits**", "bits=4.3", true},
	{"TurboQuant-mse 3", "k=tqmse3 v=tqmse3 sinks=0", false},
	{"TurboQuant-mse 3, 4 sinks f16", "k=tqmse3 v=tqmse3", true},
	{"lm3", "k=lm3 v=lm3 sinks=0", false},
	{"lm3+ip", "k=lm3+ip v=lm3+ip sinks=0", false},
	{"lm3+len+s8", "k=lm3+len+s8 v=lm3+len+s8 sinks=0", false},
	{"**archive, 3.25 bits**", "form=archive bits=3.25", false},
	{"**planned, 3.25 bits**", "bits=3.25", true},
	{"**planned, 2.75 bits**", "bits=2.75", true},
	{"TurboQuant-mse 2", "k=tqmse2 v=tqmse2 sinks=0", false},
	{"TurboQuant-mse 2, 4 sinks f16", "k=tqmse2 v=tqmse2", true},
	{"lm2", "k=lm2 v=lm2 sinks=0", false},
	{"lm2+ip", "k=lm2+ip v=lm2+ip sinks=0", false},
	{"lm2+len+s8", "k=lm2+len+s8 v=lm2+len+s8 sinks=0", false},
	{"**archive, 2.25 bits**", "form=archive bits=2.25", true},
	{"**planned, 2.25 bits**", "bits=2.25", true},
	{"**planned, 1.5 bits**", "bits=1.5", true},
	{"**archive, 1.5 bits**", "form=archive bits=1.5", true},
	{"TurboQuant-mse 1", "k=tqmse1 v=tqmse1 sinks=0", false},
	{"lm1", "k=lm1 v=lm1 sinks=0", false},
	{"lm1+ip", "k=lm1+ip v=lm1+ip sinks=0", false},
	{"lm1+len+s8", "k=lm1+len+s8 v=lm1+len+s8 sinks=0", false},
}

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "capturetable:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	table, err := makeTable(ctx)
	if err != nil {
		return err
	}
	fmt.Fprint(out, table)
	note := "# The capture in testdata, every coding\n\nMade by `go run ./bench/capturetable`. Bits are of the " +
		"whole file: codes, scales, tables, side tensors, header, index and padding.\n\n"
	if err := readme.Write(resultFile, note+table); err != nil {
		return err
	}
	return markers.Update(pageFile, shown(table))
}

// shown cuts a table to the rows of pageFile.
func shown(table string) string {
	var b strings.Builder
	for i, line := range strings.SplitAfter(table, "\n") {
		// The first two lines are the header.
		if i < 2 || i-2 < len(configs) && configs[i-2].shown {
			b.WriteString(line)
		}
	}
	return b.String()
}

func makeTable(ctx context.Context) (string, error) {
	be, err := cpu.Open(cpu.Options{})
	if err != nil {
		return "", err
	}
	defer be.Close()
	src, err := capture.Open(captureFile, capture.Limits{})
	if err != nil {
		return "", err
	}
	defer src.Close()
	var b strings.Builder
	b.WriteString("| coding of K and V | bits/value, all-in | x vs f16 | error of K | error of V | future-attention error |\n")
	b.WriteString("|---|---|---|---|---|---|\n")
	for _, c := range configs {
		res, cmp, err := measure(ctx, src, be, c.config)
		if err != nil {
			return "", fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintf(&b, "| %s | %.2f | %.1f | %s | %s | %s |\n", c.name, res.BitsPerValue, res.Ratio,
			errorText(cmp.KError), errorText(cmp.VError), errorText(cmp.FutureError))
	}
	return b.String(), nil
}

func errorText(e float64) string {
	if e < 5e-6 {
		return "< 0.00001"
	}
	return fmt.Sprintf("%.5f", e)
}

func measure(ctx context.Context, src *capture.Source, be backend.Backend, config string) (*kvfile.Result,
	*report.Comparison, error) {
	if strings.HasPrefix(config, "k=") { // the coding alone, as the system it stands for has it
		config += " mean=false metric=false"
	}
	cfg, err := kvfile.ParseConfig(config)
	if err != nil {
		return nil, nil, err
	}
	var file bytes.Buffer
	res, err := kvfile.Compress(ctx, src, &file, kvfile.Options{Config: &cfg, Backend: be})
	if err != nil {
		return nil, nil, err
	}
	r, err := container.Open("table", bytes.NewReader(file.Bytes()), int64(file.Len()), container.Limits{})
	if err != nil {
		return nil, nil, err
	}
	cmp, err := report.Compare(ctx, r, src, report.Options{Backend: be})
	return res, cmp, err
}
