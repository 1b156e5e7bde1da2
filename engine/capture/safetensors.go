// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"
)

const (
	metadataKey = "__metadata__"
	lengthBytes = 8 // of the header length that starts a safetensors file
	// maxSkipDepth bounds the nesting of unknown fields.
	maxSkipDepth = 32
)

// headerParser parses the JSON of a safetensors header token by token, so that it refuses
// unexpected values before it stores them.
type headerParser struct {
	src      *file
	meta     map[string]string
	tensors  []TensorInfo
	lim      Limits
	dec      *json.Decoder
	dataFrom int64 // file offset of the data
	dataSize int64
}

// parseSafetensors reads the header. head holds the first bytes of the file, at least 9.
func parseSafetensors(f *file, head []byte, lim Limits) (tensors []TensorInfo, metadata map[string]string, err error) {
	n := binary.LittleEndian.Uint64(head)
	if n > uint64(f.size-lengthBytes) {
		return nil, nil, f.formatError(sectionHeader, "", 0,
			corruptf("header of %d bytes, the file has %d after its length",
				n, f.size-lengthBytes))
	}
	if n > uint64(lim.HeaderBytes) {
		return nil, nil, f.formatError(sectionHeader, "", 0,
			tooLargef("header of %d bytes, want at most %d", n, lim.HeaderBytes))
	}
	raw, err := readHeader(f, int64(n))
	if err != nil {
		return nil, nil, err
	}
	if !utf8.Valid(raw) {
		return nil, nil, f.formatError(sectionHeader, "", lengthBytes, corruptf("not UTF-8"))
	}
	p := &headerParser{src: f, lim: lim, dec: json.NewDecoder(bytes.NewReader(raw)),
		dataFrom: lengthBytes + int64(n), dataSize: f.size - lengthBytes - int64(n)}
	p.dec.UseNumber()
	if err := p.top(); err != nil {
		return nil, nil, err
	}
	err = p.checkCover()
	return p.tensors, p.meta, err
}

// readHeader reads the n bytes after the length. Its buffer grows with the bytes present, not with
// the claimed length.
func readHeader(f *file, n int64) ([]byte, error) {
	const step = 1 << 20
	raw := make([]byte, 0, min(n, step))
	for int64(len(raw)) < n {
		at := len(raw)
		k := int(min(n-int64(at), step))
		raw = slices.Grow(raw, k)[:at+k]
		if err := f.readFull(sectionHeader, "", lengthBytes+int64(at), raw[at:]); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

func (p *headerParser) fail(tensor string, cause error) error {
	section := sectionHeader
	switch tensor {
	case "":
	case metadataKey:
		section, tensor = sectionMetadata, ""
	default:
		section = sectionTensor
	}
	return p.src.formatError(section, tensor, lengthBytes+p.dec.InputOffset(), cause)
}

// token returns the next token of the header.
func (p *headerParser) token(tensor string) (json.Token, error) {
	t, err := p.dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, p.fail(tensor, corruptf("not JSON (%v)", err))
	}
	return t, nil
}

func (p *headerParser) open(tensor, what string, d json.Delim) error {
	t, err := p.token(tensor)
	if err != nil {
		return err
	}
	if t != d {
		return p.fail(tensor, corruptf("%s is %s, want %s", what, show(t), d))
	}
	return nil
}

// show returns a token, shortened, for an error text.
func show(t json.Token) string {
	text := fmt.Sprintf("%v", t)
	if s, ok := t.(string); ok {
		text = strconv.QuoteToASCII(s)
	}
	if t == nil {
		text = "null"
	}
	const most = 64
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}

// top parses the header's object.
func (p *headerParser) top() error {
	if err := p.open("", "header", '{'); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for p.dec.More() {
		t, err := p.token("")
		if err != nil {
			return err
		}
		name, _ := t.(string) // keys are strings, or token fails
		if seen[name] {
			return p.fail("", corruptf("name %s appears twice", show(t)))
		}
		seen[name] = true
		if name == metadataKey {
			err = p.metadata()
		} else {
			err = p.tensor(name)
		}
		if err != nil {
			return err
		}
	}
	if _, err := p.token(""); err != nil { // the closing brace
		return err
	}
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return p.fail("", corruptf("bytes other than spaces follow the JSON object"))
	}
	return nil
}

func (p *headerParser) metadata() error {
	t, err := p.token(metadataKey)
	if err != nil || t == nil { // null counts as absent
		return err
	}
	if t != json.Delim('{') {
		return p.fail(metadataKey, corruptf("it is %s, want {", show(t)))
	}
	p.meta = make(map[string]string)
	for p.dec.More() {
		k, err := p.token(metadataKey)
		if err != nil {
			return err
		}
		key, _ := k.(string)
		if _, ok := p.meta[key]; ok {
			return p.fail(metadataKey, corruptf("key %s appears twice", show(k)))
		}
		if len(p.meta) >= p.lim.MetaKeys {
			return p.fail(metadataKey, tooLargef("more than %d keys", p.lim.MetaKeys))
		}
		v, err := p.token(metadataKey)
		if err != nil {
			return err
		}
		text, ok := v.(string)
		if !ok {
			return p.fail(metadataKey, corruptf("key %s is %s, want a string", show(k), show(v)))
		}
		p.meta[key] = text
	}
	_, err = p.token(metadataKey)
	return err
}

// tensor parses the object that declares one tensor.
func (p *headerParser) tensor(name string) error {
	if len(name) > p.lim.NameBytes {
		return p.fail("", tooLargef("tensor name of %d bytes, want at most %d",
			len(name), p.lim.NameBytes))
	}
	if len(p.tensors) >= p.lim.Tensors {
		return p.fail("", tooLargef("more than %d tensors", p.lim.Tensors))
	}
	if err := p.open(name, "declaration", '{'); err != nil {
		return err
	}
	info := TensorInfo{Decl: Decl{Name: name}}
	var offsets []int64
	seen := make(map[string]bool, 3)
	for p.dec.More() {
		t, err := p.token(name)
		if err != nil {
			return err
		}
		key, _ := t.(string)
		if seen[key] {
			return p.fail(name, corruptf("field %s appears twice", show(t)))
		}
		switch key {
		case "dtype":
			info.DTypeName, err = p.dtype(name)
		case "shape":
			info.Shape, err = p.integers(name, key, p.lim.Dims)
		case "data_offsets":
			offsets, err = p.integers(name, key, 2)
		default:
			// The reference implementation ignores unknown fields.
			err = p.skip(name)
			key = ""
		}
		if err != nil {
			return err
		}
		if key != "" {
			seen[key] = true
		}
	}
	if _, err := p.token(name); err != nil {
		return err
	}
	for _, key := range []string{"dtype", "shape", "data_offsets"} {
		if !seen[key] {
			return p.fail(name, corruptf("field %q is missing", key))
		}
	}
	return p.add(info, offsets)
}

// add checks one declaration and stores it.
func (p *headerParser) add(info TensorInfo, offsets []int64) error {
	if len(offsets) != 2 {
		return p.fail(info.Name, corruptf("data_offsets %v, want two", offsets))
	}
	begin, end := offsets[0], offsets[1]
	if begin > end {
		return p.fail(info.Name, corruptf("data_offsets %v end before they begin", offsets))
	}
	if end > p.dataSize {
		return p.fail(info.Name, corruptf("data_offsets %v, the file has %d bytes of data",
			offsets, p.dataSize))
	}
	n, err := dataBytes(info.DTypeName, info.Shape)
	if err != nil {
		return p.fail(info.Name, err)
	}
	if n != end-begin {
		return p.fail(info.Name, corruptf("data_offsets %v span %d bytes, %s of shape %v has %d",
			offsets, end-begin, info.DTypeName, info.Shape, n))
	}
	info.Offset, info.Bytes = p.dataFrom+begin, n
	p.tensors = append(p.tensors, info)
	return nil
}

func (p *headerParser) dtype(name string) (string, error) {
	t, err := p.token(name)
	if err != nil {
		return "", err
	}
	text, ok := t.(string)
	if !ok {
		return "", p.fail(name, corruptf("dtype is %s, want a string", show(t)))
	}
	rank := dtypeRank(text)
	if rank < 0 {
		return "", p.fail(name, unsupportedf("unknown element type %s; remove the tensor from the file", show(t)))
	}
	return dtypes[rank].name, nil
}

// integers parses an array of up to most integers in [0, 2^63).
func (p *headerParser) integers(name, field string, most int) ([]int64, error) {
	if err := p.open(name, field, '['); err != nil {
		return nil, err
	}
	list := []int64{}
	for p.dec.More() {
		t, err := p.token(name)
		if err != nil {
			return nil, err
		}
		if len(list) >= most {
			if field == "data_offsets" {
				return nil, p.fail(name, corruptf("%s has more than %d numbers", field, most))
			}
			return nil, p.fail(name, tooLargef("%s has more than %d numbers", field, most))
		}
		num, _ := t.(json.Number)
		v, err := strconv.ParseUint(string(num), 10, 63)
		if err != nil {
			return nil, p.fail(name, corruptf("%s holds %s, want an integer of [0, 2^63)",
				field, show(t)))
		}
		list = append(list, int64(v))
	}
	_, err := p.token(name)
	return list, err
}

// skip skips one value.
func (p *headerParser) skip(name string) error {
	for depth := 0; ; {
		t, err := p.token(name)
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
		if depth > maxSkipDepth {
			return p.fail(name, tooLargef("nested deeper than %d", maxSkipDepth))
		}
	}
}

// checkCover sorts the tensors by offset and checks that they cover the data without gaps or
// overlaps.
func (p *headerParser) checkCover() error {
	f := p.src
	slices.SortFunc(p.tensors, func(a, b TensorInfo) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Bytes, b.Bytes),
			cmp.Compare(a.Name, b.Name))
	})
	at := p.dataFrom
	for i, t := range p.tensors {
		switch {
		case t.Offset > at:
			return f.formatError(sectionTensor, t.Name, t.Offset,
				corruptf("the %d bytes before it belong to no tensor", t.Offset-at))
		case t.Offset < at:
			return f.formatError(sectionTensor, t.Name, t.Offset,
				corruptf("it overlaps tensor %q by %d bytes",
					p.tensors[i-1].Name, min(at, t.Offset+t.Bytes)-t.Offset))
		}
		at += t.Bytes
	}
	if at != f.size {
		return f.formatError(sectionFile, "", at,
			corruptf("%d bytes after the data of the last tensor", f.size-at))
	}
	return nil
}
