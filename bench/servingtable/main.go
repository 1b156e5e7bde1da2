// SPDX-License-Identifier: Apache-2.0

// Command servingtable measures the serving cache in the test model and writes a page: the divergence of
// the model's predictions in each window of a text while the cache keeps a budget.
//
//	go run ./bench/servingtable -tokens 1024 -texts eval-essay,eval-news
//
// or, with -park, how long it takes to bring a conversation back.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/archiver"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	tokens := flag.Int("tokens", 1024, "tokens of each text")
	names := flag.String("texts", "eval-essay", "texts, separated by commas")
	shares := flag.String("budgets", "0.5,0.25,0.125,0.0625", "budgets as shares of the f16 bytes of the text")
	chunk := flag.Int("chunk", 16, "tokens a step")
	window := flag.Int("window", 64, "recent tokens that stay exact")
	segment := flag.Int("segment", 256, "tokens of a segment")
	prof := flag.String("profile", "", "profile with the sensitivity of heads")
	park := flag.Bool("park", false, "measure parking and resuming instead")
	archive := flag.String("archive", "", "with -park: measure what demoting these shares of the rows before parking costs, separated by commas")
	against := flag.String("against", "", "names of reference methods, separated by spaces, that run the texts beside the cache")
	name := flag.String("model", "smollm2", "smollm2 or gemma")
	hold := flag.String("hold", "", "hold conversations of -tokens at these ratios of f16 to bytes instead, separated by commas, and ask for facts")
	conversations := flag.Int("conversations", 8, "with -hold: how many")
	after := flag.Int("after", 0, "with -hold: so many tokens of another text follow the facts, and each conversation has a cache of its own")
	chain := flag.Int("chain", 0, "have the model write so many tokens on its own behind 256 tokens of each text instead")
	awake := flag.Bool("awake", false, "with -hold: windows of idle conversations stay exact")
	archived := flag.String("archived", "", "with -hold: conversations are parked at these bits a value, separated by commas, by the basis of -profile, and resumed when they are asked")
	role := flag.String("role", texts.RoleEval, "with -hold: of which texts")
	flag.Parse()
	find := model.Find
	if *name == "gemma" {
		find = model.FindGemma
	}
	path, err := find()
	if err != nil {
		return err
	}
	m, err := model.Open(path, model.Options{})
	if err != nil {
		return err
	}
	be, err := cpu.Open(cpu.Options{})
	if err != nil {
		return err
	}
	defer be.Close()
	cfg := engine.Config{Window: *window, Segment: *segment}
	if *prof != "" {
		p, err := profile.Open(*prof, profile.Limits{})
		if err != nil {
			return err
		}
		s, err := p.Sensitivity()
		if err != nil {
			return err
		}
		if s == nil && *archived == "" {
			return fmt.Errorf("servingtable: %s holds no sensitivity: %w", *prof, quant.ErrShape)
		}
		if s != nil {
			cfg.SensitivityK, cfg.SensitivityV = s.K, s.V
		}
		if *archived != "" {
			if cfg.Archiver, err = archiver.New(p, m.Geometry()); err != nil {
				return err
			}
		}
	}
	list, err := methodsOf(*against)
	if err != nil {
		return err
	}
	o := quality.ServingOptions{Tokens: *tokens, Chunk: *chunk, Config: cfg}
	if o.Shares, err = numbers(*shares); err != nil {
		return err
	}
	if *hold != "" {
		ratios, err := numbers(*hold)
		if err != nil {
			return err
		}
		if *archived != "" {
			bits, err := numbers(*archived)
			if err != nil {
				return err
			}
			return measureParked(be, m, *role, *conversations, *tokens, bits, cfg)
		}
		return measureHeld(be, m, *role, *conversations, *tokens, *after, ratios, *awake, cfg)
	}
	if *chain > 0 {
		return measureChains(be, m, strings.Split(*names, ","), *chain, o)
	}
	if *park {
		ids, err := encode(m, *names)
		if err != nil {
			return err
		}
		if len(ids) < *tokens {
			return fmt.Errorf("servingtable: %d tokens, want %d: %w", len(ids), *tokens, quant.ErrShape)
		}
		if *archive != "" {
			less, err := numbers(*archive)
			if err != nil {
				return err
			}
			fmt.Println("| share demoted | bytes in the store | bits/value | KL, mean | KL, worst token | top-1 |\n|---:|---:|---:|---:|---:|---:|")
			return measureArchive(be, m, ids[:*tokens], less, cfg)
		}
		fmt.Println("In parentheses: processor time.\n\n| budget | prefill | bytes of slabs | park, memory | resume | faster | bytes saved | save | load | park, disk | " +
			"resume | faster |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
		for _, share := range o.Shares {
			if err := measurePark(be, m, ids[:*tokens], share, cfg); err != nil {
				return err
			}
		}
		return nil
	}
	fmt.Println("| text | cache | share of f16 | bytes held | top-1 | last window over second | KL by window |\n|---|---|---:|---:|---:|---:|---|")
	for _, name := range strings.Split(*names, ",") {
		ids, err := encode(m, name)
		if err != nil {
			return err
		}
		res, err := quality.MeasureServing(context.Background(), be, m, ids, o)
		if err != nil {
			return err
		}
		for _, r := range res {
			printServing(name, "kvist", r)
			fmt.Fprintln(os.Stderr, r.Stats)
		}
		for _, method := range list {
			res, err := quality.MeasureDecoding(context.Background(), m, ids, []methods.Method{method}, *window, o)
			if err != nil {
				return err
			}
			printServing(name, method.Name(), res[0])
		}
	}
	return nil
}

// printServing prints a row of the table of divergences.
func printServing(text, cache string, r quality.ServingResult) {
	n := len(r.KL)
	fmt.Printf("| %s | %s | %.3f | %d | %.4f | %.2f |", text, cache, r.Share, r.Peak, r.Top1, r.KL[n-1]/r.KL[1])
	for _, kl := range r.KL {
		fmt.Printf(" %.2g", kl)
	}
	fmt.Println(" |")
}

// methodsOf returns the reference methods of a list of names.
func methodsOf(names string) (list []methods.Method, err error) {
	for _, name := range strings.Fields(names) {
		m, err := methods.ByName(name)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// numbers reads numbers that are separated by commas.
func numbers(text string) (all []float64, err error) {
	for _, s := range strings.Split(text, ",") {
		x, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	return all, nil
}

// encode returns the tokens of a text of the evaluation, or of several joined by "+".
func encode(m *model.Model, names string) ([]int32, error) {
	var body strings.Builder
	for _, name := range strings.Split(names, "+") {
		n := body.Len()
		for _, t := range texts.All() {
			if t.Name == name {
				body.WriteString(t.Body)
			}
		}
		if body.Len() == n {
			return nil, fmt.Errorf("servingtable: no text %q: %w", name, quant.ErrShape)
		}
	}
	return m.Tokenizer().Encode(body.String(), false)
}
