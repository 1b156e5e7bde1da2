// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sort"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/kvist-project/kvist/quant"
)

// Writer writes a file whose tensors are declared first. Bytes may be written in any order and more
// than once. Close checks that every byte was written.
type Writer struct {
	w       io.WriterAt
	size    int64
	tensors []TensorInfo // ascending Offset
	index   map[string]int

	mu      sync.Mutex
	written []coverage // for each tensor
	closed  bool
}

// NewWriter lays out a safetensors file and writes its header. The layout does not depend on the
// order of the declarations; see the package comment.
//
// Errors: quant.ErrShape for invalid names or shapes; quant.ErrUnsupported for an unknown element
// type; quant.ErrTooLarge for a header beyond what readers accept; those of w.
func NewWriter(w io.WriterAt, decls []Decl, metadata map[string]string) (*Writer, error) {
	type ranked struct {
		TensorInfo
		rank int
	}
	list := make([]ranked, len(decls))
	seen := make(map[string]bool, len(decls))
	for i, d := range decls {
		if err := checkDecl(d); err != nil {
			return nil, err
		}
		if seen[d.Name] {
			return nil, callErrorf("write header: tensor %q is declared twice", d.Name)
		}
		seen[d.Name] = true
		n, err := dataBytes(d.DTypeName, d.Shape)
		if err != nil {
			return nil, callErrorf("write header: tensor %q: %s of shape %v is invalid",
				d.Name, d.DTypeName, d.Shape)
		}
		d.Shape = slices.Clone(d.Shape)
		list[i] = ranked{TensorInfo{Decl: d, Bytes: n}, dtypeRank(d.DTypeName)}
	}
	slices.SortFunc(list, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(a.Name, b.Name))
	})
	infos := make([]TensorInfo, len(list))
	var at int64
	for i, t := range list {
		if t.Bytes > math.MaxInt64-at {
			return nil, callErrorf("write header: the tensors have more than 2^63 bytes")
		}
		t.Offset = at
		at += t.Bytes
		infos[i] = t.TensorInfo
	}
	header, err := safetensorsHeader(infos, metadata)
	if err != nil {
		return nil, err
	}
	if int64(len(header)) > math.MaxInt64-at {
		return nil, callErrorf("write header: the file has more than 2^63 bytes")
	}
	for i := range infos {
		infos[i].Offset += int64(len(header))
	}
	return startWriter(w, header, infos)
}

func checkDecl(d Decl) error {
	switch {
	case d.Name == metadataKey:
		return callErrorf("write header: no tensor can be named %s", metadataKey)
	case !utf8.ValidString(d.Name):
		return callErrorf("write header: tensor name %q is not UTF-8", d.Name)
	case len(d.Name) > defaultNameBytes:
		return callErrorf("write header: tensor name of %d bytes, want at most %d",
			len(d.Name), defaultNameBytes)
	case len(d.Shape) > defaultDims:
		return callErrorf("write header: tensor %q has %d dims, want at most %d",
			d.Name, len(d.Shape), defaultDims)
	case dtypeRank(d.DTypeName) < 0:
		return fmt.Errorf("kvist/capture: write header: tensor %q: unknown element type %q: %w",
			d.Name, d.DTypeName, quant.ErrUnsupported)
	}
	return nil
}

// safetensorsHeader returns the length and the JSON. Offsets of infos count from the first byte of
// data.
func safetensorsHeader(infos []TensorInfo, metadata map[string]string) ([]byte, error) {
	if len(infos) > defaultTensors || len(metadata) > defaultMetaKeys {
		return nil, fmt.Errorf("kvist/capture: write header: %d tensors, %d metadata keys, "+
			"readers accept %d and %d: %w", len(infos), len(metadata), defaultTensors,
			defaultMetaKeys, quant.ErrTooLarge)
	}
	b := make([]byte, lengthBytes, 512+128*len(infos))
	b = append(b, '{')
	if metadata != nil {
		b = append(appendJSON(b, metadataKey), ":{"...)
		for i, k := range slices.Sorted(maps.Keys(metadata)) {
			if !utf8.ValidString(k) || !utf8.ValidString(metadata[k]) {
				return nil, callErrorf("write header: metadata %q is not UTF-8", k)
			}
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendJSON(b, k), ':')
			b = appendJSON(b, metadata[k])
		}
		b = append(b, '}')
	}
	for i, t := range infos {
		if i > 0 || metadata != nil {
			b = append(b, ',')
		}
		b = append(appendJSON(b, t.Name), `:{"dtype":`...)
		b = append(appendJSON(b, t.DTypeName), `,"shape":`...)
		b = append(appendIntegers(b, t.Shape), `,"data_offsets":`...)
		b = append(appendIntegers(b, []int64{t.Offset, t.Offset + t.Bytes}), '}')
	}
	b = append(b, '}')
	for len(b)%8 != 0 {
		b = append(b, ' ')
	}
	n := len(b) - lengthBytes
	if n > defaultHeaderBytes {
		return nil, fmt.Errorf("kvist/capture: write header: %d bytes, readers accept %d: %w",
			n, defaultHeaderBytes, quant.ErrTooLarge)
	}
	binary.LittleEndian.PutUint64(b, uint64(n))
	return b, nil
}

// appendJSON appends s as a JSON string, without the escapes that only HTML needs.
func appendJSON(b []byte, s string) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // neither a string nor a bytes.Buffer can fail
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

func appendIntegers(b []byte, list []int64) []byte {
	b = append(b, '[')
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, v, 10)
	}
	return append(b, ']')
}

func startWriter(w io.WriterAt, header []byte, infos []TensorInfo) (*Writer, error) {
	wr := &Writer{w: w, size: int64(len(header)), tensors: infos,
		index: make(map[string]int, len(infos)), written: make([]coverage, len(infos))}
	for i, t := range infos {
		wr.index[t.Name] = i
		wr.size += t.Bytes
	}
	if _, err := w.WriteAt(header, 0); err != nil {
		return nil, fmt.Errorf("kvist/capture: write header: %w", err)
	}
	return wr, nil
}

// Size returns the size of the whole file in bytes.
func (w *Writer) Size() int64 { return w.size }

// Tensors returns the layout, in the order of the data.
func (w *Writer) Tensors() []TensorInfo { return slices.Clone(w.tensors) }

// WriteAt writes data to the tensor from offset off of its data. It is safe for concurrent use.
//
// Errors: quant.ErrShape for an unknown tensor or a range outside the tensor; quant.ErrClosed;
// those of the io.WriterAt.
func (w *Writer) WriteAt(tensor string, off int64, data []byte) error {
	i, ok := w.index[tensor]
	if !ok {
		return callErrorf("write tensor %q: it was not declared", tensor)
	}
	t := &w.tensors[i]
	if off < 0 || off > t.Bytes || int64(len(data)) > t.Bytes-off {
		return callErrorf("write tensor %q: %d bytes from byte %d, but it has %d",
			tensor, len(data), off, t.Bytes)
	}
	w.mu.Lock()
	closed := w.closed
	w.mu.Unlock()
	if closed {
		return fmt.Errorf("kvist/capture: write tensor %q: %w", tensor, quant.ErrClosed)
	}
	if len(data) == 0 {
		return nil
	}
	if _, err := w.w.WriteAt(data, t.Offset+off); err != nil {
		return fmt.Errorf("kvist/capture: write tensor %q, %d bytes at byte %d of the file: %w",
			tensor, len(data), t.Offset+off, err)
	}
	w.mu.Lock()
	w.written[i].add(off, off+int64(len(data)))
	w.mu.Unlock()
	return nil
}

// Close checks that every byte of every tensor was written. It does not close the io.WriterAt.
// Closing again does nothing.
//
// Errors: quant.ErrShape, with the first missing tensor and range.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	for i, t := range w.tensors {
		if lo, hi := w.written[i].gap(t.Bytes); lo < hi {
			return callErrorf("close: bytes [%d, %d) of tensor %q were never written",
				lo, hi, t.Name)
		}
	}
	return nil
}

// coverage is a set of bytes: disjoint ranges [lo, hi), ascending, that do not touch.
type coverage []struct{ lo, hi int64 }

// add adds [lo, hi) to the set.
func (c *coverage) add(lo, hi int64) {
	s := *c
	i := sort.Search(len(s), func(i int) bool { return s[i].hi >= lo })
	j := i
	for ; j < len(s) && s[j].lo <= hi; j++ {
		lo, hi = min(lo, s[j].lo), max(hi, s[j].hi)
	}
	*c = slices.Replace(s, i, j, struct{ lo, hi int64 }{lo, hi})
}

// gap returns the first range of [0, n) that is not in the set. If there is none, lo = hi.
func (c coverage) gap(n int64) (lo, hi int64) {
	if len(c) == 0 {
		return 0, n
	}
	if c[0].lo > 0 {
		return 0, c[0].lo
	}
	if c[0].hi < n {
		hi = n
		if len(c) > 1 {
			hi = c[1].lo
		}
		return c[0].hi, hi
	}
	return n, n
}
