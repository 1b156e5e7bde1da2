// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/auto"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// The words that flags take, for checks and for completion.
var (
	formWords    = []string{formAuto, kvfile.FormArchive, kvfile.FormHot}
	rowBiasWords = []string{"auto", "true", "false"}
	dtypeWords   = []string{"f16", "bf16", "f32"}
	levelWords   = []string{"auto", "full", "full+chunks", "full+dropped", "full+chunks+dropped",
		"full+chunks+summary+dropped"}
)

// extensions are those of files that flags take.
var extensions = map[string][]string{
	"profile": {"kvprofile"}, "against": {"safetensors", "npy"}, "weights": {"npy", "safetensors"},
	"model": {"gguf"}, "from": {"json"}, "plot": {"svg"}, "html": {"html"}, "state": {"json"}, "compare": {"json"},
}

// words returns what a flag may be given, or nil where that is no choice of words.
func words(flag string) []string {
	switch flag {
	case "backend":
		return auto.Names()
	case "form":
		return formWords
	case "format":
		return chatFormats
	case "row-bias":
		return rowBiasWords
	case "dtype":
		return dtypeWords
	case "levels":
		return levelWords
	case "importance":
		return []string{"default", "none"}
	case "coding":
		return codingWords()
	case "methods":
		return methodWords()
	case "settings":
		var names []string
		for _, p := range append(tune.DefaultSpace(), sensitivityParam()) {
			names = append(names, strings.TrimPrefix(p.Name, "importance."))
		}
		return names
	case "layers":
		return []string{"all"}
	}
	return nil
}

// codingWords are the formats, and the codings that the planner chooses from by default.
func codingWords() (names []string) {
	for f := quant.Format(1); f != 0; f++ {
		if f.Valid() {
			names = append(names, f.String())
		}
	}
	for _, c := range kvfile.DefaultConfig().Rows {
		names = append(names, c.String())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func methodWords() []string {
	names := []string{standardMethods}
	for _, m := range methods.Standard() {
		names = append(names, m.Name())
	}
	return names
}

// separators part a flag's value into words; the last word is the one to complete.
var separators = map[string]string{"coding": "=,|", "methods": " ", "settings": ","}

// completeFlags makes the shell complete the values of all flags of a command and those below.
func completeFlags(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		name := f.Name
		var complete cobra.CompletionFunc
		switch {
		case words(name) != nil:
			complete = func(_ *cobra.Command, _ []string, typed string) ([]string,
				cobra.ShellCompDirective) {
				return completeWord(name, typed), cobra.ShellCompDirectiveNoFileComp
			}
		case extensions[name] != nil:
			complete = cobra.FixedCompletions(extensions[name], cobra.ShellCompDirectiveFilterFileExt)
		case slices.Contains([]string{"int", "uint64", "float64"}, f.Value.Type()):
			complete = cobra.NoFileCompletions
		default:
			return
		}
		_ = cmd.RegisterFlagCompletionFunc(name, complete) // the flag is there, and visited once
	})
	for _, c := range cmd.Commands() {
		completeFlags(c)
	}
}

// completeWord returns the values that the last word of what was typed may become.
func completeWord(flag, typed string) (values []string) {
	from := strings.LastIndexAny(typed, separators[flag]) + 1
	list := words(flag)
	if flag == "coding" && from == 0 {
		list = append(list, "k=", "v=", "rows=")
	}
	for _, w := range list {
		if strings.HasPrefix(w, typed[from:]) {
			values = append(values, typed[:from]+w)
		}
	}
	return values
}
