// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
)

func main() { os.Exit(mainCode()) }

// mainCode runs the process and returns its exit status.
func mainCode() int {
	ctx, stop := untilSignal(context.Background(), os.Exit)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// app is what all verbs share.
type app struct {
	stdin io.Reader
	// stdout and stderr are for text: what a terminal would act on is shown there (package visible).
	stdout, stderr io.Writer
	binary         io.Writer // standard output for files, as they are
	console        io.Writer // standard error for progress bars, which move the cursor
	verbose        bool
	started        bool // a verb's own code has run: errors before that are of usage
}

// run executes one command line and returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	out, errs := visible.NewWriter(stdout), visible.NewWriter(stderr)
	defer errs.Flush() //nolint:errcheck // there is nowhere left to say so
	a := &app{stdin: stdin, stdout: out, stderr: errs, binary: stdout, console: stderr}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(errs)
	err := errors.Join(root.ExecuteContext(ctx), out.Flush())
	if err != nil && !a.started {
		err = &usageError{err: err}
	}
	if err != nil {
		if line := oneLine(err); line != "" {
			a.complain("%s", line)
		}
	}
	if errors.Is(err, context.Canceled) {
		return interruptStatus(ctx)
	}
	return exitCode(err)
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "kvist",
		Short: "Compress KV caches, hidden states and embeddings by what each token is worth",
		Long: `kvist compresses KV caches of language models, hidden states and embeddings to a few bits
per value, and shows what was kept and what it cost.

kvist reads safetensors files (format kv-capture/1 or /2, or any tensors of two or more dimensions), .npy
and .npz files, and the tensors of GGUF files. "-" means standard input or output.

Exit status:
  0  success
  1  failure: a missing file, a full disk, a budget that cannot be met, something unsupported
  2  wrong usage
  3  the input is damaged, or is a .kvist file or profile that this build cannot read
  130  interrupted (SIGINT)
  143  ended by SIGTERM or SIGHUP
After a signal kvist removes outputs that are not complete. A second signal ends it at once.`,
		Example: `  kvist compress cache.safetensors -o cache.kvist --bits 3
  kvist verify cache.kvist --against cache.safetensors
  kvist report cache.kvist -o cache.html --against cache.safetensors
  kvist decompress cache.kvist -o back.safetensors`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(a.stderr)
			_ = cmd.Help() // its errors are those of standard error
			return usagef("no verb given")
		},
	}
	root.AddCommand(newCompress(a), newDecompress(a), newTruncate(a), newVerify(a), newInspect(a),
		newReport(a), newDoctor(a), newVersion(a), newCapture(a), newCalibrate(a), newTune(a),
		newEval(a), newBench(a), newChat(a), newServe(a), newStore(a), newHealth(a), newEmbed(a))
	a.helpful(root)
	completeFlags(root)
	return root
}

// verb wraps a verb's code, so that errors of parsing are told from its own.
func (a *app) verb(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command,
	[]string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		if err := checkFileFlags(cmd); err != nil {
			return err
		}
		return f(cmd, args)
	}
}
