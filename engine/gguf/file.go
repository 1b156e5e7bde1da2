// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// Limits bound what reading a model file may allocate and how deep it may go. The zero value
// means the defaults. Whatever the limits, nothing is allocated for a count that the rest of the
// file could not hold.
type Limits struct {
	MaxKeys        int   // metadata entries; default 65536
	MaxTensors     int   // tensors; default 65536
	MaxStringBytes int   // bytes of one string; default 16 MiB
	MaxArrayLen    int   // elements of one array; default 1<<24
	MaxMetaBytes   int64 // header, metadata and tensor list together; default 1 GiB
	MaxNesting     int   // arrays within arrays; default 4
}

func (l Limits) withDefaults() Limits {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&l.MaxKeys, 1<<16)
	def(&l.MaxTensors, 1<<16)
	def(&l.MaxStringBytes, 16<<20)
	def(&l.MaxArrayLen, 1<<24)
	def(&l.MaxNesting, 4)
	if l.MaxMetaBytes <= 0 {
		l.MaxMetaBytes = 1 << 30
	}
	return l
}

// Magic is how a file starts.
const Magic = "GGUF"

const (
	defaultAlignment = 32 // where general.alignment does not say otherwise
	maxAlignment     = 1 << 20
	maxDims          = 4
	maxName          = 65535 // of a key; the specification's limit
)

// File is an open GGUF file, or the files of a split model: the metadata and the list of tensors.
// Tensor data stays in the file until it is asked for.
type File struct {
	Name    string // of the first part
	Version uint32
	meta    map[string]Value // of the first part
	keys    []string         // in file order
	tensors []Tensor         // in file order, part after part
	index   map[string]int
	parts   []part
}

// Read reads the header, the metadata and the tensor list of a GGUF file (versions 2 and 3,
// little-endian) of size bytes. name is what errors call the file.
//
// Every count, length and offset is checked against the file's size and the limits before it is
// believed; tensors must be aligned, lie within the file and not overlap.
//
// Errors: *FileError wrapping ErrCorrupt, ErrVersion, ErrUnsupported (a big-endian file, a part of a
// split model, a tensor type this package does not know), ErrTooLarge, or the reader's error.
func Read(r io.ReaderAt, size int64, name string, lim Limits) (*File, error) {
	f, err := readPart(r, size, name, lim)
	if err != nil {
		return nil, err
	}
	if err := f.refuseSplit(); err != nil {
		return nil, err
	}
	return f, nil
}

// readPart is Read that takes a part of a split model as well.
func readPart(r io.ReaderAt, size int64, name string, lim Limits) (*File, error) {
	lim = lim.withDefaults()
	f := &File{Name: name, parts: []part{{file: name, r: r}}, meta: map[string]Value{}, index: map[string]int{}}
	end := min(size, lim.MaxMetaBytes)
	c := &cursor{
		r: bufio.NewReaderSize(io.NewSectionReader(r, 0, end), 1<<16), end: end,
		cut: end < size, file: name, section: "header", lim: lim,
	}
	if err := f.read(c, size); err != nil {
		var fe *FileError
		if errors.As(err, &fe) {
			return nil, err
		}
		return nil, &FileError{File: name, Section: c.section, Offset: c.off, Err: err}
	}
	return f, nil
}

func (f *File) read(c *cursor, size int64) error {
	var head [4]byte
	if err := c.bytes(head[:]); err != nil {
		return err
	}
	if string(head[:]) != Magic {
		return corruptf("magic is %q, want %q", head[:], Magic)
	}
	var err error
	if f.Version, err = c.u32(); err != nil {
		return err
	}
	switch f.Version {
	case 2, 3:
	case 2 << 24, 3 << 24:
		return unsupportedf("a big-endian file; one converted on a little-endian machine is read")
	default:
		return fmt.Errorf("version %d, want 2 or 3: %w", f.Version, quant.ErrVersion)
	}
	nTensors, err := c.count("tensors", c.lim.MaxTensors, 8+4+4+8)
	if err != nil {
		return err
	}
	nKeys, err := c.count("keys", c.lim.MaxKeys, 8+4+1)
	if err != nil {
		return err
	}
	for i := range nKeys {
		if err := f.readKey(c, i); err != nil {
			return err
		}
	}
	align, err := f.alignment()
	if err != nil {
		return err
	}
	for i := range nTensors {
		if err := f.readTensorInfo(c, i); err != nil {
			return err
		}
	}
	c.section = "tensor data"
	return f.placeTensors((c.off+align-1)/align*align, align, size)
}

func (f *File) readKey(c *cursor, i int) error {
	c.section = fmt.Sprintf("key %d", i)
	key, err := c.str(maxName)
	if err != nil {
		return err
	}
	if key == "" {
		return corruptf("an empty name")
	}
	c.section = fmt.Sprintf("key %q", key)
	if _, twice := f.meta[key]; twice {
		return corruptf("the key stands in the file twice")
	}
	t, err := c.u32()
	if err != nil {
		return err
	}
	v, err := c.value(ValueType(t), 0)
	if err != nil {
		return err
	}
	f.meta[key] = v
	f.keys = append(f.keys, key)
	return nil
}

func (f *File) alignment() (int64, error) {
	v, ok := f.meta["general.alignment"]
	if !ok {
		return defaultAlignment, nil
	}
	a, ok := v.Int()
	if !ok || a < 1 || a > maxAlignment || a&(a-1) != 0 {
		return 0, &FileError{File: f.Name, Section: `key "general.alignment"`, Offset: -1,
			Err: corruptf("%s, want a power of two up to %d", v, maxAlignment)}
	}
	return a, nil
}

func (f *File) readTensorInfo(c *cursor, i int) error {
	c.section = fmt.Sprintf("tensor %d", i)
	name, err := c.str(maxName)
	if err != nil {
		return err
	}
	c.section = fmt.Sprintf("tensor %q", name)
	if _, twice := f.index[name]; twice || name == "" {
		return corruptf("the name is empty or stands in the file twice")
	}
	nd, err := c.u32()
	if err != nil {
		return err
	}
	if nd < 1 || nd > maxDims {
		return corruptf("%d dimensions, want 1 to %d", nd, maxDims)
	}
	t := Tensor{Name: name, Dims: make([]int64, nd)}
	for j := range t.Dims {
		u, err := c.u64()
		if err != nil {
			return err
		}
		if u < 1 || u > 1<<40 {
			return corruptf("dimension %d is %d, want 1 to 2^40", j, u)
		}
		t.Dims[j] = int64(u)
	}
	typ, err := c.u32()
	if err != nil {
		return err
	}
	t.Type = TensorType(typ)
	off, err := c.u64()
	if err != nil {
		return err
	}
	if off > 1<<62 {
		return corruptf("data offset %d is beyond any file", off)
	}
	t.offset = int64(off)
	if t.bytes, err = t.Type.bytesOf(t.Dims); err != nil {
		return err
	}
	f.index[name] = len(f.tensors)
	f.tensors = append(f.tensors, t)
	return nil
}

// placeTensors turns the relative offsets into places in the file and checks them.
func (f *File) placeTensors(base, align, size int64) error {
	order := make([]int, len(f.tensors))
	for i := range f.tensors {
		order[i] = i
		t := &f.tensors[i]
		at := func(off int64, err error) error {
			return &FileError{File: f.Name, Section: fmt.Sprintf("tensor %q", t.Name), Offset: off, Err: err}
		}
		if t.offset%align != 0 {
			return at(-1, corruptf("data offset %d is not a multiple of %d", t.offset, align))
		}
		t.offset += base // both below 2^62
		if t.bytes > size || t.offset > size-t.bytes {
			return at(t.offset, corruptf("its %d bytes end beyond the file's %d", t.bytes, size))
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return int(min(max(f.tensors[a].offset-f.tensors[b].offset, -1), 1))
	})
	for i := 1; i < len(order); i++ {
		a, b := &f.tensors[order[i-1]], &f.tensors[order[i]]
		if a.offset+a.bytes > b.offset {
			return &FileError{File: f.Name, Section: fmt.Sprintf("tensor %q", b.Name), Offset: b.offset,
				Err: corruptf("it overlaps tensor %q", a.Name)}
		}
	}
	return nil
}

// Keys returns the metadata keys in file order.
func (f *File) Keys() []string { return slices.Clone(f.keys) }

// Meta returns the value of a key.
func (f *File) Meta(key string) (Value, bool) {
	v, ok := f.meta[key]
	return v, ok
}

// Tensors lists the tensors in file order.
func (f *File) Tensors() []Tensor { return slices.Clone(f.tensors) }

// Tensor finds a tensor by name.
func (f *File) Tensor(name string) (Tensor, bool) {
	i, ok := f.index[name]
	if !ok {
		return Tensor{}, false
	}
	return f.tensors[i], true
}

// KeyError says that a key is at fault.
func (f *File) KeyError(key string, err error) error {
	return &FileError{File: f.Name, Section: fmt.Sprintf("key %q", key), Offset: -1, Err: err}
}

// TensorError says that a tensor is at fault.
func (f *File) TensorError(t Tensor, err error) error {
	return &FileError{File: f.parts[t.part].file, Section: fmt.Sprintf("tensor %q", t.Name),
		Offset: t.offset, Err: err}
}
