// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/bench/perf"
	"github.com/kvist-project/kvist/bench/readme"
)

// machines is the folder of the records of kvist bench, one for a machine.
const machines = "machines"

// tabled are the models of the long tables; the records have more.
var tabled = []string{"SmolLM2-135M", "Gemma 3 270M", headlineModel}

// headlineModel is the model that the short table is about.
const headlineModel = "Llama-3.1-8B"

var (
	machineMarkers = readme.Markers{Name: "machine table", Command: "make tables"}
	// headlineMachine is the record of the short table.
	headlineMachine = "xeon-avx512-2-cores"
)

// openMachines reads the records of all machines, in the order of their names.
func openMachines(dir string) (names []string, all []*perf.Record, err error) {
	files, err := filepath.Glob(filepath.Join(dir, machines, "*.json"))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, err
		}
		r, err := perf.ReadRecord(f)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		names, all = append(names, strings.TrimSuffix(filepath.Base(name), ".json")), append(all, r)
	}
	return names, all, nil
}

// machineTables returns a table for every machine, for the models that have a coding measured.
func machineTables(names []string, all []*perf.Record) string {
	var b strings.Builder
	for i, r := range all {
		fmt.Fprintf(&b, "`%s`, %s: %s; %s on %d threads, rounds: %d.\nA fixed loop varied by %.1f %% and waited %.0f %% of the time for "+
			"a processor.%s\n\n", names[i], r.Date, r.Machine, r.Backend.ISA, r.Threads, rounds(r), 100*r.Noise.Spread, 100*r.Noise.Waiting, busy(r))
		b.WriteString("| model | coding | bits/value | ns a row pair | of f16 | tokens/s | GB for 128K tokens | conversations of 8K |\n" +
			"|---|---|---|---|---|---|---|---|\n")
		for _, m := range perf.Models() {
			for _, c := range perf.Codings() {
				x := r.Find(perf.AttendName(m.Shape, c, perf.SpeedContext, r.Threads))
				plain := r.Find(perf.AttendName(m.Shape, perf.F16, perf.SpeedContext, r.Threads))
				if x == nil || plain == nil || !slices.Contains(tabled, m.Name) {
					continue
				}
				fmt.Fprintf(&b, "| %s | %s | %.2f | %s | %.0f %% | %s | %s | %d |\n", m.Name, c, x.BitsPerValue(), perf.Digits(x.Time().Median),
					100*x.Cost()/plain.Cost(), perf.Digits(perf.TokensPerSecond(m, x, perf.SpeedContext)),
					perf.Digits(perf.CacheBytes(m, x, perf.ManyTokens)/1e9), perf.Conversations(m, x, r.Memory()))
			}
		}
		if i+1 < len(all) {
			b.WriteString("\n")
		}
	}
	return b.String()
}

// busy warns of figures from a machine that had other work, or whose speed varied.
func busy(r *perf.Record) string {
	switch {
	case r.Noise.Warning() == "":
		return ""
	case r.Noise.Waiting < 0.05:
		return fmt.Sprintf(" Its speed varied by %.0f %%:\nsmall differences mean little.", 100*r.Noise.Spread)
	}
	return " So the machine was busy:\nload slows f16, which reads most, and flatters the others."
}

// rounds is how often the names of a record were measured.
func rounds(r *perf.Record) int {
	n := 0
	for i := range r.Results {
		n = max(n, len(r.Results[i].Relative))
	}
	return n
}

// machineHeadline returns the short table: what a cache of one model costs on one machine.
func machineHeadline(names []string, all []*perf.Record) string {
	var b strings.Builder
	for i, r := range all {
		if names[i] != headlineMachine {
			continue
		}
		fmt.Fprintf(&b, "| cache of %s | GB for 128K tokens | chats of 8K in %.0f GiB | time of attention |\n|---|---|---|---|\n",
			headlineModel, float64(r.Memory())/(1<<30))
		for _, m := range perf.Models() {
			plain := r.Find(perf.AttendName(m.Shape, perf.F16, perf.SpeedContext, r.Threads))
			for _, c := range perf.Codings() {
				x := r.Find(perf.AttendName(m.Shape, c, perf.SpeedContext, r.Threads))
				if m.Name != headlineModel || x == nil || plain == nil || strings.HasPrefix(string(c), "ggml") {
					continue
				}
				fmt.Fprintf(&b, "| %s | %s | %d | %.0f %% |\n", codingText(c),
					perf.Digits(perf.CacheBytes(m, x, perf.ManyTokens)/1e9), perf.Conversations(m, x, r.Memory()), 100*x.Cost()/plain.Cost())
			}
		}
		if s := busy(r); s != "" {
			fmt.Fprintf(&b, "\n%s\n", strings.NewReplacer("So the machine was busy:", "Measured while the machine was busy:",
				"Its speed", "The speed of the machine").Replace(strings.TrimSpace(s)))
		}
	}
	return b.String()
}

// codingText is the name of a coding for people.
func codingText(c perf.Coding) string {
	if bits, ok := strings.CutPrefix(string(c), "kvist-"); ok {
		return "kvist, " + bits + " bits"
	}
	return string(c)
}

// updateMachines puts both tables into their pages.
func updateMachines() error {
	names, all, err := openMachines(results)
	if err != nil {
		return err
	}
	if err := machineMarkers.Update(shortPage, machineHeadline(names, all)); err != nil {
		return err
	}
	return machineMarkers.Update(longPage, machineTables(names, all))
}
