// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/atomicfile"
)

// fileFlags are the flags that name a file or a folder. An empty name is what a script gives whose
// variable is not set: it does not stand for no flag.
var fileFlags = []string{"output", "keys", "conversations", "plot", "html", "results", "state", "against", "profile",
	"weights", "model", "compare", "from"}

// checkFileFlags refuses flags that name a file and are given without a name.
func checkFileFlags(cmd *cobra.Command) error {
	for _, name := range fileFlags {
		f := cmd.Flags().Lookup(name)
		if f == nil || !f.Changed || f.Value.Type() != "string" || f.Value.String() != "" {
			continue
		}
		if f.Shorthand != "" {
			return usagef("-%s, --%s: the name of the file is empty", f.Shorthand, name)
		}
		return usagef("--%s: the name of the file is empty", name)
	}
	return nil
}

// destination is an output of a verb before it is opened.
type destination struct {
	flag  string // for messages
	name  string // "": not asked for
	force bool
}

// checkOutputs refuses outputs that cannot be written, that are one of the inputs or that are one
// another. To be called before any work: what would be lost is an input, or hours.
func (a *app) checkOutputs(inputs []string, outputs ...destination) error {
	for i, o := range outputs {
		if o.name == "" {
			continue
		}
		for _, in := range inputs {
			if a.sameFile(o.name, in) {
				return usagef("%s %s: it is the same file as the input %s", o.flag, outputName(o.name),
					inputName(in))
			}
		}
		for _, other := range outputs[:i] {
			if samePath(o.name, other.name) {
				return usagef("%s and %s are both %s", other.flag, o.flag, outputName(o.name))
			}
		}
		if err := checkOutput(o.name, o.force); err != nil {
			return err
		}
	}
	return nil
}

// checkOutput refuses an output for what stands there now.
func checkOutput(name string, force bool) error {
	if name == stdStream {
		return nil
	}
	return outputError(name, atomicfile.Check(name, force))
}

// outputError says what package atomicfile refuses, in the words of the command line.
func outputError(name string, err error) error {
	var other *atomicfile.NotRegularError
	switch {
	case errors.As(err, &other) && other.Kind == "a folder":
		return fmt.Errorf("%s is a folder", name)
	case errors.As(err, &other):
		// A rename would put a plain file in its place.
		return fmt.Errorf("%s is %s, not a regular file (-o - and a redirection write to it)", name,
			other.Kind)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s exists (--force replaces it): %w", name, fs.ErrExist)
	case errors.Is(err, fs.ErrInvalid):
		return usagef("%s: no name for an output", name)
	}
	return err
}

func outputName(name string) string {
	if name == stdStream {
		return "standard output"
	}
	return name
}

func inputName(name string) string {
	if name == stdStream {
		return "standard input"
	}
	return name
}

// sameFile reports whether an output is the file that an input is read from, whatever names, links
// and folders lead there. A redirection counts, too.
func (a *app) sameFile(output, input string) bool {
	out, err := statStream(output, a.binary)
	if err != nil || !out.Mode().IsRegular() {
		return false
	}
	in, err := statStream(input, a.stdin)
	return err == nil && os.SameFile(out, in)
}

// statStream describes the file called name; "-" is stream.
func statStream(name string, stream any) (fs.FileInfo, error) {
	if name != stdStream {
		return os.Stat(name)
	}
	f, ok := stream.(*os.File)
	if !ok {
		return nil, fs.ErrInvalid
	}
	return f.Stat()
}

// samePath reports whether two outputs are one file, or would be once they are made.
func samePath(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	if a == b {
		return true
	}
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	if err == nil && err2 == nil {
		return os.SameFile(x, y)
	}
	if (err == nil) != (err2 == nil) || filepath.Base(a) != filepath.Base(b) {
		return false
	}
	x, err = os.Stat(filepath.Dir(a))
	y, err2 = os.Stat(filepath.Dir(b))
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// output is a file in the making: it appears whole, or not at all.
type output struct {
	*os.File
	name   string
	commit func() error
	abort  func() error
}

// create starts the output called name; "-" is standard output.
func (a *app) create(ctx context.Context, name string, force bool) (*output, error) {
	if name == stdStream {
		s, err := atomicfile.NewScratch()
		if err != nil {
			return nil, err
		}
		return &output{File: s.File, name: "standard output", abort: s.Close,
			commit: func() (err error) {
				defer closing(s, &err)
				if _, err := s.Seek(0, io.SeekStart); err != nil {
					return err
				}
				if _, err := copyUntil(ctx, a.binary, s.File); err != nil {
					return fmt.Errorf("write standard output: %w", err)
				}
				return nil
			}}, nil
	}
	f, err := atomicfile.Create(name, force)
	if err != nil {
		return nil, outputError(name, err)
	}
	return &output{File: f.File, name: name, commit: f.Commit, abort: f.Abort}, nil
}

// finish commits the output where *err is nil and throws it away otherwise. To be deferred.
func (o *output) finish(err *error) {
	if *err == nil {
		*err = o.commit()
		return
	}
	if e := o.abort(); e != nil {
		*err = errors.Join(*err, e)
	}
}

// summaryTo returns where a verb that writes to output prints what it did.
func (a *app) summaryTo(output string) io.Writer {
	if output == stdStream {
		return a.stderr
	}
	return a.stdout
}
