// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/engine/model"
)

// defaultMethods are what eval compares when nothing else is asked for: one or two settings of
// every family.
const defaultMethods = "f16 ggml-q8_0 ggml-q4_0 kivi4 kivi2 tqmse4 tqmse3 tqmse2 snapkv:25% " +
	"kvist:4.25 kvist:3.25 kvist:2.75 kvist:2.25"

// standardMethods asks for all methods of the quality table.
const standardMethods = "standard"

// standardQuestions is how many questions --standard asks.
const standardQuestions = 96

// retrievalSeed chooses the facts of --needles.
const retrievalSeed = 1

type evalFlags struct {
	methods, plot, html, results, name  string
	from                                []string
	context, next, needles              int
	decode, standard, json, force, list bool
	window, chunk                       int
	model                               modelFlags
}

func newEval(a *app) *cobra.Command {
	var f evalFlags
	cmd := &cobra.Command{
		Use:   "eval MODEL [TEXT...] | --from FILE",
		Short: "Measure how compression methods change the predictions of a model",
		Long: `eval runs a model over texts, compresses the K and V of the context with each method, and
continues on the result. It prints the bytes, the divergence of the next-token distributions from the
exact cache (KL, nats), perplexity, and the share of equal top tokens. For methods of kvist it also
prints the paired difference from the best other method at the same bytes.

MODEL is a GGUF file (llama, Mistral, SmolLM3, qwen2, qwen3, gemma3, phi3, granite), or smollm2: the
SmolLM2-135M-Instruct that make model downloads, or gemma: the Gemma 3 270M of make model-gemma. In layers
with a window, methods get the rows that later queries see, and bits a value are counted over those.
TEXTs are text files of at least --context plus --next tokens. The default is the ten texts that kvist
includes.

--methods lists methods, separated by spaces. A name with * means all methods of the standard table
that match it; standard means all of them. --list-methods prints them. Examples of names:
  f16  ggml-q4_0  lm3+len:sinks=4       a coding for K and V
  uniform:k=lm3+len+s8,v=lm2+len+s8     a coding for each
  kivi2:window=128  gear4  tqprod3  fp8  snapkv:25%
  kvist:2.75  kvist:bits=3,sinks=8      a whole .kvist file at this many bits per value
  kvist:2.75,profile=model.kvprofile    the same with a profile of kvist tune

--needles asks questions about facts in the texts after compression. --decode compresses while it
decodes, so that errors feed back. --standard measures the table of the project: all eval texts, all
methods of the table, 96 questions; it writes to --results (bench/results).

Fields of --json: format, model, command, machine, context, next, window, chunk, exact (texts,
perplexity, retrieval), methods (name, source, family, bits_per_value, ratio, kl, perplexity, top1,
texts, decoding, retrieval), pairs (a, b, kl, ratio, found). Intervals are mean, low, high (95 %).`,
		Example: `  kvist eval smollm2
  kvist eval smollm2 --methods "kivi4 kivi2 kvist:*" --needles 48 --plot quality.svg
  kvist eval model.gguf book.txt --context 4096 --methods "ggml-q8_0 kvist:3" --json
  kvist eval smollm2 --standard
  kvist eval --from bench/results/quality.json --html quality.html`,
		Args: cobra.ArbitraryArgs,
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.eval(cmd.Context(), args, &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.methods, "methods", "", "`NAMES` of the methods, separated by spaces")
	fl.BoolVar(&f.list, "list-methods", false, "print the names of the standard table and exit")
	fl.IntVar(&f.context, "context", 1024, "`tokens` of context to compress")
	fl.IntVar(&f.next, "next", 256, "`tokens` after the context, to measure on")
	fl.BoolVar(&f.decode, "decode", false, "also measure with errors feeding back")
	fl.IntVar(&f.window, "window", 128, "recent `tokens` that stay exact while decoding")
	fl.IntVar(&f.chunk, "chunk", 128, "`tokens` between two compressions while decoding")
	fl.IntVar(&f.needles, "needles", 0, "`questions` asked after compression; 0: none")
	fl.BoolVar(&f.standard, "standard", false, "measure the table of the project")
	fl.StringVar(&f.results, "results", "", "`DIR` to write NAME.md, NAME.json and NAME.svg to")
	fl.StringVar(&f.name, "name", "quality", "`NAME` of the files in --results")
	fl.StringArrayVar(&f.from, "from", nil,
		"`FILE` of --json to show again instead of measuring; more than one are put together, by methods or by texts")
	fl.StringVar(&f.plot, "plot", "", "`FILE` to plot KL against bits per value to (SVG)")
	fl.StringVar(&f.html, "html", "", "`FILE` to write a page with tables and plot to")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace --plot and --html if they exist")
	f.model.add(cmd)
	return cmd
}

func (f *evalFlags) check(args []string) error {
	for _, x := range []struct {
		name         string
		v, low, high int
	}{{"context", f.context, 1, 1 << 20}, {"next", f.next, 2, 1 << 20}, {"window", f.window, 1,
		1 << 20},
		{"chunk", f.chunk, 1, 4096}, {"needles", f.needles, 0, 1 << 16}} {
		if x.v < x.low || x.v > x.high {
			return usagef("--%s %d: want %d to %d", x.name, x.v, x.low, x.high)
		}
	}
	switch {
	case len(f.from) > 0 && len(args) > 0:
		return usagef("--from measures nothing: it takes no model and no texts")
	case len(args) == 0 && !f.list && len(f.from) == 0:
		return usagef("no model given: a GGUF file, or %s", smolLM2)
	case f.standard && len(args) > 1:
		return usagef("--standard has texts of its own")
	case f.name == "" || filepath.Base(f.name) != f.name:
		return usagef("--name %q: want the name of a file without its folder", f.name)
	case f.needles > 0 && f.context < 256:
		return usagef("--needles with --context %d: want 256 or more", f.context)
	}
	return f.model.check()
}

// chooseMethods reads --methods.
func chooseMethods(names string) ([]methods.Method, error) {
	var out []methods.Method
	seen := map[string]bool{}
	add := func(m methods.Method) {
		if !seen[m.Name()] {
			seen[m.Name()] = true
			out = append(out, m)
		}
	}
	for name := range strings.FieldsSeq(names) {
		if name != standardMethods && !strings.Contains(name, "*") {
			m, err := methods.ByName(name)
			if err != nil {
				return nil, err
			}
			add(m)
			continue
		}
		n := 0
		for _, m := range methods.Standard() {
			ok, err := path.Match(name, m.Name())
			if err != nil {
				return nil, fmt.Errorf("method %q: %w", name, err)
			}
			if ok || name == standardMethods {
				add(m)
				n++
			}
		}
		if n == 0 {
			return nil, fmt.Errorf("no method of the standard table matches %q", name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no methods named")
	}
	return out, nil
}

func (a *app) eval(ctx context.Context, args []string, f *evalFlags) error {
	if err := f.check(args); err != nil {
		return err
	}
	if f.list {
		p := &printer{w: a.stdout}
		for _, m := range methods.Standard() {
			p.printf("%-44s %s\n", m.Name(), m.Source())
		}
		return p.err
	}
	if len(f.from) > 0 {
		if err := a.checkOutputs(f.from, f.outputs()...); err != nil {
			return err
		}
		res, err := a.readResults(ctx, f.from[0])
		if err != nil {
			return err
		}
		for _, name := range f.from[1:] {
			more, err := a.readResults(ctx, name)
			if err != nil {
				return err
			}
			if err := res.Merge(more); err != nil {
				return fmt.Errorf("--from %s: %w", name, err)
			}
		}
		if len(f.from) > 1 && res.Exact.Retrieval == nil { // there are other rivals now
			res.Pairs = res.Pairs[:0]
			if err := res.ComparePairs("kvist"); err != nil {
				return err
			}
		}
		return a.evalOutput(ctx, res, f)
	}
	f.fill()
	list, err := chooseMethods(f.methods)
	if err != nil {
		return &usageError{err: err}
	}
	if err := a.checkOutputs(evalInputs(args, list), f.outputs()...); err != nil {
		return err
	}
	m, err := f.model.open(args[0], f.context+f.next)
	if err != nil {
		return err
	}
	inputs, bodies, err := a.evalTexts(ctx, m, args[1:], f)
	if err != nil {
		return err
	}
	say, clear := a.progress()
	defer clear()
	res, err := quality.Evaluate(ctx, m, inputs, list, quality.Options{Context: f.context,
		Next: f.next, Decode: f.decode, Window: f.window, Chunk: f.chunk, Progress: say})
	if err != nil {
		return err
	}
	if err := res.ComparePairs("kvist"); err != nil {
		return err
	}
	if res.Machine, err = machineClass(); err != nil {
		return err
	}
	res.Command = f.command(args)
	if f.needles > 0 {
		// The questions take as long again: what is measured already is not to be lost.
		if err := a.saveResults(ctx, res, f); err != nil {
			return err
		}
		q, err := quality.NewRetrieval(m.Tokenizer(), bodies, f.needles, f.context, retrievalSeed)
		if err != nil {
			return err
		}
		answers, err := q.Ask(ctx, m, list, say)
		if err != nil {
			return err
		}
		if err := res.AddRetrieval(q, answers); err != nil {
			return err
		}
	}
	clear()
	return a.evalOutput(ctx, res, f)
}

// readResults reads what --json or --results wrote.
func (a *app) readResults(ctx context.Context, name string) (res *quality.Results, err error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, err
	}
	defer closing(in, &err)
	return quality.ReadResults(io.NewSectionReader(in, 0, in.size))
}

// fill sets what --standard stands for.
func (f *evalFlags) fill() {
	if f.standard {
		if f.needles == 0 {
			f.needles = standardQuestions
		}
		if f.methods == "" {
			f.methods = standardMethods
		}
		if f.results == "" {
			f.results = filepath.Join("bench", "results")
		}
	}
	if f.methods == "" {
		f.methods = defaultMethods
	}
}

// command is the line that gives these results again.
func (f *evalFlags) command(args []string) string {
	s := "kvist eval " + filepath.Base(args[0])
	for _, t := range args[1:] {
		s += " " + filepath.Base(t)
	}
	switch {
	case f.standard && f.methods == standardMethods:
		s += " --standard"
	case f.standard:
		s += fmt.Sprintf(" --standard --methods %q", f.methods)
	default:
		s += fmt.Sprintf(" --methods %q", f.methods)
		if f.needles > 0 {
			s += fmt.Sprintf(" --needles %d", f.needles)
		}
	}
	if f.context != 1024 || f.next != 256 {
		s += fmt.Sprintf(" --context %d --next %d", f.context, f.next)
	}
	if f.decode {
		s += fmt.Sprintf(" --decode --window %d --chunk %d", f.window, f.chunk)
	}
	return s
}

// evalTexts reads and encodes the texts; without names the eval texts of package texts.
func (a *app) evalTexts(ctx context.Context, m *model.Model, names []string,
	f *evalFlags) (inputs []quality.Input, bodies []string, err error) {
	o := quality.Options{Context: f.context, Next: f.next}
	add := func(name, body string) error {
		in, err := quality.Tokenize(m.Tokenizer(), name, body, o)
		inputs, bodies = append(inputs, in), append(bodies, body)
		return err
	}
	if len(names) == 0 {
		for _, t := range texts.WithRole(texts.RoleEval) {
			if err := add(t.Name, t.Body); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, name := range names {
		body, err := a.readText(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		base := filepath.Base(name)
		if err := add(strings.TrimSuffix(base, filepath.Ext(base)), body); err != nil {
			return nil, nil, err
		}
	}
	return inputs, bodies, nil
}

// machineClass says in general what the numbers were computed on: the instruction set decides
// their rounding.
func machineClass() (string, error) {
	e, err := matmul.Open(matmul.Options{Workers: 1})
	if err != nil {
		return "", err
	}
	isa := map[string]string{"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON"}[e.ISA()]
	if isa == "" {
		isa = e.ISA() + " code"
	}
	return fmt.Sprintf("%d cores, %s, %s", runtime.NumCPU(), runtime.GOARCH, isa), nil
}

// saveResults writes the files of --results, in the place of those that are there.
func (a *app) saveResults(ctx context.Context, res *quality.Results, f *evalFlags) error {
	if f.results == "" {
		return nil
	}
	if err := os.MkdirAll(f.results, 0o777); err != nil {
		return err
	}
	for i, write := range []func(io.Writer) error{
		res.Markdown,
		func(w io.Writer) error { return printJSON(w, res) },
		func(w io.Writer) error { return plotKL(w, res) },
	} {
		name := filepath.Join(f.results, f.name+resultFiles[i])
		if err := a.writeFile(ctx, name, true, write); err != nil {
			return err
		}
	}
	return nil
}

// evalOutput prints the results and writes the files asked for.
func (a *app) evalOutput(ctx context.Context, res *quality.Results, f *evalFlags) error {
	if err := a.saveResults(ctx, res, f); err != nil {
		return err
	}
	toStdout := false
	for _, x := range []struct {
		name  string
		write func(io.Writer, *quality.Results) error
	}{{f.plot, plotKL}, {f.html, evalPage}} {
		if x.name == "" {
			continue
		}
		toStdout = toStdout || x.name == stdStream
		write := func(w io.Writer) error { return x.write(w, res) }
		if err := a.writeFile(ctx, x.name, f.force, write); err != nil {
			return err
		}
	}
	w := a.stdout
	if toStdout {
		w = a.stderr
	}
	if f.json {
		return printJSON(w, res)
	}
	return printEval(w, res)
}

// writeFile writes a file of text: like a terminal, what shows it is shown nothing that acts.
func (a *app) writeFile(ctx context.Context, name string, force bool,
	write func(io.Writer) error) (err error) {
	out, err := a.create(ctx, name, force)
	if err != nil {
		return err
	}
	defer out.finish(&err)
	w := visible.NewWriter(out)
	if err := write(w); err != nil {
		return err
	}
	return w.Flush()
}

// printEval prints the tables.
func printEval(w io.Writer, res *quality.Results) error {
	p := &printer{w: w}
	p.printf("%s, %d texts, %d tokens of context, %d after it\n\n", res.Model, len(res.Exact.Texts),
		res.Context, res.Next)
	p.cells(res.Headers(), res.Table())
	if len(res.Pairs) > 0 {
		p.printf("\nagainst the best other method of at most 1.1 times the bytes, text by text\n\n")
		p.cells(res.PairHeaders(), res.PairTable())
	}
	return p.err
}

// cells prints a table whose numbers are flush right.
func (p *printer) cells(headers []string, rows [][]string) {
	any1 := func(s []string) []any {
		out := make([]any, len(s))
		for i := range s {
			out[i] = s[i]
		}
		return out
	}
	var right []int
	for i := range headers {
		if len(rows) > 0 && i > 0 && rows[0][i] != "" && rows[0][i][0] <= '9' {
			right = append(right, i)
		}
	}
	t := newTable(any1(headers), right...)
	for _, r := range rows {
		t.AppendRow(any1(r))
	}
	p.table(t)
}
