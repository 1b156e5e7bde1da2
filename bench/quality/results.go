// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// ResultsFormat is the name of the JSON format of Results.
const ResultsFormat = "kvist-quality/1"

// Results is a whole measurement. It holds no NaN or infinity, so it can be written as JSON.
type Results struct {
	Format  string         `json:"format"`
	Model   string         `json:"model"`
	Command string         `json:"command,omitempty"` // set by the caller
	Machine string         `json:"machine,omitempty"` // set by the caller
	Context int            `json:"context"`
	Next    int            `json:"next"`
	Window  int            `json:"window,omitempty"` // while decoding
	Chunk   int            `json:"chunk,omitempty"`
	Exact   ExactResult    `json:"exact"`
	Methods []MethodResult `json:"methods"` // in the order given
	Pairs   []Pair         `json:"pairs"`
}

// ExactResult is the uncompressed run.
type ExactResult struct {
	Texts      []NamedScore     `json:"texts"`
	Perplexity float64          `json:"perplexity"`
	Retrieval  *RetrievalResult `json:"retrieval,omitempty"`
}

// NamedScore is the score of one text.
type NamedScore struct {
	Text string `json:"text"`
	Score
}

// MethodResult is one method over all texts. Means are over texts.
type MethodResult struct {
	Name         string           `json:"name"`
	Source       string           `json:"source"`
	Family       string           `json:"family"` // methods of a family share a line in plots
	BitsPerValue float64          `json:"bits_per_value"`
	Ratio        float64          `json:"ratio"` // original f16 bytes over stored ones
	KL           Interval         `json:"kl"`
	Perplexity   float64          `json:"perplexity"` // exp of the mean surprisal of all texts
	Top1         float64          `json:"top1"`
	Texts        []NamedScore     `json:"texts"`
	Decoding     *DecodingResult  `json:"decoding,omitempty"`
	Retrieval    *RetrievalResult `json:"retrieval,omitempty"`
}

// DecodingResult is one method with errors feeding back.
type DecodingResult struct {
	BitsPerValue float64      `json:"bits_per_value"`
	KL           Interval     `json:"kl"`
	Perplexity   float64      `json:"perplexity"`
	Top1         float64      `json:"top1"`
	Texts        []NamedScore `json:"texts"`
}

// RetrievalResult counts the answers of a method.
type RetrievalResult struct {
	Found        int           `json:"found"`
	Asked        int           `json:"asked"`
	Share        Interval      `json:"share"` // Wilson
	Nats         float64       `json:"nats"`  // mean of -log of the probability of a whole answer
	BitsPerValue float64       `json:"bits_per_value"`
	Kinds        []KindAnswers `json:"kinds"`
	// AgainstExact is the share minus that of the exact cache, with a bootstrap over contexts.
	AgainstExact Interval `json:"against_exact"`
}

// KindAnswers counts the answers to one kind of question.
type KindAnswers struct {
	Kind  string `json:"kind"`
	Found int    `json:"found"`
	Asked int    `json:"asked"`
}

func newResults(m *model.Model, list []methods.Method, o Options) *Results {
	r := &Results{Format: ResultsFormat, Model: m.Name, Context: o.Context, Next: o.Next,
		Methods: make([]MethodResult, len(list)), Pairs: []Pair{}}
	if o.Decode {
		r.Window, r.Chunk = o.Window, o.Chunk
	}
	for i, method := range list {
		r.Methods[i] = MethodResult{Name: method.Name(), Source: method.Source(),
			Family: family(method.Name())}
		if o.Decode {
			r.Methods[i].Decoding = &DecodingResult{}
		}
	}
	return r
}

// maxResults bounds the bytes that ReadResults reads.
const maxResults = 64 << 20

// ReadResults reads the JSON of Results, for tables and plots of an earlier measurement.
//
// Errors: quant.ErrCorrupt for other or inconsistent JSON; quant.ErrVersion for another format;
// those of rd.
func ReadResults(rd io.Reader) (*Results, error) {
	const op = "kvist/quality: read results"
	raw, err := io.ReadAll(io.LimitReader(rd, maxResults+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if len(raw) > maxResults {
		return nil, fmt.Errorf("%s: more than %d bytes: %w", op, maxResults, quant.ErrTooLarge)
	}
	var r Results
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", op, err, quant.ErrCorrupt)
	}
	if r.Format != ResultsFormat {
		return nil, fmt.Errorf("%s: format %q, want %q: %w", op, r.Format, ResultsFormat,
			quant.ErrVersion)
	}
	for i := range r.Methods {
		m := &r.Methods[i]
		m.Family = family(m.Name)
		if len(m.Texts) != len(r.Exact.Texts) ||
			(m.Retrieval == nil) != (r.Exact.Retrieval == nil) ||
			(m.Decoding == nil) != (r.Methods[0].Decoding == nil) {
			return nil, fmt.Errorf("%s: method %q has %d texts, want %d, or measures that others "+
				"have not: %w", op, m.Name, len(m.Texts), len(r.Exact.Texts), quant.ErrCorrupt)
		}
	}
	return &r, nil
}

// family returns the common part of the names of a method's settings: "kivi" of "kivi4", "ggml"
// of "ggml-q8_0", "snapkv" of "snapkv:25%", "tqmse sinks=4" of "tqmse3:sinks=4", "uniform" of
// "lm3+len". Arguments that choose a size (bits, codings) do not count; others make a family of their
// own.
func family(name string) string {
	base, rest, _ := strings.Cut(name, ":")
	base, _, _ = strings.Cut(base, "+")
	family := strings.TrimRight(base, "0123456789.")
	if b, _, ok := strings.Cut(base, "-q"); ok && b != "" {
		family = b
	}
	switch {
	case family == "lm":
		family = "uniform" // one coding for K and V, or one for each
	case len(family) < 3: // f16, u8, fp8
		family = base
	}
	for f := range strings.SplitSeq(rest, ",") {
		key, _, ok := strings.Cut(f, "=")
		if ok && key != "k" && key != "v" && key != "bits" {
			family += " " + f
		}
	}
	return family
}

func (r *Results) addText(t *TextResult) {
	r.Exact.Texts = append(r.Exact.Texts, NamedScore{t.Name, t.Exact})
	for i := range r.Methods {
		m := &r.Methods[i]
		m.Texts = append(m.Texts, NamedScore{t.Name, t.Prefill[i]})
		if m.Decoding != nil {
			m.Decoding.Texts = append(m.Decoding.Texts, NamedScore{t.Name, t.Decoding[i]})
		}
	}
}

// each returns one number per text.
func each(s []NamedScore, f func(Score) float64) []float64 {
	out := make([]float64, len(s))
	for i := range s {
		out[i] = f(s[i].Score)
	}
	return out
}

// summarise returns the means over texts.
func summarise(s []NamedScore) (bits float64, kl Interval, ppl, top1 float64) {
	return mean(each(s, func(x Score) float64 { return x.BitsPerValue })),
		Bootstrap(each(s, func(x Score) float64 { return x.KL })),
		math.Exp(mean(each(s, func(x Score) float64 { return x.Surprisal }))),
		mean(each(s, func(x Score) float64 { return x.Top1 }))
}

// finish computes all means.
func (r *Results) finish() {
	_, _, r.Exact.Perplexity, _ = summarise(r.Exact.Texts)
	for i := range r.Methods {
		m := &r.Methods[i]
		m.BitsPerValue, m.KL, m.Perplexity, m.Top1 = summarise(m.Texts)
		if m.BitsPerValue > 0 {
			m.Ratio = 16 / m.BitsPerValue
		}
		if d := m.Decoding; d != nil {
			d.BitsPerValue, d.KL, d.Perplexity, d.Top1 = summarise(d.Texts)
		}
	}
}

// AddRetrieval adds the answers that Ask returned for the methods of r, in the same order.
//
// Errors: quant.ErrShape if the methods differ.
func (r *Results) AddRetrieval(q *Retrieval, answers []Answers) error {
	if len(answers) != len(r.Methods)+1 {
		return shapef("add retrieval", "answers of %d methods, want exact and %d", len(answers),
			len(r.Methods))
	}
	r.Exact.Retrieval = retrievalResult(q, &answers[0], &answers[0])
	for i := range r.Methods {
		m := &r.Methods[i]
		if m.Name != answers[i+1].Method {
			return shapef("add retrieval", "answers of %q, want %q", answers[i+1].Method, m.Name)
		}
		m.Retrieval = retrievalResult(q, &answers[i+1], &answers[0])
	}
	for i := range r.Pairs {
		a, b := r.answersOf(r.Pairs[i].A, answers), r.answersOf(r.Pairs[i].B, answers)
		if a != nil && b != nil {
			d := pairFound(a, b)
			r.Pairs[i].Found = &d
		}
	}
	return nil
}

func (r *Results) answersOf(name string, answers []Answers) *Answers {
	for i := range answers {
		if answers[i].Method == name {
			return &answers[i]
		}
	}
	return nil
}

func retrievalResult(q *Retrieval, a, exact *Answers) *RetrievalResult {
	found, asked := a.Count(q, "")
	out := &RetrievalResult{Found: found, Asked: asked, Share: Wilson(found, asked),
		BitsPerValue: a.BitsPerValue, AgainstExact: pairFound(a, exact)}
	var nats []float64
	for _, c := range a.Nats {
		nats = append(nats, c...)
	}
	out.Nats = mean(nats)
	for _, kind := range []string{"fact", "list"} {
		if f, n := a.Count(q, kind); n > 0 {
			out.Kinds = append(out.Kinds, KindAnswers{kind, f, n})
		}
	}
	return out
}

// Compare adds the pair of two methods: a minus b over the texts.
//
// Errors: quant.ErrShape for a method that was not measured.
func (r *Results) Compare(a, b string) error {
	x, y := r.method(a), r.method(b)
	if x == nil || y == nil {
		return shapef("compare", "methods %q and %q, one of which was not measured", a, b)
	}
	kl := func(s Score) float64 { return s.KL }
	p := Pair{A: a, B: b}
	p.KL, p.Ratio = pairKL(each(x.Texts, kl), each(y.Texts, kl))
	r.Pairs = append(r.Pairs, p)
	return nil
}

func (r *Results) method(name string) *MethodResult {
	for i := range r.Methods {
		if r.Methods[i].Name == name {
			return &r.Methods[i]
		}
	}
	return nil
}

// sameBytes is the ratio of bytes up to which another method counts as of the same size.
const sameBytes = 1.1

// ComparePairs adds a pair for every method of the families that start with prefix. The other method
// of the pair has the least divergence of those of other families with at most 1.1 times the bytes.
// A method is left out if there is none so small.
func (r *Results) ComparePairs(prefix string) error {
	for i := range r.Methods {
		m := &r.Methods[i]
		if !strings.HasPrefix(m.Family, prefix) {
			continue
		}
		var rivals []*MethodResult
		for j := range r.Methods {
			o := &r.Methods[j]
			if !strings.HasPrefix(o.Family, prefix) && o.BitsPerValue <= sameBytes*m.BitsPerValue {
				rivals = append(rivals, o)
			}
		}
		if len(rivals) == 0 {
			continue
		}
		best := slices.MinFunc(rivals, func(a, b *MethodResult) int {
			return cmp.Compare(a.KL.Mean, b.KL.Mean)
		})
		if err := r.Compare(m.Name, best.Name); err != nil {
			return err
		}
	}
	return nil
}
