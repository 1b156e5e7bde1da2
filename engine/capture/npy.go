// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// The .npy format. Source: NumPy enhancement proposal 1 and numpy/lib/format.py.
const (
	npyMagic = "\x93NUMPY"
	// maxNpyHeader bounds the header text. That of a plain array has some hundred bytes. Only
	// structured types need more, and they are refused.
	maxNpyHeader = 1 << 16
	npyAlign     = 64 // the header is padded so that data start on a multiple of this
	// npyGrowDigits is the room that NumPy leaves in a header for the first dim to grow.
	npyGrowDigits = 21
)

// parseNpy reads the header of a file that is one .npy.
func parseNpy(f *file, lim Limits) ([]TensorInfo, error) {
	at := int64(0)
	p := &npyHead{src: f, size: f.size, lim: lim, next: func(b []byte) error {
		err := f.readFull(sectionHeader, "", at, b)
		at += int64(len(b))
		return err
	}}
	info, err := p.read()
	if err != nil {
		return nil, err
	}
	return []TensorInfo{info}, nil
}

// npyHead reads the header of an .npy, which is a file or a member of an .npz.
type npyHead struct {
	src  *file
	name string
	base int64 // byte of the file at which the .npy starts, -1 where that means nothing
	size int64 // bytes of the .npy
	lim  Limits
	next func([]byte) error // reads the bytes that follow
}

func (h *npyHead) fail(section string, off int64, cause error) error {
	if h.base < 0 {
		off = -1
	} else {
		off += h.base
	}
	if h.name != "" {
		section = sectionTensor
	}
	return h.src.formatError(section, h.name, off, cause)
}

// read returns the array. Its Offset is from the start of the .npy.
func (h *npyHead) read() (info TensorInfo, err error) {
	const fixed = int64(len(npyMagic) + 2)
	if h.size < fixed+2 {
		return info, h.fail(sectionFile, 0,
			corruptf("%d bytes, too short for the header of an .npy", h.size))
	}
	var head [fixed]byte
	if err := h.next(head[:]); err != nil {
		return info, err
	}
	if !bytes.HasPrefix(head[:], []byte(npyMagic)) {
		return info, h.fail(sectionHeader, 0, corruptf("it starts with % x, no .npy", head[:6]))
	}
	major, minor := head[fixed-2], head[fixed-1]
	if major < 1 || major > 3 || minor != 0 {
		return info, h.fail(sectionHeader, int64(len(npyMagic)),
			fmt.Errorf(".npy version %d.%d, want 1.0, 2.0 or 3.0: %w", major, minor,
				quant.ErrVersion))
	}
	length := make([]byte, 2)
	if major > 1 {
		length = make([]byte, 4)
	}
	from := fixed + int64(len(length))
	if h.size < from {
		return info, h.fail(sectionFile, 0,
			corruptf("%d bytes, too short for the header of an .npy", h.size))
	}
	if err := h.next(length); err != nil {
		return info, err
	}
	n := int64(binary.LittleEndian.Uint16(length))
	if major > 1 {
		n = int64(binary.LittleEndian.Uint32(length))
	}
	if n > h.size-from {
		return info, h.fail(sectionHeader, fixed,
			corruptf("header of %d bytes, the file has %d after its length", n, h.size-from))
	}
	if most := min(h.lim.HeaderBytes, maxNpyHeader); n > most {
		return info, h.fail(sectionHeader, fixed,
			tooLargef("header of %d bytes, want at most %d", n, most))
	}
	text := make([]byte, n)
	if err := h.next(text); err != nil {
		return info, err
	}
	p := &npyParser{text: string(text), maxDims: h.lim.Dims}
	if info, err = p.parse(); err != nil {
		return info, h.fail(sectionHeader, from+int64(p.at), err)
	}
	info.Name, info.Offset = h.name, from+n
	return info, h.checkData(info)
}

// checkData compares the size of the array with the bytes present.
func (h *npyHead) checkData(info TensorInfo) error {
	have := h.size - info.Offset
	if have == info.Bytes {
		return nil
	}
	if have >= info.Bytes+int64(len(npyMagic)) && h.base >= 0 {
		var next [len(npyMagic)]byte
		if err := h.src.readFull(sectionFile, "", h.base+info.Offset+info.Bytes, next[:]); err != nil {
			return err
		}
		if string(next[:]) == npyMagic {
			return h.fail(sectionFile, info.Offset+info.Bytes, unsupportedf(
				"a second array after the first; numpy.savez writes several arrays to a file"))
		}
	}
	return h.fail(sectionTensor, info.Offset, corruptf("%s of shape %v has %d bytes, the file has %d of data",
		info.DTypeName, info.Shape, info.Bytes, have))
}

// npyParser parses the literal of a Python dict at the start of an .npy: the keys descr,
// fortran_order and shape, each once, in any order.
type npyParser struct {
	text    string
	at      int
	maxDims int
}

func (p *npyParser) parse() (TensorInfo, error) {
	var info TensorInfo
	var lay layout
	seen := make(map[string]bool, 3)
	if err := p.want("{"); err != nil {
		return info, err
	}
	for !p.accept("}") {
		key, err := p.str()
		if err != nil {
			return info, err
		}
		if seen[key] {
			return info, corruptf("key %q appears twice", key)
		}
		seen[key] = true
		if err := p.want(":"); err != nil {
			return info, err
		}
		switch key {
		case "descr":
			info.DTypeName, lay.swap, err = p.descr()
		case "fortran_order":
			lay.fortran, err = p.order()
		case "shape":
			info.Shape, err = p.shape()
		default:
			err = corruptf("unknown key %.64q", key)
		}
		if err != nil {
			return info, err
		}
		if !p.accept(",") {
			if err := p.want("}"); err != nil {
				return info, err
			}
			break
		}
	}
	p.space()
	if p.at != len(p.text) {
		return info, corruptf("bytes other than spaces follow the dict")
	}
	for _, key := range []string{"descr", "fortran_order", "shape"} {
		if !seen[key] {
			return info, corruptf("key %q is missing", key)
		}
	}
	lay.fortran = lay.fortran && len(info.Shape) > 1 // one dim has one order
	if lay.fortran || lay.swap {
		info.lay = &lay
	}
	if lay.swap {
		info.Stored = "big-endian " + info.DTypeName
	}
	if lay.fortran {
		info.Stored = cmp.Or(info.Stored, info.DTypeName) + " in Fortran order"
	}
	var err error
	info.Bytes, err = dataBytes(info.DTypeName, info.Shape)
	return info, err
}

func (p *npyParser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

func (p *npyParser) accept(word string) bool {
	p.space()
	if !strings.HasPrefix(p.text[p.at:], word) {
		return false
	}
	p.at += len(word)
	return true
}

func (p *npyParser) want(word string) error {
	if !p.accept(word) {
		rest := p.text[p.at:]
		return corruptf("found %q, want %q", rest[:min(len(rest), 16)], word)
	}
	return nil
}

// str parses a string in single or double quotes. Python 2 may mark it as Unicode. No valid value
// needs an escape.
func (p *npyParser) str() (string, error) {
	p.space()
	if rest := p.text[p.at:]; len(rest) > 1 && rest[0] == 'u' && (rest[1] == '\'' || rest[1] == '"') {
		p.at++
	}
	quote := "'"
	if !p.accept(quote) {
		quote = `"`
		if !p.accept(quote) {
			return "", p.want("'")
		}
	}
	n := strings.IndexAny(p.text[p.at:], quote+"\\\n")
	if n < 0 || p.text[p.at+n] != quote[0] {
		return "", corruptf("a string does not end, or holds an escape")
	}
	s := p.text[p.at : p.at+n]
	p.at += n + 1
	return s, nil
}

// descr reads the element type and whether it is big-endian.
func (p *npyParser) descr() (name string, swap bool, err error) {
	if p.accept("[") {
		return "", false, unsupportedf("a structured element type; " +
			"numpy.lib.recfunctions.structured_to_unstructured converts it")
	}
	d, err := p.str()
	if err != nil {
		return "", false, err
	}
	if len(d) < 2 {
		return "", false, corruptf("element type %q", d)
	}
	order, rest := d[0], d[1:]
	for _, t := range dtypes {
		switch {
		case t.descr == "" || t.descr[1:] != rest || !strings.ContainsRune("<>|=", rune(order)):
		case t.descr[0] == '|': // the byte order of a byte does not matter
			return t.name, false, nil
		case order == '<' || order == '>':
			return t.name, order == '>', nil
		}
	}
	return "", false, unsupportedf("element type %.64q; array.astype(numpy.float32) converts it", d)
}

// order reports whether the array is in Fortran order.
func (p *npyParser) order() (fortran bool, err error) {
	switch {
	case p.accept("False"):
		return false, nil
	case p.accept("True"):
		return true, nil
	}
	return false, p.want("False")
}

// shape parses a tuple of integers: (), (n,) or (n, m[,]). Python 2 may write an L after an
// integer.
func (p *npyParser) shape() ([]int64, error) {
	if err := p.want("("); err != nil {
		return nil, err
	}
	shape := []int64{}
	for comma := true; ; {
		if p.accept(")") {
			if len(shape) == 1 && !comma {
				return nil, corruptf("shape (%d) is not a tuple, want (%d,)", shape[0], shape[0])
			}
			return shape, nil
		}
		if !comma {
			return nil, p.want(")")
		}
		p.space()
		n := p.at
		for n < len(p.text) && p.text[n] >= '0' && p.text[n] <= '9' {
			n++
		}
		v, err := strconv.ParseUint(p.text[p.at:n], 10, 63)
		if err != nil {
			return nil, corruptf("shape holds %.24q, want an integer of [0, 2^63)",
				p.text[p.at:min(len(p.text), max(n, p.at+1))])
		}
		p.at = n
		if p.at < len(p.text) && p.text[p.at] == 'L' {
			p.at++
		}
		if len(shape) >= p.maxDims {
			return nil, tooLargef("shape has more than %d dims", p.maxDims)
		}
		shape = append(shape, int64(v))
		comma = p.accept(",")
	}
}

// NewNpyWriter starts an .npy of version 1.0, as NumPy writes it, with the tensor d. It is
// otherwise like NewWriter. d.Name names the tensor in calls only; the file does not hold it.
//
// Errors: quant.ErrShape for an invalid shape; quant.ErrUnsupported for an element type that .npy
// does not have (BF16, the 8-bit floats); those of w.
func NewNpyWriter(w io.WriterAt, d Decl) (*Writer, error) {
	rank := dtypeRank(d.DTypeName)
	if rank < 0 || dtypes[rank].descr == "" {
		return nil, fmt.Errorf("kvist/capture: write .npy: .npy has no element type %q: %w",
			d.DTypeName, quant.ErrUnsupported)
	}
	if len(d.Shape) > defaultDims {
		return nil, callErrorf("write .npy: shape has %d dims, want at most %d",
			len(d.Shape), defaultDims)
	}
	n, err := dataBytes(d.DTypeName, d.Shape)
	if err != nil {
		return nil, callErrorf("write .npy: %s of shape %v is invalid", d.DTypeName, d.Shape)
	}
	d.Shape = slices.Clone(d.Shape)
	header := npyHeader(dtypes[rank].descr, d.Shape)
	info := TensorInfo{Decl: d, Offset: int64(len(header)), Bytes: n}
	return startWriter(w, header, []TensorInfo{info})
}

func npyHeader(descr string, shape []int64) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr)
	for i, d := range shape {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.FormatInt(d, 10))
	}
	if len(shape) == 1 {
		b.WriteString(",")
	}
	b.WriteString("), }")
	if len(shape) > 0 {
		digits := len(strconv.FormatInt(shape[0], 10))
		b.WriteString(strings.Repeat(" ", max(0, npyGrowDigits-digits)))
	}
	fixed := len(npyMagic) + 4
	total := (fixed + b.Len() + 1 + npyAlign - 1) / npyAlign * npyAlign
	b.WriteString(strings.Repeat(" ", total-fixed-b.Len()-1))
	b.WriteString("\n")
	out := append([]byte(npyMagic), 1, 0)
	out = binary.LittleEndian.AppendUint16(out, uint16(b.Len()))
	return append(out, b.String()...)
}
