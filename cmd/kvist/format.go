// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
)

// What a string out of a file may take of the output, in bytes: what is longer is cut, and how much
// was cut is said. A line of a table is as wide as its widest cells.
const (
	maxCell = 256     // in a table
	maxLine = 4096    // in a line of text
	maxJSON = 1 << 16 // in --json
)

// textTable is a table of short cells. Before widths are set, each cell is cut to one line of at most maxCell
// bytes, and control characters, which a terminal would act on, are replaced by visible ones.
type textTable struct{ table.Writer }

func (t textTable) AppendRow(row []any) { t.Writer.AppendRow(cells(row)) }

func (t textTable) AppendFooter(row []any) { t.Writer.AppendFooter(cells(row)) }

func cells(row []any) table.Row {
	out := make(table.Row, len(row))
	for i, x := range row {
		if s, ok := x.(string); ok {
			x = visible.Line(visible.Cut(s, maxCell))
		}
		out[i] = x
	}
	return out
}

// newTable starts a plain table: a header, a line below it, columns set off by spaces. Columns
// whose index is in right are set flush right.
func newTable(header []any, right ...int) textTable {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.Options{SeparateHeader: true, SeparateFooter: true}
	style.Format.Header, style.Format.Footer = text.FormatDefault, text.FormatDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	t.AppendHeader(cells(header))
	t.SuppressTrailingSpaces()
	var columns []table.ColumnConfig
	for _, c := range right {
		columns = append(columns, table.ColumnConfig{Number: c + 1, Align: text.AlignRight,
			AlignHeader: text.AlignRight, AlignFooter: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	return textTable{t}
}

// count writes a number with its thousands apart: 1,234,567.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	from := 0
	if n < 0 {
		from = 1
	}
	for i := len(s) - 3; i > from; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// percent writes a share of one.
func percent(x float64) string {
	switch {
	case math.IsNaN(x):
		return "-"
	case math.IsInf(x, 0):
		return "inf"
	case x != 0 && math.Abs(x) < 0.0001:
		return fmt.Sprintf("%.1e %%", 100*x)
	}
	return fmt.Sprintf("%.3g %%", 100*x)
}

// share is part of whole as a percentage with one digit.
func share(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// sizeText compares the bytes of a file with those of its values as f16, which every ratio here is
// to, and with those of the original where that had another type.
func sizeText(bytes, f16, source int64) string {
	s := fmt.Sprintf("%s (%s bytes)", timesText(bytes, f16, "f16"), count(f16))
	if source > 0 && source != f16 {
		s += fmt.Sprintf(", %s (%s bytes)", timesText(bytes, source, "the original"), count(source))
	}
	return s
}

// timesText says how many times smaller a file is than something, or how many times as large.
func timesText(bytes, than int64, what string) string {
	if bytes > than && than > 0 {
		return fmt.Sprintf("%.2fx the size of %s", float64(bytes)/float64(than), what)
	}
	return fmt.Sprintf("%.2fx smaller than %s", float64(than)/float64(max(1, bytes)), what)
}

// number returns x, or nil where JSON has no number for it.
func number(x float64) *float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return nil
	}
	return &x
}

// printJSON writes v as one indented JSON object. Strings of more than maxJSON bytes are cut.
func printJSON(w io.Writer, v any) error {
	v = visible.Map(v, func(s string) string { return visible.Cut(s, maxJSON) })
	e := json.NewEncoder(visible.NewWriter(w)) // the text may be in a file that a terminal shows
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// printer writes text and keeps the first error, so that a full disk behind a redirection is not
// taken for success. A string that is printed into a line stays in the line and is not too long.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err != nil {
		return
	}
	for i, x := range args {
		if s, ok := x.(string); ok {
			args[i] = visible.Line(visible.Cut(s, maxLine))
		}
	}
	_, p.err = fmt.Fprintf(p.w, format, args...)
}

func (p *printer) table(t textTable) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, t.Render())
	}
}

// complain writes a line of its own to standard error.
func (a *app) complain(format string, args ...any) {
	(&printer{w: a.stderr}).printf("kvist: "+format+"\n", args...)
}
