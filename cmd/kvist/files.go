// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
)

// stdStream is the file name that stands for standard input or output.
const stdStream = "-"

// input is an open file, or standard input spooled to one.
type input struct {
	io.ReaderAt
	io.Closer
	name string // for messages
	size int64
}

// openInput opens a file. "-" reads standard input to its end.
func (a *app) openInput(ctx context.Context, name string) (*input, error) {
	if name != stdStream {
		f, st, err := openPlain(name)
		if err != nil {
			return nil, err
		}
		return &input{ReaderAt: f, Closer: f, name: name, size: st.Size()}, nil
	}
	s, err := atomicfile.NewScratch()
	if err != nil {
		return nil, err
	}
	n, err := copyUntil(ctx, s, a.stdin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read standard input: %w", err), s.Close())
	}
	return &input{ReaderAt: s, Closer: s, name: "standard input", size: n}, nil
}

// openPlain opens a file that must be a plain one.
func openPlain(name string) (*os.File, fs.FileInfo, error) {
	if name == "" {
		return nil, nil, usagef("the name of an input is empty")
	}
	f, st, err := atomicfile.OpenRegular(name)
	var other *atomicfile.NotRegularError
	switch {
	case !errors.As(err, &other):
	case other.Kind == "a folder":
		err = fmt.Errorf("open %s: it is a folder", name)
	default:
		err = fmt.Errorf("open %s: it is %s, not a regular file (- reads standard input)", name,
			other.Kind)
	}
	return f, st, err
}

// copyUntil copies until the end or until ctx is done: a read of a terminal and a write to a pipe
// cannot be cancelled, so they are left behind.
func copyUntil(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	type result struct {
		n   int64
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := io.Copy(w, r)
		done <- result{n, err}
	}()
	select {
	case x := <-done:
		return x.n, x.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// openCapture opens a safetensors, .npy, .npz or GGUF file.
func (a *app) openCapture(ctx context.Context, name string) (*capture.Source, *input, error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	src, err := capture.New(in.name, in, in.size, capture.Limits{})
	if err != nil {
		return nil, nil, errors.Join(err, in.Close())
	}
	in.owns(src)
	return src, in, nil
}

// owns has src closed along with the input that it reads.
func (in *input) owns(src *capture.Source) { in.Closer = closers{src, in.Closer} }

type closers []io.Closer

func (c closers) Close() (err error) {
	for _, x := range c {
		err = errors.Join(err, x.Close())
	}
	return err
}

// openContainer opens a .kvist file.
func (a *app) openContainer(ctx context.Context, name string) (*container.Reader, *input, error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	r, err := openKvist(in)
	if err != nil {
		return nil, nil, errors.Join(err, in.Close())
	}
	return r, in, nil
}

// closing closes c and adds what that says to *err.
func closing(c io.Closer, err *error) {
	if e := c.Close(); e != nil {
		*err = errors.Join(*err, e)
	}
}
