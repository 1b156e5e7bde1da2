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

// spool is a temporary file that has no name where the system allows it, so that nothing is left
// behind however the process ends.
type spool struct{ *os.File }

func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", "kvist-*.tmp")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name()) // systems that keep open files refuse; Close removes it there
	return &spool{f}, nil
}

func (s *spool) Close() error {
	err := s.File.Close()
	if e := os.Remove(s.Name()); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

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
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("open %s: not a regular file (- reads standard input)", name)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &input{ReaderAt: f, Closer: f, name: name, size: st.Size()}, nil
	}
	s, err := newSpool()
	if err != nil {
		return nil, err
	}
	n, err := copyUntil(ctx, s, a.stdin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read standard input: %w", err), s.Close())
	}
	return &input{ReaderAt: s, Closer: s, name: "standard input", size: n}, nil
}

// copyUntil copies until the end or until ctx is done: a read of a terminal cannot be cancelled,
// so it is left behind.
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

// openCapture opens a safetensors or .npy file.
func (a *app) openCapture(ctx context.Context, name string) (*capture.Source, *input, error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	src, err := capture.New(in.name, in, in.size, capture.Limits{})
	if err != nil {
		return nil, nil, errors.Join(err, in.Close())
	}
	return src, in, nil
}

// openContainer opens a .kvist file.
func (a *app) openContainer(ctx context.Context, name string) (*container.Reader, *input, error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	r, err := container.Open(in.name, in, in.size, container.Limits{})
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

// output is a file in the making: it appears whole, or not at all.
type output struct {
	*os.File
	name   string
	commit func() error
	abort  func() error
}

// create starts the output called name; "-" is standard output.
func (a *app) create(name string, force bool) (*output, error) {
	if name == stdStream {
		s, err := newSpool()
		if err != nil {
			return nil, err
		}
		return &output{File: s.File, name: "standard output", abort: s.Close,
			commit: func() (err error) {
				defer closing(s, &err)
				if _, err := s.Seek(0, io.SeekStart); err != nil {
					return err
				}
				if _, err := io.Copy(a.stdout, s.File); err != nil {
					return fmt.Errorf("write standard output: %w", err)
				}
				return nil
			}}, nil
	}
	if st, err := os.Lstat(name); err == nil {
		switch {
		case st.IsDir():
			return nil, fmt.Errorf("%s is a folder", name)
		case st.Mode()&fs.ModeSymlink == 0 && !st.Mode().IsRegular():
			// A rename would put a plain file in the place of a device.
			return nil, fmt.Errorf("%s is not a regular file (-o - and a redirection write to it)",
				name)
		case !force:
			return nil, fmt.Errorf("%s exists (--force replaces it): %w", name, fs.ErrExist)
		}
	}
	f, err := atomicfile.Create(name, force)
	if err != nil {
		return nil, err
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
