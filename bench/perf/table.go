// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Table is a table of a record.
type Table struct {
	Title   string
	Note    string // what a reader has to know; "" for nothing
	Headers []string
	Rows    [][]string
}

// Tables returns what a record says, the most asked for first. Tables without rows are left out.
func (r *Record) Tables() (out []Table) {
	add := func(t Table) {
		if len(t.Rows) > 0 {
			out = append(out, t)
		}
	}
	add(r.memoryTable())
	for _, s := range r.AttendShapes() {
		add(r.attendTable(s))
	}
	add(r.modelTable())
	add(r.codecTable())
	add(r.otherTable())
	return out
}

// AttendShapes are the shapes of models of which attention was measured.
func (r *Record) AttendShapes() (out []Shape) {
	for _, s := range shapes(false) {
		if len(r.Contexts(s)) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// Contexts are the contexts at which attention of a shape was measured.
func (r *Record) Contexts(s Shape) (out []int) {
	for _, n := range contexts(false) {
		for _, c := range Codings() {
			if r.Find(AttendName(s, c, n, r.Threads)) != nil {
				out = append(out, n)
				break
			}
		}
	}
	return out
}

func (r *Record) memoryTable() Table {
	t := Table{Title: "Memory", Headers: []string{"", "GB/s", "±"},
		Note: "Bytes of a copy are read and written."}
	for i := range r.Results {
		if x := &r.Results[i]; x.Group() == "memory" {
			t.Rows = append(t.Rows, []string{fmt.Sprintf("%s, %s", x.Key("op"), threadsText(x.Threads)), Digits(x.GBps()), SpreadText(x.NS)})
		}
	}
	return t
}

func threadsText(n int) string {
	if n == 1 {
		return "1 thread"
	}
	return fmt.Sprintf("%d threads", n)
}

// attendTable has the codings of a shape, with a column for every context.
func (r *Record) attendTable(s Shape) Table {
	t := Table{Title: fmt.Sprintf("Attention, rows of %d, %d query heads for each of %d KV heads: %s", s.HeadDim, s.GQA, s.KVHeads,
		strings.Join(ModelsOf(s), ", ")), Headers: []string{"coding", "bits/value"},
		Note: fmt.Sprintf("ns for a row of K and V, from memory, %s; ± is half the distance of the quartiles. The last two columns "+
			"compare processor time. ggml's codings are unpacked by plain code; llama.cpp has faster kernels for them.", threadsText(r.Threads))}
	all := r.Contexts(s)
	for _, n := range all {
		t.Headers = append(t.Headers, fmt.Sprintf("ns at %s", TokensText(int64(n))), "±")
	}
	t.Headers = append(t.Headers, "processor ns", "GB/s", "of read speed", "of f16")
	at := SpeedContext
	if !slices.Contains(all, at) && len(all) > 0 {
		at = all[len(all)-1]
	}
	plain := r.Find(AttendName(s, F16, at, r.Threads))
	for _, c := range Codings() {
		x := r.Find(AttendName(s, c, at, r.Threads))
		if x == nil {
			continue
		}
		row := []string{string(c), Digits(x.BitsPerValue())}
		for _, n := range all {
			y := r.Find(AttendName(s, c, n, r.Threads))
			if y == nil {
				row = append(row, "-", "")
				continue
			}
			row = append(row, Digits(y.Time().Median), SpreadText(y.Time()))
		}
		row = append(row, orDash(x.CPUNS.Median), Digits(x.GBps()), percentText(r.Share(x)))
		if plain != nil {
			row = append(row, percentText(x.Cost()/plain.Cost()))
		} else {
			row = append(row, "-")
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// ModelsOf names the models of a shape.
func ModelsOf(s Shape) (names []string) {
	for _, m := range Models() {
		if m.Shape == s {
			names = append(names, m.Name)
		}
	}
	return names
}

// modelTable says what the figures mean for models.
func (r *Record) modelTable() Table {
	t := Table{Title: "Models", Headers: []string{"model", "coding", fmt.Sprintf("tokens/s at %s", TokensText(SpeedContext)),
		fmt.Sprintf("GB for %s", TokensText(ManyTokens)), fmt.Sprintf("conversations of %s", TokensText(Conversation))},
		Note: fmt.Sprintf("Tokens a second that attention alone would allow, and what the cache takes. Conversations: as many as fit in "+
			"the %.0f GiB of the backend if it held nothing else.", float64(r.Memory())/(1<<30))}
	for _, m := range Models() {
		for _, c := range Codings() {
			x := r.Find(AttendName(m.Shape, c, SpeedContext, r.Threads))
			if x == nil {
				continue
			}
			t.Rows = append(t.Rows, []string{m.Name, string(c), Digits(TokensPerSecond(m, x, SpeedContext)),
				Digits(CacheBytes(m, x, ManyTokens) / 1e9), fmt.Sprint(Conversations(m, x, r.Memory()))})
		}
	}
	return t
}

// Memory is what the caches of conversations may take.
func (r *Record) Memory() int64 {
	if r.Backend.Memory > 0 {
		return r.Backend.Memory
	}
	return r.Machine.Memory
}

// CodingTitle is the title of the table of coding.
const CodingTitle = "Coding"

func (r *Record) codecTable() Table {
	t := Table{Title: CodingTitle, Headers: []string{"rows of", "coding", "encode", "decode", "demote"},
		Note: fmt.Sprintf("G values/s from and to float32, in the processor's caches, %s.", threadsText(r.Threads))}
	for i := range r.Results {
		x := &r.Results[i]
		if x.Group() != "encode" && (x.Group() != "decode" || r.Find("encode"+strings.TrimPrefix(x.Name, "decode")) != nil) {
			continue
		}
		_, rest, _ := strings.Cut(x.Name, "/")
		row := []string{x.Key("head_dim"), x.Key("coding")}
		for _, g := range []string{"encode", "decode", "demote"} {
			if y := r.Find(g + "/" + rest); y != nil {
				row = append(row, Digits(1/y.Time().Median))
			} else {
				row = append(row, "-")
			}
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// otherTable lists what no other table shows.
func (r *Record) otherTable() Table {
	t := Table{Title: "Everything else", Headers: []string{"measured", "for one", "time", "±", "processor time"}}
	for i := range r.Results {
		x := &r.Results[i]
		switch x.Group() {
		case "memory", "attend", "encode", "decode", "demote":
			continue
		}
		t.Rows = append(t.Rows, []string{x.Name, x.Unit, TimeText(x.Time().Median), SpreadText(x.Time()), TimeText(x.CPUNS.Median)})
	}
	return t
}

// Digits shows three digits.
func Digits(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x >= 0.1:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
	return strconv.FormatFloat(x, 'g', 2, 64)
}

func orDash(x float64) string {
	if x == 0 {
		return "-"
	}
	return Digits(x)
}

// SpreadText shows half the distance of the quartiles.
func SpreadText(s Spread) string { return fmt.Sprintf("%.1f %%", 100*s.Half()) }

func percentText(x float64) string {
	if x == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*x)
}

// TimeText shows nanoseconds in a unit that is easy to read.
func TimeText(ns float64) string {
	switch {
	case ns == 0:
		return "-"
	case ns >= 1e6:
		return Digits(ns/1e6) + " ms"
	case ns >= 1e3:
		return Digits(ns/1e3) + " us"
	}
	return Digits(ns) + " ns"
}

// TokensText shows powers of two as 8K.
func TokensText(n int64) string {
	if n%1024 == 0 {
		return fmt.Sprintf("%dK", n/1024)
	}
	return fmt.Sprint(n)
}
