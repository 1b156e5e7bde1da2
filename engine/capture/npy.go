// SPDX-License-Identifier: Apache-2.0

package capture

import (
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
	// maxNpyHeader bounds the header text. That of a plain array has some hundred bytes; only
	// structured types, which are refused, need more.
	maxNpyHeader = 1 << 16
	npyAlign     = 64 // the header is padded so that data start on a multiple of this
	// npyGrowDigits is the room NumPy leaves in a header for the first dim to grow.
	npyGrowDigits = 21
)

// parseNpy reads the header. head holds the first bytes of the file.
func (s *Source) parseNpy(head []byte, lim Limits) error {
	const fixed = len(npyMagic) + 2
	if len(head) < fixed+2 {
		return s.formatError(SectionFile, "", 0,
			corruptf("%d bytes, too short for the header of an .npy", s.size))
	}
	major, minor := head[fixed-2], head[fixed-1]
	if major < 1 || major > 3 || minor != 0 {
		return s.formatError(SectionHeader, "", int64(len(npyMagic)),
			fmt.Errorf(".npy version %d.%d, want 1.0, 2.0 or 3.0: %w", major, minor,
				quant.ErrVersion))
	}
	from := int64(fixed + 2)
	n := int64(binary.LittleEndian.Uint16(head[fixed:]))
	if major > 1 {
		var b [4]byte
		if err := s.readFull(SectionHeader, "", int64(fixed), b[:]); err != nil {
			return err
		}
		n, from = int64(binary.LittleEndian.Uint32(b[:])), int64(fixed+4)
	}
	if n > s.size-from {
		return s.formatError(SectionHeader, "", int64(fixed),
			corruptf("header of %d bytes, the file has %d after its length", n, s.size-from))
	}
	if most := min(lim.HeaderBytes, maxNpyHeader); n > most {
		return s.formatError(SectionHeader, "", int64(fixed),
			tooLargef("header of %d bytes, want at most %d", n, most))
	}
	text := make([]byte, n)
	if err := s.readFull(SectionHeader, "", from, text); err != nil {
		return err
	}
	p := &npyParser{text: string(text), maxDims: lim.Dims}
	info, err := p.parse()
	if err != nil {
		return s.formatError(SectionHeader, "", from+int64(p.at), err)
	}
	info.Offset = from + n
	if have := s.size - info.Offset; have != info.Bytes {
		return s.formatError(SectionTensor, "", info.Offset,
			corruptf("%s of shape %v has %d bytes, the file has %d of data",
				info.DTypeName, info.Shape, info.Bytes, have))
	}
	s.tensors = []TensorInfo{info}
	return nil
}

// npyParser reads the literal of a Python dict that heads an .npy: the keys descr,
// fortran_order and shape, each once, in any order.
type npyParser struct {
	text    string
	at      int
	maxDims int
}

func (p *npyParser) parse() (TensorInfo, error) {
	var info TensorInfo
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
			return info, corruptf("key %q stands twice", key)
		}
		seen[key] = true
		if err := p.want(":"); err != nil {
			return info, err
		}
		switch key {
		case "descr":
			info.DTypeName, err = p.descr()
		case "fortran_order":
			err = p.order()
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

// str reads a string in either quotes. No legal value needs an escape.
func (p *npyParser) str() (string, error) {
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

func (p *npyParser) descr() (string, error) {
	if p.accept("[") {
		return "", unsupportedf("structured element type, want a plain one")
	}
	d, err := p.str()
	if err != nil {
		return "", err
	}
	if len(d) == 3 && d[0] == '<' && d[2] == '1' { // the byte order of a byte does not matter
		d = "|" + d[1:]
	}
	for _, t := range dtypes {
		if t.descr != "" && t.descr == d {
			return t.name, nil
		}
	}
	if strings.HasPrefix(d, ">") {
		return "", unsupportedf("element type %.64q is big-endian, want little-endian", d)
	}
	return "", unsupportedf("element type %.64q is not known", d)
}

func (p *npyParser) order() error {
	switch {
	case p.accept("False"):
		return nil
	case p.accept("True"):
		return unsupportedf("array in Fortran order, want C order")
	}
	return p.want("False")
}

// shape reads a tuple of integers: (), (n,) or (n, m[,]).
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
		if len(shape) >= p.maxDims {
			return nil, tooLargef("shape has more than %d dims", p.maxDims)
		}
		shape = append(shape, int64(v))
		comma = p.accept(",")
	}
}

// NewNpyWriter starts an .npy of version 1.0, as NumPy writes it, with the one tensor d. The
// rest is as with NewWriter; d.Name names the tensor in calls only.
//
// Errors: quant.ErrShape for a shape that is none; quant.ErrUnsupported for an element type that
// .npy does not have (BF16, the 8-bit floats); those of w.
func NewNpyWriter(w io.WriterAt, d Decl) (*Writer, error) {
	rank := dtypeRank(d.DTypeName)
	if rank < 0 || dtypes[rank].descr == "" {
		return nil, fmt.Errorf("kvist/capture: write .npy: element type %q is not one of .npy: %w",
			d.DTypeName, quant.ErrUnsupported)
	}
	if len(d.Shape) > defaultDims {
		return nil, callErrorf("write .npy: shape has %d dims, want at most %d",
			len(d.Shape), defaultDims)
	}
	n, err := dataBytes(d.DTypeName, d.Shape)
	if err != nil {
		return nil, callErrorf("write .npy: shape %v of %s is none", d.Shape, d.DTypeName)
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
