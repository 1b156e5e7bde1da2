// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/kvist-project/kvist/quant"
)

// file is an open file, read by offset. Errors name it.
type file struct {
	name    string
	r       io.ReaderAt
	size    int64
	scratch sync.Pool // *[]byte of scratchBytes
	temp    tempFile  // what was compressed in an .npz
	closed  atomic.Bool
}

func newFile(name string, r io.ReaderAt, size int64) *file {
	f := &file{name: name, r: r, size: size}
	f.scratch.New = func() any {
		b := make([]byte, scratchBytes)
		return &b
	}
	return f
}

func (f *file) errClosed() error {
	return fmt.Errorf("kvist/capture: read %s: %w", f.name, quant.ErrClosed)
}

func (f *file) formatError(section, tensor string, off int64, cause error) error {
	return &FormatError{File: f.name, Section: section, Tensor: tensor, Offset: off, Err: cause}
}

// readFull fills dst from byte off of the file. The size was checked at Open, so a file that ends
// too early is corrupt.
func (f *file) readFull(section, tensor string, off int64, dst []byte) error {
	if len(dst) == 0 {
		return nil
	}
	n, err := f.r.ReadAt(dst, off)
	if n >= len(dst) {
		return nil
	}
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("the file ends after %d of %d bytes: %w: %w",
			n, len(dst), io.ErrUnexpectedEOF, quant.ErrCorrupt)
	default:
		err = fmt.Errorf("%d bytes: %w", len(dst), err)
	}
	return f.formatError(section, tensor, off, err)
}

// checkName checks the name of a tensor, because the result will be written as safetensors.
func (f *file) checkName(name string, off int64, lim Limits) error {
	switch {
	case len(name) > lim.NameBytes:
		return f.formatError(sectionHeader, "", off,
			tooLargef("tensor name of %d bytes, want at most %d", len(name), lim.NameBytes))
	case !utf8.ValidString(name) || name == "" || name == metadataKey:
		return f.formatError(sectionHeader, "", off,
			unsupportedf("a tensor named %q, want another name, in UTF-8", name))
	}
	return nil
}

// pieces reads count elements, from number first on, through the scratch buffer. It calls use for
// each piece with the index of the piece's first element.
func (f *file) pieces(t *TensorInfo, first int64, count int, use func(int, []byte) error) error {
	size := int(t.elementSize())
	room := f.scratch.Get().(*[]byte)
	defer f.scratch.Put(room)
	buf := *room
	if t.lay != nil && t.lay.fortran {
		buf = make([]byte, min(int64(count)*int64(size), gatherBytes))
	}
	step := len(buf) / size
	if dim := int(t.Shape[len(t.Shape)-1]); step > dim {
		step -= step % dim // whole rows
	}
	for at := 0; at < count; at += step {
		raw := buf[:min(count-at, step)*size]
		if err := f.readData(t, (first+int64(at))*int64(size), raw); err != nil {
			return err
		}
		if err := use(at, raw); err != nil {
			return err
		}
	}
	return nil
}
