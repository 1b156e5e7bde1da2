// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// Headers returns the headers of the columns of Table.
func (r *Results) Headers() []string {
	h := []string{"method", "bits/value", "x vs f16", "KL", "95 %", "worst token", "perplexity", "top-1"}
	if r.asked() {
		h = append(h, "found", "nats/answer")
	}
	if r.decoded() {
		h = append(h, "KL decoding", "bits decoding")
	}
	return h
}

func (r *Results) asked() bool   { return r.Exact.Retrieval != nil }
func (r *Results) decoded() bool { return len(r.Methods) > 0 && r.Methods[0].Decoding != nil }

// Table returns the cells of every row, the exact run first.
func (r *Results) Table() [][]string {
	exact := []string{"exact (f32)", "32", "0.50", "0", "", "0", fmt.Sprintf("%.3f",
		r.Exact.Perplexity), "1"}
	if q := r.Exact.Retrieval; q != nil {
		exact = append(exact, found(q), fmt.Sprintf("%.3f", q.Nats))
	}
	if r.decoded() {
		exact = append(exact, "0", "32")
	}
	rows := [][]string{exact}
	for i := range r.Methods {
		m := &r.Methods[i]
		row := []string{m.Name, fmt.Sprintf("%.3f", m.BitsPerValue), fmt.Sprintf("%.2f", m.Ratio),
			Significant(m.KL.Mean), Significant(m.KL.Low) + " to " + Significant(m.KL.High),
			worst(m.Texts), fmt.Sprintf("%.3f", m.Perplexity), fmt.Sprintf("%.4f", m.Top1)}
		if r.asked() {
			q := m.Retrieval
			row = append(row, found(q), fmt.Sprintf("%.3f", q.Nats))
		}
		if d := m.Decoding; d != nil {
			row = append(row, Significant(d.KL.Mean), fmt.Sprintf("%.3f", d.BitsPerValue))
		}
		rows = append(rows, row)
	}
	return rows
}

// worst is the largest divergence of a token.
func worst(texts []NamedScore) string {
	var most float64
	for _, t := range texts {
		most = max(most, t.KLMax)
	}
	return fmt.Sprintf("%.2g", most)
}

func found(q *RetrievalResult) string { return fmt.Sprintf("%d/%d", q.Found, q.Asked) }

// Significant writes a number with two significant digits, without an exponent down to 1e-6.
func Significant(x float64) string {
	switch {
	case x == 0:
		return "0"
	case math.Abs(x) < 1e-6:
		return fmt.Sprintf("%.1e", x)
	}
	digits := max(0, 1-int(math.Floor(math.Log10(math.Abs(x)))))
	return fmt.Sprintf("%.*f", digits, x)
}

// PairHeaders returns the headers of the columns of PairTable.
func (r *Results) PairHeaders() []string {
	h := []string{"method", "against", "KL difference", "95 %", "KL ratio", "95 %"}
	if r.asked() {
		h = append(h, "found difference", "95 %")
	}
	return h
}

// PairTable returns the cells of every pair.
func (r *Results) PairTable() [][]string {
	var rows [][]string
	for _, p := range r.Pairs {
		row := []string{p.A, p.B, Significant(p.KL.Mean), span(p.KL, Significant), "", ""}
		if p.Ratio.Mean > 0 {
			row[4], row[5] = Significant(p.Ratio.Mean), span(p.Ratio, Significant)
		}
		if r.asked() {
			row = append(row, "", "")
			if p.Found != nil {
				f := func(x float64) string { return fmt.Sprintf("%+.3f", x) }
				row[6], row[7] = f(p.Found.Mean), span(*p.Found, f)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func span(i Interval, f func(float64) string) string { return f(i.Low) + " to " + f(i.High) }

// Markdown writes the results as a page.
//
// Errors: those of w.
func (r *Results) Markdown(w io.Writer) error {
	p := &mdWriter{w: w}
	p.printf("# Quality in the model\n\n%s, %d texts, %d tokens of context compressed, %d tokens "+
		"after it teacher-forced.\n", r.Model, len(r.Exact.Texts), r.Context, r.Next)
	if r.Machine != "" {
		p.printf("Machine: %s.\n", r.Machine)
	}
	if r.Command != "" {
		p.printf("\n    %s\n", r.Command)
	}
	p.printf("\n")
	p.table(r.Headers(), r.Table())
	p.printf("\nKL: mean divergence of next-token distributions from the exact float32 cache, " +
		"nats, mean over texts with a bootstrap over texts. worst token: the largest divergence of a " +
		"token. bits/value counts all stored bytes over the values of K and V of the original that a later query " +
		"can see. top-1: same arg max.\n")
	if q := r.Exact.Retrieval; q != nil {
		p.printf("\nfound: questions about %d facts answered by greedy tokens, asked after "+
			"compression (", q.Asked)
		for i, k := range q.Kinds {
			if i > 0 {
				p.printf(", ")
			}
			p.printf("%d of kind %s", k.Asked, k.Kind)
		}
		p.printf("). nats/answer: mean of -log of the probability of the whole answer.\n")
	}
	if r.decoded() {
		p.printf("\nKL decoding: rows are compressed once they are older than %d tokens, in "+
			"chunks of %d, so that errors feed back; the %d tokens of the window count 16 bits a "+
			"value.\n",
			r.Window, r.Chunk, r.Window)
	}
	if len(r.Pairs) > 0 {
		p.printf("\n## Paired differences at the same bytes\n\nAgainst the least divergence of " +
			"any other method of at most 1.1 times the bytes, on the same texts and questions; " +
			"the ratio is the geometric mean over texts. Below 1 the method is better.\n\n")
		p.table(r.PairHeaders(), r.PairTable())
	}
	p.printf("\n## KL by text\n\n")
	headers := []string{"method"}
	for _, t := range r.Exact.Texts {
		headers = append(headers, t.Text)
	}
	var rows [][]string
	for i := range r.Methods {
		row := []string{r.Methods[i].Name}
		for _, t := range r.Methods[i].Texts {
			row = append(row, Significant(t.KL))
		}
		rows = append(rows, row)
	}
	p.table(headers, rows)
	p.printf("\n## Sources\n\n")
	for i := range r.Methods {
		p.printf("* %s: %s\n", r.Methods[i].Name, r.Methods[i].Source)
	}
	return p.err
}

type mdWriter struct {
	w   io.Writer
	err error
}

func (p *mdWriter) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// table writes a table whose first column is text.
func (p *mdWriter) table(headers []string, rows [][]string) {
	p.printf("| %s |\n|---|%s\n", strings.Join(headers, " | "),
		strings.Repeat("---:|", len(headers)-1))
	for _, r := range rows {
		for i := range r {
			r[i] = strings.ReplaceAll(r[i], "|", `\|`)
		}
		p.printf("| %s |\n", strings.Join(r, " | "))
	}
}
