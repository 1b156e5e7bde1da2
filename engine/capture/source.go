// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// FileFormat is the format of a file.
type FileFormat uint8

// The file formats.
const (
	Safetensors FileFormat = 1
	Npy         FileFormat = 2
	Npz         FileFormat = 3
	GGUF        FileFormat = 4
)

// String returns "safetensors", "npy", "npz" or "gguf".
func (f FileFormat) String() string {
	switch f {
	case Safetensors:
		return "safetensors"
	case Npy:
		return "npy"
	case Npz:
		return "npz"
	case GGUF:
		return "gguf"
	}
	return fmt.Sprintf("FileFormat(%d)", uint8(f))
}

// Kind is what a file holds.
type Kind uint8

// The kinds.
const (
	KV          Kind = 1 // a KV capture, kv-capture/1 or /2
	Activations Kind = 2 // any other tensors
)

// String returns "kv" or "activations".
func (k Kind) String() string {
	switch k {
	case KV:
		return "kv"
	case Activations:
		return "activations"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

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

// Source is an open file. See the package comment.
type Source struct {
	name     string
	r        io.ReaderAt
	closer   io.Closer
	size     int64
	format   FileFormat
	kind     Kind
	tensors  []TensorInfo // ascending Offset
	index    map[string]int
	metadata map[string]string
	kv       *kvCapture
	act      []ActTensor
	side     []TensorInfo
	scratch  sync.Pool // *[]byte of scratchBytes
	temp     tempFile  // what was compressed in an .npz
	closed   atomic.Bool
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
	return &FormatError{File: path, Section: SectionFile, Offset: -1,
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
	s := &Source{name: name, r: r, size: size}
	if size > lim.TotalBytes {
		return nil, s.formatError(SectionFile, "", -1,
			tooLargef("%d bytes, want at most %d", size, lim.TotalBytes))
	}
	s.scratch.New = func() any {
		b := make([]byte, scratchBytes)
		return &b
	}
	if err := s.parse(lim); err != nil {
		return nil, err
	}
	s.index = make(map[string]int, len(s.tensors))
	for i, t := range s.tensors {
		s.index[t.Name] = i
	}
	var err error
	if f, ok := s.metadata["format"]; ok && isKVFormat(f) {
		s.kind = KV
		err = s.readKV()
	} else {
		s.kind = Activations
		s.readActivations()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// parse detects the file's format from its first bytes and reads the header.
func (s *Source) parse(lim Limits) error {
	head := make([]byte, min(s.size, int64(len(npyMagic)+4)))
	if err := s.readFull(SectionFile, "", 0, head); err != nil {
		return err
	}
	switch {
	case len(head) > 0 && bytes.HasPrefix(head, []byte(npyMagic[:min(len(head), len(npyMagic))])):
		s.format = Npy
		return s.parseNpy(lim)
	case bytes.HasPrefix(head, []byte(gguf.Magic)):
		s.format = GGUF
		return s.parseGGUF(lim)
	case len(head) < 9:
		return s.formatError(SectionFile, "", 0,
			corruptf("%d bytes, too short for a header", s.size))
	case head[8] != '{' && (bytes.HasPrefix(head, []byte(zipMagic)) ||
		bytes.HasPrefix(head, []byte(zipMagicEmpty))):
		// The magic could be the length of a header, which no zip follows with a brace: that
		// would be its way of compression.
		s.format = Npz
		return s.parseNpz(lim)
	case head[8] == '{':
		s.format = Safetensors
		return s.parseSafetensors(head, lim)
	}
	return s.formatError(SectionFile, "", 0,
		unsupportedf("a file that starts with % x, want safetensors, .npy, .npz or GGUF", head[:9]))
}

// Close releases the file, and the temporary one that compressed members are expanded to. A second
// Close does nothing.
func (s *Source) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	err := s.temp.close()
	if s.closer != nil {
		err = errors.Join(s.closer.Close(), err)
	}
	if err != nil {
		return fmt.Errorf("kvist/capture: close %s: %w", s.name, err)
	}
	return nil
}

// Name returns the name given to Open or New.
func (s *Source) Name() string { return s.name }

// Size returns the size of the file in bytes.
func (s *Source) Size() int64 { return s.size }

// Format returns the file's format, so that a result can be written in the same one.
func (s *Source) Format() FileFormat { return s.format }

// Kind returns whether the file is a KV capture or holds activations.
func (s *Source) Kind() Kind { return s.kind }

// Metadata returns a copy of the safetensors metadata, or nil if the file has none.
func (s *Source) Metadata() map[string]string { return maps.Clone(s.metadata) }

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
	if s.closed.Load() {
		return s.errClosed()
	}
	t, ok := s.Lookup(tensor)
	if !ok {
		return callErrorf("read %s: tensor %q is not in the file", s.name, tensor)
	}
	if off < 0 || off > t.Bytes || int64(len(dst)) > t.Bytes-off {
		return callErrorf("read %s: %d bytes of tensor %q from byte %d, which has %d",
			s.name, len(dst), tensor, off, t.Bytes)
	}
	return s.readData(&t, off, dst)
}

func (s *Source) errClosed() error {
	return fmt.Errorf("kvist/capture: read %s: %w", s.name, quant.ErrClosed)
}
