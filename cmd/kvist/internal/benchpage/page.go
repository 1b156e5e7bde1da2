// SPDX-License-Identifier: Apache-2.0

// Package benchpage draws a record of kvist bench as one HTML page that needs nothing else: no scripts, no network.
package benchpage

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"

	"github.com/kvist-project/kvist/bench/perf"
)

//go:embed page.html
var pageText string

//go:embed style.css
var style string

// page is what the template shows.
type page struct {
	Style                           template.CSS
	Machine, Backend, Date, Warning string
	Others                          []string
	Cards                           []card
	Attention, Memory               []bars
	Curves                          []curves
	Key                             []bar
	Steps                           []step
	Tables                          []perf.Table
	Changes, Coding                 *perf.Table
	At, Capacity                    string
	Command, Version, Threads       string
	WorkingSet, Noise               string
}

type card struct{ Value, Text, Class string }

// bars are bars on one scale.
type bars struct {
	Title, Note string
	Bars        []bar
}

// bar is a bar; widths are percentages of the longest.
type bar struct {
	Name, Class, Value string
	Width, Low, Span   float64
	Whisker            bool
}

// step is a line of the table of everything else.
type step struct{ What, Name, Time, Spread, For string }

// Write draws a record, and what changed since an older one where c is not nil.
func Write(w io.Writer, r *perf.Record, c *perf.Comparison) error {
	t, err := template.New("page").Funcs(template.FuncMap{"numeric": func(i int) bool { return i > 0 }}).Parse(pageText)
	if err != nil {
		return err
	}
	p := page{Style: template.CSS(style), Machine: r.Machine.String(), //nolint:gosec // our own style sheet
		Backend: fmt.Sprintf("backend %s, %s", r.Backend.Name, r.Backend.ISA), Date: r.Date, Warning: r.Noise.Warning(),
		Others: r.Others, Command: r.Command, Version: r.Version, Threads: fmt.Sprintf("%d threads", r.Threads),
		WorkingSet: bytesText(float64(r.WorkingSet)), Noise: fmt.Sprintf("%.1f %%", 100*r.Noise.Spread),
		At: perf.TokensText(perf.SpeedContext), Capacity: bytesText(float64(r.Memory()))}
	if r.Threads == 1 {
		p.Threads = "1 thread"
	}
	p.Cards = cards(r)
	for _, s := range r.AttendShapes() {
		p.Attention = append(p.Attention, attention(r, s)...)
		p.Curves = append(p.Curves, drawCurves(r, s)...)
	}
	if len(p.Curves) > 0 {
		for _, k := range perf.Codings() {
			p.Key = append(p.Key, bar{Name: string(k), Class: class(k)})
		}
	}
	p.Memory = memory(r)
	p.Steps = steps(r)
	for _, t := range r.Tables() {
		if t.Title == perf.CodingTitle {
			p.Coding = &t
			continue
		}
		p.Tables = append(p.Tables, t)
	}
	if c != nil {
		t := c.Table()
		p.Changes = &t
	}
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// class colours a coding.
func class(c perf.Coding) string {
	switch c {
	case perf.F16:
		return "f16"
	case perf.Q8:
		return "g1"
	case perf.Q4:
		return "g2"
	case perf.K425:
		return "k4"
	case perf.K3:
		return "k3"
	case perf.K225:
		return "k2"
	}
	return "k1"
}

// modelOf is the model that headlines speak of: the first of those that an operator would serve that was measured.
func modelOf(r *perf.Record) (perf.Model, bool) {
	all := perf.Models()
	for _, name := range []string{"Llama-3.1-8B", ""} {
		for _, m := range all {
			if (name == "" || m.Name == name) && r.Find(perf.AttendName(m.Shape, perf.K3, perf.SpeedContext, r.Threads)) != nil {
				return m, true
			}
		}
	}
	return perf.Model{}, false
}

func cards(r *perf.Record) (out []card) {
	m, ok := modelOf(r)
	if !ok {
		return nil
	}
	small := r.Find(perf.AttendName(m.Shape, perf.K3, perf.SpeedContext, r.Threads))
	plain := r.Find(perf.AttendName(m.Shape, perf.F16, perf.SpeedContext, r.Threads))
	if plain != nil {
		times := plain.Time().Median / small.Time().Median
		out = append(out, card{fmt.Sprintf("%.1f× as fast", times), fmt.Sprintf("attention of %s at 3 bits a value as on the uncompressed cache, "+
			"%s tokens of context", m.Name, perf.TokensText(perf.SpeedContext)), "main"},
			card{perf.Digits(perf.CacheBytes(m, plain, perf.ManyTokens)/1e9) + " → " + perf.Digits(perf.CacheBytes(m, small, perf.ManyTokens)/1e9) + " GB",
				fmt.Sprintf("the cache of %s for 128K tokens", m.Name), ""},
			card{fmt.Sprintf("%d → %d", perf.Conversations(m, plain, r.Memory()), perf.Conversations(m, small, r.Memory())),
				"conversations of 8K tokens in this machine's memory", ""})
	}
	if read := r.Find(perf.ReadName(r.Threads)); read != nil {
		out = append(out, card{fmt.Sprintf("%.1f GB/s", read.GBps()), "that memory gives when it is read in order: what attention cannot beat", ""})
	}
	return out
}

// shapeTitle names the models of a shape.
func shapeTitle(s perf.Shape) string {
	if names := perf.ModelsOf(s); len(names) > 0 {
		return strings.Join(names, ", ")
	}
	return s.String()
}

// attention draws the codings of a shape.
func attention(r *perf.Record, s perf.Shape) []bars {
	b := bars{Title: shapeTitle(s), Note: fmt.Sprintf("rows of %d, %d query heads for each of %d KV heads", s.HeadDim, s.GQA, s.KVHeads)}
	plain := r.Find(perf.AttendName(s, perf.F16, perf.SpeedContext, r.Threads))
	var most float64
	for _, c := range perf.Codings() {
		if x := r.Find(perf.AttendName(s, c, perf.SpeedContext, r.Threads)); x != nil {
			most = max(most, x.Time().High)
		}
	}
	for _, c := range perf.Codings() {
		x := r.Find(perf.AttendName(s, c, perf.SpeedContext, r.Threads))
		if x == nil {
			continue
		}
		t := x.Time()
		v := fmt.Sprintf("%s ns", perf.Digits(t.Median))
		if plain != nil && c != perf.F16 {
			v += fmt.Sprintf(", %s× f16", perf.Digits(t.Median/plain.Time().Median))
		}
		b.Bars = append(b.Bars, bar{Name: string(c), Class: class(c), Value: v, Width: 100 * t.Median / most, Low: 100 * t.Low / most,
			Span: 100 * (t.High - t.Low) / most, Whisker: true})
	}
	if len(b.Bars) == 0 {
		return nil
	}
	return []bars{b}
}

// memory draws what the caches of models take.
func memory(r *perf.Record) (out []bars) {
	for _, m := range perf.Models() {
		b := bars{Title: m.Name}
		var most float64
		for _, c := range perf.Codings() {
			x := r.Find(perf.AttendName(m.Shape, c, perf.SpeedContext, r.Threads))
			if x == nil {
				continue
			}
			bytes := perf.CacheBytes(m, x, perf.ManyTokens)
			most = max(most, bytes)
			b.Bars = append(b.Bars, bar{Name: string(c), Class: class(c), Width: bytes,
				Value: fmt.Sprintf("%s GB, %d fit", perf.Digits(bytes/1e9), perf.Conversations(m, x, r.Memory()))})
		}
		for i := range b.Bars {
			b.Bars[i].Width *= 100 / most
		}
		if len(b.Bars) > 0 {
			out = append(out, b)
		}
	}
	return out
}

// words say what is measured, by the group and the operation of a name.
var words = map[string]string{
	"mass":          "attention that also sums what each block gets, at 3 bits",
	"relevance":     "how much attention each row gets from the last queries",
	"plan":          "a finished context measured, planned and packed at 3 bits",
	"archive write": "a context written as an archive of 3 bits",
	"archive read":  "an archive of 3 bits read back to float32",
	"serve step":    "a step of the serving cache: append and attend",
	"serve close":   "a prompt appended by 64 tokens, its segment sorted and packed",
	"serve park":    "an idle conversation moved to a store in memory",
	"serve resume":  "a parked conversation brought back",
	"embed add":     "embeddings coded and added to an index",
	"embed search":  "an index of embeddings searched, 16 queries at once",
}

func steps(r *perf.Record) (out []step) {
	for i := range r.Results {
		x := &r.Results[i]
		what, ok := words[strings.TrimSpace(x.Group()+" "+x.Key("op"))]
		if !ok {
			continue
		}
		out = append(out, step{what, detail(x.Name), perf.TimeText(x.Time().Median), perf.SpreadText(x.Time()), "one " + x.Unit})
	}
	return out
}

// detail says in words what the keys of a name say.
func detail(name string) string {
	var parts []string
	for _, part := range strings.Split(name, "/")[1:] {
		k, v, _ := strings.Cut(part, "=")
		switch k {
		case "op", "threads":
		case "budget":
			if v == "none" {
				parts = append(parts, "memory for all in f16")
			} else {
				parts = append(parts, v+" of the memory for f16")
			}
		case "context":
			parts = append(parts, v+" tokens")
		case "layers", "rows", "queries", "bits", "bytes":
			parts = append(parts, v+" "+k)
		case "seqs":
			parts = append(parts, v+" conversations")
		case "coding":
			parts = append(parts, v)
		default:
			parts = append(parts, strings.ReplaceAll(k, "_", " ")+" "+v)
		}
	}
	return strings.Join(parts, " · ")
}

// bytesText shows bytes as people say them.
func bytesText(n float64) string {
	switch {
	case n >= 1e9:
		return perf.Digits(n/1e9) + " GB"
	case n >= 1e6:
		return perf.Digits(n/1e6) + " MB"
	}
	return perf.Digits(n/1e3) + " kB"
}
