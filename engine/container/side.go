// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"unicode/utf8"

	"github.com/kvist-project/kvist/quant"
)

// encoding is how a side tensor is stored. The writer chooses the smallest encoding.
type encoding uint8

// The encodings.
const (
	// encodingRaw stores the elements as they are.
	encodingRaw encoding = 0
	// encodingPlanes stores byte 0 of every element, then byte 1 and so on, deflated. It suits
	// token numbers and floats, whose high bytes repeat.
	encodingPlanes encoding = 1
	// encodingProgression stores integers start, start+step, ... as start and step.
	encodingProgression encoding = 2
)

// String returns "raw", "planes" or "progression".
func (e encoding) String() string {
	switch e {
	case encodingRaw:
		return "raw"
	case encodingPlanes:
		return "planes"
	case encodingProgression:
		return "progression"
	}
	return fmt.Sprintf("Encoding(%d)", uint8(e))
}

// maxInflate is the largest expansion of a byte by deflate (1032). A decoded length beyond that
// factor is refused before memory is allocated.
const maxInflate = 1032

// Aux is a side tensor, stored exactly and read by name: token numbers, surprisal, positions, and
// the tensors of an activations file whose rows are not compressed.
type Aux struct {
	Name  string
	DType string  // as safetensors names it
	Shape []int64 // up to 8 dimensions; none for a scalar
	Data  []byte  // little-endian, row-major
	// Plain stores Data as it is, so that a mapped file can be used in place. Otherwise the smallest of three
	// encodings is taken.
	Plain bool
}

// AuxInfo describes a side tensor of a file.
type AuxInfo struct {
	Name     string
	DType    string
	Shape    []int64
	encoding encoding
	Decoded  int64 // bytes of the tensor
	Offset   int64 // of its section in the file
	Length   int64 // of its section
	// Payload is the offset in the file of Data, as it is, or -1 where it is encoded.
	Payload int64
}

// Check reports an error unless name, type, shape and data fit together.
//
// Errors: quant.ErrShape, quant.ErrUnsupported.
func (a *Aux) Check() error {
	size := dtypeSize(a.DType)
	switch {
	case !utf8.ValidString(a.Name) || len(a.Name) > maxName:
		return shapef("side tensor name of %d bytes, want UTF-8 of at most %d", len(a.Name), maxName)
	case size == 0:
		return fmt.Errorf("kvist/container: side tensor %q has element type %q: %w",
			a.Name, a.DType, quant.ErrUnsupported)
	case len(a.Shape) > maxTensorDims:
		return shapef("side tensor %q has %d dimensions, want at most %d", a.Name, len(a.Shape),
			maxTensorDims)
	}
	n, ok := product(a.Shape, math.MaxInt64/8)
	if !ok || n*int64(size) != int64(len(a.Data)) {
		return shapef("side tensor %q: %d bytes, want shape %v of %s", a.Name, len(a.Data), a.Shape,
			a.DType)
	}
	return nil
}

// AuxSize returns the number of bytes that WriteAux writes for a, without its index entry.
//
// Errors: quant.ErrShape, quant.ErrUnsupported.
func AuxSize(a *Aux) (int64, error) {
	if err := a.Check(); err != nil {
		return 0, err
	}
	_, payload, err := a.encode()
	n := sideHeaderBytes + 8*len(a.Shape) + len(a.Name) + len(a.DType) + len(payload)
	return padded(int64(n)), err
}

// encode returns the smallest payload that readers accept, the lowest encoding at a tie.
func (a *Aux) encode() (encoding, []byte, error) {
	enc, payload := encodingRaw, a.Data
	if a.Plain || len(a.Data) > DefaultExpandedBytes { // readers want bytes in the file for what is larger
		return enc, payload, nil
	}
	var deflated bytes.Buffer
	z, err := flate.NewWriter(&deflated, flate.BestCompression)
	if err == nil {
		_, err = z.Write(splitPlanes(a.Data, dtypeSize(a.DType)))
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return 0, nil, fmt.Errorf("kvist/container: deflate side tensor %q: %w", a.Name, err)
	}
	if deflated.Len() < len(payload) {
		enc, payload = encodingPlanes, deflated.Bytes()
	}
	if p, ok := a.progression(); ok && len(p) < len(payload) {
		enc, payload = encodingProgression, p
	}
	return enc, payload, nil
}

// progression returns start and step if the elements are evenly spaced integers. Sums wrap at the
// width of the element, so start and step are modulo 2^64.
func (a *Aux) progression() ([]byte, bool) {
	size := dtypeSize(a.DType)
	if !isInteger(a.DType) || len(a.Data) < size {
		return nil, false
	}
	start := element(a.Data, size)
	step := uint64(0)
	if len(a.Data) > size {
		step = element(a.Data[size:], size) - start
	}
	mask := uint64(math.MaxUint64) >> (64 - 8*size)
	for i, v := 0, start; i < len(a.Data); i, v = i+size, v+step {
		if element(a.Data[i:], size) != v&mask {
			return nil, false
		}
	}
	le := binary.LittleEndian
	return le.AppendUint64(le.AppendUint64(nil, start), step), true
}

func isInteger(dtype string) bool { return dtype[0] == 'I' || dtype[0] == 'U' }

func element(b []byte, size int) uint64 {
	var v [8]byte
	copy(v[:], b[:size])
	return binary.LittleEndian.Uint64(v[:])
}

// splitPlanes converts elements of size bytes to planes of bytes; joinPlanes converts them back.
func splitPlanes(b []byte, size int) []byte {
	n := len(b) / size
	out := make([]byte, len(b))
	for i := range n {
		for j := range size {
			out[j*n+i] = b[i*size+j]
		}
	}
	return out
}

func joinPlanes(b []byte, size int) []byte {
	n := len(b) / size
	out := make([]byte, len(b))
	for i := range n {
		for j := range size {
			out[i*size+j] = b[j*n+i]
		}
	}
	return out
}

// appendAux appends the section of a to dst, which must be empty or end on 16 bytes.
func appendAux(dst []byte, a *Aux) ([]byte, error) {
	if err := a.Check(); err != nil {
		return dst, err
	}
	enc, payload, err := a.encode()
	if err != nil {
		return dst, err
	}
	start := len(dst)
	dst = append(dst, make([]byte, sideHeaderBytes)...)
	le := binary.LittleEndian
	for _, d := range a.Shape {
		dst = le.AppendUint64(dst, uint64(d))
	}
	dst = append(append(append(dst, a.Name...), a.DType...), payload...)
	dst = appendPadding(dst, start)
	s := dst[start:]
	copy(s, markSide)
	le.PutUint64(s[8:], uint64(len(s)))
	le.PutUint64(s[16:], uint64(len(payload)))
	le.PutUint64(s[24:], uint64(len(a.Data)))
	le.PutUint16(s[32:], uint16(len(a.Name)))
	s[34], s[35], s[36] = byte(len(a.DType)), byte(len(a.Shape)), byte(enc)
	le.PutUint32(s[sideCRCAt:], checksum(s, sideCRCAt))
	return dst, nil
}

// parseAuxInfo reads all of a side section but the payload, and returns the start and end of the
// payload. s is the whole section.
func parseAuxInfo(lim *Limits, p place, off int64, s []byte) (*AuxInfo, []byte, error) {
	le := binary.LittleEndian
	if len(s) < sideHeaderBytes || string(s[:4]) != markSide {
		return nil, nil, p.corrupt(off, "marker", fmt.Sprintf("%q", markSide),
			fmt.Sprintf("%q", s[:min(4, len(s))]))
	}
	if n := le.Uint64(s[8:]); n != uint64(len(s)) {
		return nil, nil, p.corrupt(off+8, "section length", len(s), n)
	}
	if want, got := checksum(s, sideCRCAt), le.Uint32(s[sideCRCAt:]); want != got {
		return nil, nil, p.corrupt(off+sideCRCAt, "checksum", hex32(want), hex32(got))
	}
	stored, decoded := le.Uint64(s[16:]), le.Uint64(s[24:])
	c := &cursor{place: p, b: s[36:], off: off + 36}
	info := &AuxInfo{encoding: encoding(c.uint(1)), Offset: off, Length: int64(len(s))}
	c.zero(3)
	if s[35] > maxTensorDims {
		c.fail("dimensions", maxTensorDims, s[35])
	} else {
		for range s[35] {
			info.Shape = append(info.Shape, int64(c.uint(8)))
		}
	}
	info.Name = c.string(int(le.Uint16(s[32:])))
	info.DType = c.string(int(s[34]))
	if c.err != nil {
		return nil, nil, c.err
	}
	size := dtypeSize(info.DType)
	if size == 0 {
		return nil, nil, p.refuse(off+34, fmt.Errorf("element type %q: %w", info.DType,
			quant.ErrUnsupported))
	}
	if info.encoding > encodingProgression {
		return nil, nil, p.refuse(off+36, fmt.Errorf("%s: %w", info.encoding, quant.ErrUnsupported))
	}
	if !utf8.ValidString(info.Name) {
		return nil, nil, p.corrupt(off+sideHeaderBytes, "name is not UTF-8", nil,
			fmt.Sprintf("%q", info.Name))
	}
	if decoded > uint64(lim.MaxSideBytes) {
		return nil, nil, p.tooLarge(off+24, "decoded length", lim.MaxSideBytes, decoded)
	}
	n, ok := product(info.Shape, math.MaxInt64/8)
	if !ok || uint64(n)*uint64(size) != decoded {
		return nil, nil, p.corrupt(off+24, "decoded length", fmt.Sprint(info.Shape, " of ", info.DType),
			decoded)
	}
	info.Decoded = int64(decoded)
	if stored > uint64(len(c.b)) || padded(int64(len(s)-len(c.b))+int64(stored)) != int64(len(s)) {
		return nil, nil, p.corrupt(off+16, "stored length", fmt.Sprintf("at most %d", len(c.b)), stored)
	}
	payload := c.b[:stored]
	info.Payload = -1
	if info.encoding == encodingRaw && stored == decoded {
		info.Payload = c.off
	}
	for i, b := range c.b[stored:] {
		if b != 0 {
			return nil, nil, p.corrupt(c.off+int64(stored)+int64(i), "padding", 0, b)
		}
	}
	return info, payload, nil
}

// decodeAux decodes the payload of a parsed side section.
func decodeAux(p place, lim *Limits, info *AuxInfo, payload []byte) ([]byte, error) {
	size := dtypeSize(info.DType)
	n := int64(len(payload))
	bad := func(what string, want, got any) error { return p.corrupt(info.Offset+24, what, want, got) }
	if info.encoding == encodingPlanes && info.Decoded/maxInflate > n {
		return nil, bad("decoded length of deflated data", fmt.Sprintf("at most %d", (n+1)*maxInflate),
			info.Decoded)
	}
	if info.encoding != encodingRaw && info.Decoded > lim.MaxExpandedBytes {
		return nil, p.tooLarge(info.Offset+24, "decoded length of "+info.encoding.String(),
			lim.MaxExpandedBytes, info.Decoded)
	}
	switch info.encoding {
	case encodingRaw:
		if n != info.Decoded {
			return nil, bad("decoded length", n, info.Decoded)
		}
		return bytes.Clone(payload), nil
	case encodingProgression:
		if n != 16 || !isInteger(info.DType) || info.Decoded == 0 {
			return nil, bad("progression", "16 bytes of an integer type", fmt.Sprint(n, " of ", info.DType))
		}
		v, step := element(payload, 8), element(payload[8:], 8)
		out := make([]byte, info.Decoded)
		var b [8]byte
		for i := 0; i < len(out); i += size {
			binary.LittleEndian.PutUint64(b[:], v)
			copy(out[i:i+size], b[:])
			v += step
		}
		return out, nil
	}
	src := bytes.NewReader(payload)
	z := flate.NewReader(src)
	out := make([]byte, info.Decoded)
	if _, err := io.ReadFull(z, out); err != nil {
		return nil, bad("deflated data: "+err.Error(), nil, nil)
	}
	var one [1]byte
	if k, err := z.Read(one[:]); k != 0 || err != io.EOF {
		return nil, bad("deflated data is longer than the tensor", info.Decoded, nil)
	}
	if src.Len() != 0 {
		return nil, bad("bytes after the deflated data", nil, src.Len())
	}
	return joinPlanes(out, size), nil
}
