// SPDX-License-Identifier: Apache-2.0

// Command modeltable writes what was measured in the model, and by kvist bench, to the pages that people
// read. It measures nothing; it reads the JSON files in bench/results. It writes
//
//   - the tables of bench/README.md and the short one of README.md, between their markers
//   - the tables of machines in both pages, from the records in bench/results/machines
//   - bench/results/headline.svg, the picture of README.md
//   - bench/results/signals.md: what each way to weigh tokens is worth at each rate
//
// Run it from the root of the repository:
//
//	go run ./bench/modeltable
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/readme"
)

const results = "bench/results"

// Both pages have a table between the same markers.
const (
	longPage  = "bench/README.md"
	shortPage = "README.md"
)

var (
	markers      = readme.Markers{Name: "model table", Command: "make tables"}
	gemmaMarkers = readme.Markers{Name: "gemma table", Command: "make tables"}
)

// row is a row of a table.
type row struct{ name, method string }

// What follows a rate in the names of methods.
const (
	archiveProfile = ",profile=testdata/smollm2.kvprofile"
	alone          = ",importance=default;"
)

var rows = []row{
	{"KIVI 4-bit", "kivi4"},
	{"TurboQuant-mse 4", "tqmse4"},
	{"TurboQuant-mse 4, 4 sinks kept", "tqmse4:sinks=4"},
	{"TurboQuant-mse 3", "tqmse3"},
	{"TurboQuant-mse 3, 4 sinks kept", "tqmse3:sinks=4"},
	{"K 3 V 2 bits everywhere, 4 sinks kept", "uniform:k=lm3+len+s8,v=lm2+len+s8,sinks=4"},
	{"KIVI 2-bit", "kivi2"},
	{"TurboQuant-mse 2", "tqmse2"},
	{"SnapKV, half of the tokens", "snapkv:50%"},
	{"SnapKV, an eighth", "snapkv:12.5%"},
	{"**kvist hot, 4.25**", "kvist:4.25"},
	{"**kvist hot, 3**", "kvist:3"},
	{"**kvist hot, 2.75**", "kvist:2.75"},
	{"**kvist hot, 2.25**", "kvist:2.25"},
	{"**kvist hot, 2.15**", "kvist:2.15"},
	{"**kvist hot, 1.5**", "kvist:1.5"},
	{"**kvist archive, 2**", "kvist-archive:2" + archiveProfile},
	{"**kvist archive, 1.5**", "kvist-archive:1.5" + archiveProfile},
	{"**kvist archive, 1.05**", "kvist-archive:1.05" + archiveProfile},
	{"**kvist archive, 0.5**", "kvist-archive:0.5" + archiveProfile},
	{"kvist archive without a profile, 2", "kvist-archive:2"},
	{"kvist archive without a profile, 1.05", "kvist-archive:1.05"},
}

// shortRows are the rows of README.md.
var shortRows = []row{
	{"KIVI 4-bit", "kivi4"},
	{"TurboQuant-mse 4, 4 sinks kept", "tqmse4:sinks=4"},
	{"TurboQuant-mse 3, 4 sinks kept", "tqmse3:sinks=4"},
	{"**kvist hot, 4.25**", "kvist:4.25"},
	{"**kvist hot, 2.25**", "kvist:2.25"},
	{"**kvist archive, 1.05**", "kvist-archive:1.05" + archiveProfile},
}

// gemmaRows are the rows of the second model's table.
var gemmaRows = []row{
	{"ggml q8_0", "ggml-q8_0"},
	{"KIVI 4-bit", "kivi4"},
	{"ggml q4_0", "ggml-q4_0"},
	{"TurboQuant-mse 4, 4 sinks kept", "tqmse4:sinks=4"},
	{"TurboQuant-mse 3, 4 sinks kept", "tqmse3:sinks=4"},
	{"KIVI 2-bit", "kivi2"},
	{"TurboQuant-mse 2, 4 sinks kept", "tqmse2:sinks=4"},
	{"SnapKV, half of the tokens", "snapkv:50%"},
	{"sinks and recent, a quarter", "sinks-recent:25%"},
	{"SnapKV, an eighth", "snapkv:12.5%"},
	{"**kvist hot, 5**", "kvist:5"},
	{"**kvist hot, 4.25**", "kvist:4.25"},
	{"**kvist hot, 3**", "kvist:3"},
	{"**kvist hot, 2.25**", "kvist:2.25"},
	{"**kvist hot, 1.5**", "kvist:1.5"},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "modeltable:", err)
		os.Exit(1)
	}
}

func run() error {
	var r [4]*quality.Results
	for i, name := range []string{"quality", "retrieval", "ablation", "ablation-retrieval"} {
		var err error
		if r[i], err = open(results, name); err != nil {
			return err
		}
	}
	if err := readme.Write(filepath.Join(results, "signals.md"), signals(r[2], r[3])); err != nil {
		return err
	}
	svg, err := picture(r[0])
	if err != nil {
		return err
	}
	if err := readme.Write(filepath.Join(results, pictureFile), svg); err != nil {
		return err
	}
	if err := markers.Update(shortPage, table(shortRows, r[0], r[1], r[3])); err != nil {
		return err
	}
	if err := markers.Update(longPage, table(rows, r[0], r[1], r[3])); err != nil {
		return err
	}
	g, err := open(results, "gemma")
	if err != nil {
		return err
	}
	if err := gemmaMarkers.Update(longPage, worstTable(gemmaRows, g)); err != nil {
		return err
	}
	return updateMachines()
}

// worstTable returns the rows as a table with the worst token of each method.
func worstTable(rows []row, q *quality.Results) string {
	var b strings.Builder
	b.WriteString("| method | bits/value, all-in | x vs f16 | KL, nats | worst token | top-1 |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		m := find(q, r.method)
		if m == nil {
			continue
		}
		worst, kl := 0.0, number(m.KL.Mean)
		for _, t := range m.Texts {
			worst = max(worst, t.KLMax)
		}
		if strings.HasPrefix(r.name, "**") {
			kl = "**" + kl + "**"
		}
		fmt.Fprintf(&b, "| %s | %.2f | %.1f | %s | %s | %.3f |\n", r.name, m.BitsPerValue, m.Ratio, kl, number(worst), m.Top1)
	}
	return b.String()
}

// open reads the results of a name.
func open(dir, name string) (*quality.Results, error) {
	f, err := os.Open(filepath.Join(dir, name+".json"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return quality.ReadResults(f)
}

// find returns the method of a name, or nil.
func find(r *quality.Results, name string) *quality.MethodResult {
	for i := range r.Methods {
		if r.Methods[i].Name == name {
			return &r.Methods[i]
		}
	}
	return nil
}

// number formats x with two significant digits and no exponent.
func number(x float64) string {
	s := fmt.Sprintf("%#.2g", x)
	if strings.Contains(s, "e") {
		return strconv.FormatFloat(x, 'f', 6, 64)
	}
	return s
}

// table returns the rows as a table. A row whose method was not measured is left out. The facts are
// those of the first result that asked the method; all results ask the same questions.
func table(rows []row, q *quality.Results, asked ...*quality.Results) string {
	var b strings.Builder
	b.WriteString("| method | bits/value, all-in | x vs f16 | KL, nats | top-1 | facts found |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		m := find(q, r.method)
		if m == nil {
			continue
		}
		found, kl := "", number(m.KL.Mean)
		for _, x := range asked {
			if a := find(x, r.method); a != nil && a.Retrieval != nil && found == "" {
				found = strconv.Itoa(a.Retrieval.Found)
			}
		}
		if strings.HasPrefix(r.name, "**") {
			kl = "**" + kl + "**"
		}
		fmt.Fprintf(&b, "| %s | %.2f | %.1f | %s | %.3f | %s |\n", r.name, m.BitsPerValue, m.Ratio, kl, m.Top1, found)
	}
	return b.String()
}

// Rates and ways to weigh tokens of the ablation; a way is what follows "kvist:<rate>".
var (
	rates = []string{"4.25", "3", "2.75", "2.25", "2", "1.5"}
	ways  = []row{
		{"all tokens alike", ",importance=none"},
		{"by chance (control)", ",weights=random"},
		{"recency alone", alone + "relevance=0;decay=0.3"},
		{"attention of all queries alike", alone + "mix=1;half-life=0"},
		{"relevance: the default", ""},
		{"relevance and value norm: tuned", ",profile=bench/quality/smollm2.kvprofile"},
		{"expected attention alone", alone + "relevance=0;expected=0.5"},
		{"value norm alone", alone + "relevance=0;value-norm=0.5"},
		{"surprise alone", alone + "relevance=0;surprise=0.5"},
		{"habituation alone", alone + "relevance=0;habituation=0.5"},
	}
	uniform = []string{"lm4+len+s8:sinks=4", "lm3+len+s8:sinks=4", "uniform:k=lm3+len+s8,v=lm2+len+s8,sinks=4",
		"lm2+len+s8:sinks=4", "uniform:k=lm2+len+s8,v=lm1+len+s8,sinks=4"}
)

// signals returns the page about the ablation.
func signals(kl, asked *quality.Results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What each way to weigh tokens is worth\n\nMade by `go run ./bench/modeltable` from `ablation.json` "+
		"and `ablation-retrieval.json`, where intervals and commands are.\n%d texts that nothing was tuned on, %d tokens "+
		"compressed. Same bytes in every column: only the weights differ, and with weights plans below 2.875\nbits may merge "+
		"and drop.\n\n", len(kl.Exact.Texts), kl.Context)
	b.WriteString("## KL divergence, nats, and its ratio to tokens weighed alike\n\n")
	pivot(&b, func(rate string, w row) string {
		m, base := find(kl, "kvist:"+rate+w.method), find(kl, "kvist:"+rate+",importance=none")
		if m == nil || base == nil {
			return ""
		}
		return fmt.Sprintf("%s (%.2f)", number(m.KL.Mean), m.KL.Mean/base.KL.Mean)
	})
	b.WriteString("\nValue norm stood out on five texts, four of which are among these: its rows are no clean holdout.\n")
	if x := asked.Exact.Retrieval; x != nil {
		fmt.Fprintf(&b, "\n## Facts found of %d asked after compression (exact cache: %d)\n\n", x.Asked, x.Found)
		pivot(&b, func(rate string, w row) string {
			m := find(asked, "kvist:"+rate+w.method)
			if m == nil || m.Retrieval == nil {
				return ""
			}
			return strconv.Itoa(m.Retrieval.Found)
		})
	}
	b.WriteString("\n## One coding everywhere, 4 sinks kept\n\n| method | bits/value | KL | facts found |\n|---|---|---|---|\n")
	for _, name := range append([]string{"tqmse4", "tqmse3"}, uniform...) {
		m, a := find(kl, name), find(asked, name)
		switch {
		case a == nil || a.Retrieval == nil:
		case m == nil:
			fmt.Fprintf(&b, "| %s | %.2f | | %d |\n", name, a.BitsPerValue, a.Retrieval.Found)
		default:
			fmt.Fprintf(&b, "| %s | %.2f | %s | %d |\n", name, m.BitsPerValue, number(m.KL.Mean), a.Retrieval.Found)
		}
	}
	return b.String()
}

// pivot writes a table of ways by rates. A rate that nothing was measured at has no column.
func pivot(b *strings.Builder, cell func(rate string, w row) string) {
	var with []string
	for _, rate := range rates {
		if cell(rate, ways[0]) != "" {
			with = append(with, rate)
		}
	}
	fmt.Fprintf(b, "| bits/value | %s |\n|---|%s\n", strings.Join(with, " | "), strings.Repeat("---|", len(with)))
	for _, w := range ways {
		cells := make([]string, len(with))
		for i, rate := range with {
			cells[i] = cell(rate, w)
		}
		fmt.Fprintf(b, "| %s | %s |\n", w.name, strings.Join(cells, " | "))
	}
}
