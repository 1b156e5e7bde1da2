// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/archiver"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

// answerFlags are those of the verbs that answer with a model: chat and serve.
type answerFlags struct {
	budget, format, profile  string
	context, window, segment int
	parkBits                 float64 // 0: rows are parked as they are
	fast                     bool
	backend                  backendFlags
}

// chatFormats are the words that --format takes.
var chatFormats = []string{"auto", string(model.ChatML), string(model.ChatLlama3), string(model.ChatGemma),
	string(model.ChatMistral), string(model.ChatTekken), string(model.ChatInst), string(model.ChatPhi3),
	string(model.ChatPhi4), string(model.ChatGranite)}

func (f *answerFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.budget, "kv-budget", "12%",
		"most `BYTES` of the cache, as 200MiB, or a share of what f16 takes for the whole context")
	fs.IntVar(&f.context, "context", 0, "most `tokens` of a conversation; 0: what the model allows")
	fs.IntVar(&f.window, "window", 64, "recent `tokens` that stay exact, a multiple of 32")
	fs.IntVar(&f.segment, "segment", 256, "`tokens` that are sorted by what they are worth together")
	fs.StringVar(&f.format, "format", "auto", "`NAME` of the form of prompts, where the file does not say")
	fs.StringVar(&f.profile, "profile", "", "`FILE` with what errors in each head matter")
	fs.BoolVar(&f.fast, "fast", false, "int8 activations: faster, with slightly different answers")
	f.backend.add(cmd)
}

// answering is a model that answers, with the backend and the runner that it needs.
type answering struct {
	m      *model.Model
	be     backend.Backend
	r      *runner.Runner
	model  string // name that tells it from other models
	budget int64
	exact  int64 // bytes of the whole context in f16, which percentages of --kv-budget are of
}

// open loads the model and starts a runner for so many answers at once. o holds the other settings.
func (f *answerFlags) open(a *app, name string, o runner.Options) (*answering, error) {
	w := &answering{}
	if err := f.start(a, w, name, o); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (f *answerFlags) start(a *app, w *answering, name string, o runner.Options) error {
	budget, part, err := parseBudget(f.budget)
	if err != nil {
		return usagef("--kv-%v", err)
	}
	if err := errors.Join(oneOf("format", f.format, chatFormats), f.backend.check()); err != nil {
		return err
	}
	if f.context < 0 {
		return usagef("--context %d: want 0 or more", f.context)
	}
	if f.window == 0 || f.segment == 0 { // the cache takes those for its defaults
		return usagef("--window %d, --segment %d: want more than 0", f.window, f.segment)
	}
	mf := modelFlags{threads: f.backend.threads, fast: f.fast}
	if w.m, err = mf.open(name, f.context); err != nil {
		return err
	}
	size, err := modelSize(name)
	if err != nil {
		return err
	}
	if f.context > w.m.Context {
		return usagef("--context %d: the model's is %d", f.context, w.m.Context)
	}
	if f.format != "auto" {
		w.m.Tokenizer().Chat = model.ChatFormat(f.format)
	}
	if w.be, err = a.openBackend(f.backend); err != nil {
		return err
	}
	o.Context = f.context
	if o.Context == 0 {
		o.Context = w.m.Context
	}
	w.exact = int64(max(o.Running, 1)) * runner.ExactBytes(w.m, o.Context)
	if w.budget = budget; budget == 0 {
		w.budget = int64(part * float64(w.exact))
	}
	w.model = fmt.Sprintf("%s of %d bytes", w.m.Name, size)
	o.Cache = engine.Config{Budget: w.budget, Window: f.window, Segment: f.segment, Model: w.model}
	if err := f.fromProfile(&o.Cache, w.m.Geometry()); err != nil {
		return err
	}
	w.r, err = runner.New(w.m, w.be, o)
	return err
}

// modelSize returns the bytes of a model's file. Rows of another quantization of a model are not its rows, and the
// size of the file tells it.
func modelSize(name string) (int64, error) {
	path, err := modelPath(name)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// fromProfile reads what errors in each head matter from a profile, and how rows are parked.
func (f *answerFlags) fromProfile(c *engine.Config, g quant.Geometry) error {
	if f.profile == "" {
		return nil
	}
	p, err := profile.Open(f.profile, profile.Limits{})
	if err != nil {
		return err
	}
	s, err := p.Sensitivity()
	if err != nil {
		return err
	}
	switch {
	case s != nil:
		c.SensitivityK, c.SensitivityV, c.Profile = s.K, s.V, f.profile
	case f.parkBits == 0:
		return fmt.Errorf("profile %s says nothing of the sensitivity of heads", f.profile)
	}
	if f.parkBits == 0 {
		return nil
	}
	c.ArchiveBits = f.parkBits
	c.Archiver, err = archiver.New(p, g)
	return err
}

func (w *answering) close() (err error) {
	if w.r != nil {
		err = w.r.Close()
	}
	if w.be != nil {
		err = errors.Join(err, w.be.Close())
	}
	return err
}

// about says in a line what runs.
func (w *answering) about() string {
	return fmt.Sprintf("%s, context of %s tokens; cache of %s, %s of f16 (%s)", w.m.Name,
		count(int64(w.r.Context())), bytesText(w.budget), share(w.budget, w.exact), bytesText(w.exact))
}

// bytesText writes a number of bytes in the unit that suits it.
func bytesText(n int64) string {
	for _, u := range []string{"B", "kB", "MB", "GB"} {
		if n < 10000 {
			return fmt.Sprintf("%d %s", n, u)
		}
		n = (n + 500) / 1000
	}
	return fmt.Sprintf("%d TB", n)
}

// samplingFlags are how tokens are chosen.
type samplingFlags struct {
	runner.Sampling
	most int
}

func (f *samplingFlags) add(cmd *cobra.Command, temperature float64) {
	fs := cmd.Flags()
	fs.Float64Var(&f.Temperature, "temperature", temperature, "0: always the most likely token; up to 10")
	fs.Float64Var(&f.TopP, "top-p", 1, "only the most likely tokens that together have this probability")
	fs.IntVar(&f.TopK, "top-k", 0, "only this many of the most likely tokens; 0: all")
	fs.Float64Var(&f.MinP, "min-p", 0, "only tokens of at least this share of the best one's probability")
	fs.Float64Var(&f.Presence, "presence-penalty", 0, "taken off tokens that the answer has")
	fs.Float64Var(&f.Frequency, "frequency-penalty", 0, "taken off them for each time")
	fs.Uint64Var(&f.Seed, "seed", 1, "of the sampling")
	fs.IntVar(&f.most, "max-tokens", 0, "most `tokens` of an answer; 0: what the context holds")
}

// logger returns a log on standard error where --verbose asks for one.
func (a *app) logger() *slog.Logger {
	if !a.verbose {
		return nil
	}
	return slog.New(slog.NewTextHandler(a.stderr, nil))
}

// bitClasses are the steps in which pages and terminals show how sharply a token is kept.
var bitClasses = []struct {
	from float32 // bits of a value
	name string
	ansi string // of 256 colours: background
}{{12, "exact", "22"}, {6, "8 bits", "28"}, {3.4, "4 bits", "64"}, {2.5, "3 bits", "100"}, {1.6, "2 bits", "136"},
	{0.8, "1 bit", "130"}, {0.01, "less", "88"}, {0, "gone", "240"}}

func bitClass(bits float32) int {
	return slices.IndexFunc(bitClasses, func(c struct {
		from float32
		name string
		ansi string
	}) bool {
		return bits >= c.from
	})
}

// tokenText is the text of one token on one line.
func tokenText(t *model.Tokenizer, id int32) string {
	b, err := t.Decode([]int32{id})
	if err != nil {
		return "?"
	}
	return strings.ToValidUTF8(string(b), "\ufffd")
}

// lone is the salt of a program with one user.
var lone = []byte("kvist chat")
