// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// shells are those that kvist completion writes a script for.
var shells = []string{"bash", "zsh", "fish", "powershell"}

// helpful sets up what the program says of itself and of command lines that cannot be: help,
// completion, the version, and errors of flags.
func (a *app) helpful(root *cobra.Command) {
	root.Version = buildVersion().String()
	root.SetVersionTemplate("{{.Version}}\n")
	root.PersistentFlags().BoolVar(&a.verbose, "verbose", false,
		"say on standard error which backend is used, and why it is not a better one")
	root.SetFlagErrorFunc(flagError)
	root.Args = func(cmd *cobra.Command, args []string) error { return noVerb(cmd, args, "command") }
	root.SetOut(a.stdout) // the completion command keeps the output that it finds
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Run, c.RunE = nil, a.verb(help)
		case "completion":
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return usagef("no shell given: want one of %s", strings.Join(shells, ", "))
				}
				return noVerb(cmd, args, "shell")
			}
		}
	}
}

// help prints the help of the verb that args name.
func help(cmd *cobra.Command, args []string) error {
	root := cmd.Root()
	topic, rest, err := root.Find(args)
	if err != nil || len(rest) > 0 {
		if topic == nil {
			topic, rest = root, args
		}
		return &usageError{err: noVerb(topic, rest, "help topic")}
	}
	topic.InitDefaultHelpFlag()
	topic.InitDefaultVersionFlag()
	return topic.Help()
}

// noVerb refuses arguments where a verb, or one of its parts, should stand.
func noVerb(cmd *cobra.Command, args []string, what string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() || c.Name() == "help" {
			names = append(names, c.Name())
		}
	}
	text := fmt.Sprintf("unknown %s %q", what, args[0])
	if near := nearest(args[0], names); near != "" {
		return usagef("%s: did you mean %s?", text, near)
	}
	if len(names) == 0 {
		return usagef("%s: %s has none", text, cmd.CommandPath())
	}
	return usagef("%s: want one of %s", text, strings.Join(names, ", "))
}

// flagError says in plain words what is wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	var missing *pflag.NotExistError
	var value *pflag.InvalidValueError
	switch {
	case errors.As(err, &value):
		return usagef("--%s %q: want %s", value.GetFlag().Name, value.GetValue(), wantedText(value.GetFlag()))
	case errors.As(err, &missing) && missing.GetSpecifiedShortnames() == "":
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := nearest(missing.GetSpecifiedName(), names); near != "" {
			return usagef("unknown flag: --%s: did you mean --%s?", missing.GetSpecifiedName(), near)
		}
	}
	return &usageError{err: err}
}

// wantedText says what a flag takes.
func wantedText(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "float64":
		return "a number"
	case "int":
		return "a whole number"
	case "uint64":
		return "a whole number of at least 0"
	case "bool":
		return "true or false"
	}
	return "a " + f.Value.Type()
}

// nearest returns the name that the user may have meant by s: a name that begins with s, or else the one that is
// closest, if at most a third of the letters of s differ, or one letter. It returns "" if there is none.
func nearest(s string, names []string) string {
	best, least := "", max(1, len(s)/3)+1
	if len(s) > 64 {
		return ""
	}
	for _, name := range names {
		if len(s) > 1 && strings.HasPrefix(name, s) {
			return name
		}
		if d := distance(s, name); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, change or swap with the next that turn a into b.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		for j := range d[i] {
			if i == 0 || j == 0 {
				d[i][j] = i + j
				continue
			}
			change := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d[i][j] = min(change, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// oneOf returns a check of a flag that takes one of some words.
func oneOf(flag, value string, words []string) error {
	if slices.Contains(words, value) {
		return nil
	}
	if near := nearest(value, words); near != "" {
		return usagef("--%s %q: did you mean %s? (%s)", flag, value, near, strings.Join(words, ", "))
	}
	return usagef("--%s %q: want one of %s", flag, value, strings.Join(words, ", "))
}
