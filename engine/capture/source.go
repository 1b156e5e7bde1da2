// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// Decl declares a tensor.
type Decl struct {
	Name      string
	DTypeName string  // as safetensors names it: F32, F16, BF16, I32, U8, ...
	Shape     []int64 // empty for a scalar
}

// TensorInfo is a tensor of a file, whatever its element type. Shape is shared: do not write it.
//
// It says what is read, not how it is stored: big-endian elements are read as little-endian ones,
// arrays in Fortran order in C order, the groups of a GGUF as F32. Stored names what differs.
type TensorInfo struct {
	Decl
	Offset int64  // byte of the file at which its data start
	Bytes  int64  // of its data as they are read
	Stored string // how it is stored, "" where that is how it is read

	lay *layout // nil likewise
}

// Info describes an open file. Maps and slices are shared: do not write them.
type Info struct {
	Name     string            // as given to Open or New
	Size     int64             // bytes of the file
	Format   string            // "safetensors", "npy", "npz" or "gguf", so that results can be written in the same one
	Metadata map[string]string // of a safetensors file; nil if it has none

	// KV tells a KV capture (kv-capture/1) from a file of other tensors. The following are of a KV capture.
	KV            bool
	Model         string
	FirstPosition int64 // position of the first token
	Geometry      quant.Geometry
	Layers        []int // their numbers, ascending
	Tokens        int
	TokensNext    int // tokens after the captured ones, 0 if there are none
}

// Source is an open file. See the package comment.
type Source struct {
	f       *file
	closer  io.Closer
	info    Info
	tensors []TensorInfo // ascending Offset
	index   map[string]int
	kv      *kvCapture
	act     []ActTensor
	side    []TensorInfo
}

// Open opens the file at path. Only its header is read.
//
// Errors: *FormatError; those of the file system.
func Open(path string, lim Limits) (*Source, error) {
	// Stat first: opening a pipe would block.
	if st, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("kvist/capture: open: %w", err)
	} else if !st.Mode().IsRegular() {
		return nil, notRegular(path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("kvist/capture: open: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = notRegular(path)
	}
	if err != nil {
		_ = f.Close() // report the first error
		return nil, err
	}
	s, err := New(path, f, st.Size(), lim)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	s.closer = f
	return s, nil
}

func notRegular(path string) error {
	return &FormatError{File: path, Section: sectionFile, Offset: -1,
		Err: unsupportedf("not a regular file")}
}

// New opens a file of size bytes that r reads. name appears in errors. Close does not close r.
//
// Errors: *FormatError; quant.ErrShape for a negative size.
func New(name string, r io.ReaderAt, size int64, lim Limits) (*Source, error) {
	if size < 0 {
		return nil, callErrorf("open %s: size %d is negative", name, size)
	}
	lim = lim.withDefaults()
	f := newFile(name, r, size)
	if size > lim.TotalBytes {
		return nil, f.formatError(sectionFile, "", -1,
			tooLargef("%d bytes, want at most %d", size, lim.TotalBytes))
	}
	s := &Source{f: f, info: Info{Name: name, Size: size}}
	if err := s.parse(lim); err != nil {
		return nil, err
	}
	s.index = make(map[string]int, len(s.tensors))
	for i, t := range s.tensors {
		s.index[t.Name] = i
	}
	if format, ok := s.info.Metadata["format"]; ok && isKVFormat(format) {
		if err := readKV(s); err != nil {
			return nil, err
		}
		return s, nil
	}
	s.act, s.side = activations(f, s.tensors)
	return s, nil
}

// parse detects the file's format from its first bytes and reads the header.
func (s *Source) parse(lim Limits) (err error) {
	f := s.f
	head := make([]byte, min(f.size, int64(len(npyMagic)+4)))
	if err := f.readFull(sectionFile, "", 0, head); err != nil {
		return err
	}
	switch {
	case len(head) > 0 && bytes.HasPrefix(head, []byte(npyMagic[:min(len(head), len(npyMagic))])):
		s.info.Format = "npy"
		s.tensors, err = parseNpy(f, lim)
	case bytes.HasPrefix(head, []byte(gguf.Magic)):
		s.info.Format = "gguf"
		s.tensors, err = parseGGUF(f, lim)
	case len(head) < 9:
		return f.formatError(sectionFile, "", 0,
			corruptf("%d bytes, too short for a header", f.size))
	case head[8] != '{' && (bytes.HasPrefix(head, []byte(zipMagic)) ||
		bytes.HasPrefix(head, []byte(zipMagicEmpty))):
		// The magic could be the length of a header, which no zip follows with a brace: that
		// would be its way of compression.
		s.info.Format = "npz"
		s.tensors, err = parseNpz(f, lim)
	case head[8] == '{':
		s.info.Format = "safetensors"
		s.tensors, s.info.Metadata, err = parseSafetensors(f, head, lim)
	default:
		err = f.formatError(sectionFile, "", 0,
			unsupportedf("a file that starts with % x, want safetensors, .npy, .npz or GGUF", head[:9]))
	}
	return err
}

// Close releases the file, and the temporary one that compressed members are expanded to. A second
// Close does nothing.
func (s *Source) Close() error {
	if s.f.closed.Swap(true) {
		return nil
	}
	err := s.f.temp.close()
	if s.closer != nil {
		err = errors.Join(s.closer.Close(), err)
	}
	if err != nil {
		return fmt.Errorf("kvist/capture: close %s: %w", s.f.name, err)
	}
	return nil
}

// Info describes the file. It is shared: do not write it.
func (s *Source) Info() *Info { return &s.info }

// Tensors returns every tensor of the file in the order of their data.
func (s *Source) Tensors() []TensorInfo { return slices.Clone(s.tensors) }

// Lookup returns the named tensor. The tensor of an .npy has the name "".
func (s *Source) Lookup(name string) (TensorInfo, bool) {
	i, ok := s.index[name]
	if !ok {
		return TensorInfo{}, false
	}
	return s.tensors[i], true
}

// SideTensors returns the tensors with raw access only, in the order of their data. In a KV capture
// these are all but K, V and Q of the layers and of the tokens after; in activations, all but
// ActTensors.
func (s *Source) SideTensors() []TensorInfo { return slices.Clone(s.side) }

// ReadAt reads len(dst) raw bytes of the tensor from byte off of its data: elements of
// TensorInfo.DTypeName, little-endian, in C order.
//
// Errors: quant.ErrShape for an unknown tensor or a range outside the tensor; quant.ErrClosed;
// *FormatError.
func (s *Source) ReadAt(tensor string, off int64, dst []byte) error {
	if s.f.closed.Load() {
		return s.f.errClosed()
	}
	t, ok := s.Lookup(tensor)
	if !ok {
		return callErrorf("read %s: tensor %q is not in the file", s.f.name, tensor)
	}
	if off < 0 || off > t.Bytes || int64(len(dst)) > t.Bytes-off {
		return callErrorf("read %s: %d bytes of tensor %q from byte %d, which has %d",
			s.f.name, len(dst), tensor, off, t.Bytes)
	}
	return s.f.readData(&t, off, dst)
}
