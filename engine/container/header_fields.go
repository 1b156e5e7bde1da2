// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// HeaderSize returns the size of the header section that NewWriter writes.
//
// Errors: those of Validate, and quant.ErrTooLarge.
func HeaderSize(h *Header) (int64, error) {
	b, err := appendHeader(nil, h)
	return int64(len(b)), err
}

// appendHeader appends the header section to dst, which must be empty.
func appendHeader(dst []byte, h *Header) ([]byte, error) {
	if err := h.validate(); err != nil {
		return dst, err
	}
	if h.Geometry.PerLayer != nil {
		c := *h
		c.Geometry = h.Geometry.Canonical()
		h = &c
	}
	le := binary.LittleEndian
	dst = append(dst, make([]byte, fileHeaderBytes)...)
	for _, t := range tagInfos() {
		v, given := h.fieldValue(t.tag)
		if !given {
			continue
		}
		flags := uint16(0)
		if t.required {
			flags = fieldFlagRequired
		}
		if len(v) > math.MaxUint32/2 {
			return dst, fmt.Errorf("kvist/container: header: %s takes %d bytes: %w",
				t.name, len(v), quant.ErrTooLarge)
		}
		dst = le.AppendUint16(dst, t.tag)
		dst = le.AppendUint16(dst, flags)
		dst = le.AppendUint32(dst, uint32(len(v)))
		dst = append(dst, v...)
		dst = append(dst, make([]byte, -len(v)&7)...)
	}
	dst = appendPadding(dst, 0)
	if len(dst) > defaultHeaderBytes {
		return dst, fmt.Errorf("kvist/container: header takes %d bytes (config, metadata and names of "+
			"tensors stand in it), readers accept %d: %w", len(dst), defaultHeaderBytes, quant.ErrTooLarge)
	}
	copy(dst, magicHead)
	le.PutUint16(dst[8:], uint16(oldestVersion(*h)))
	le.PutUint16(dst[10:], uint16(h.Kind))
	le.PutUint32(dst[12:], uint32(len(dst)))
	le.PutUint32(dst[20:], 0)
	le.PutUint32(dst[fileHeaderCRCAt:], checksum(dst, fileHeaderCRCAt))
	return dst, nil
}

// fieldValue returns the bytes of a header field and whether the file has it.
func (h *Header) fieldValue(tag uint16) (v []byte, given bool) {
	le := binary.LittleEndian
	cache, rows, vectors := h.Kind == KindCache, h.Kind == KindRows, h.Kind == KindVectors
	switch tag {
	case tagGeometry:
		return h.geometryValue(), !rows && !vectors
	case tagInvFreq:
		for _, f := range h.Geometry.Rope.InvFreq {
			v = le.AppendUint32(v, math.Float32bits(f))
		}
		return v, v != nil
	case tagLayers:
		for _, l := range h.Layers {
			v = le.AppendUint32(v, uint32(l))
		}
		return v, cache
	case tagSpan:
		v = le.AppendUint64(v, uint64(h.Tokens))
		v = le.AppendUint64(v, uint64(h.First))
		v = le.AppendUint32(v, uint32(h.SegmentTokens))
		v = le.AppendUint32(v, uint32(h.Sinks))
		v = le.AppendUint32(v, uint32(h.Window))
		return append(v, byte(h.KType), byte(h.VType), 0, 0), cache || rows
	case tagSeed:
		return le.AppendUint64(v, h.Seed), cache || rows || vectors
	case tagConfig:
		return []byte(h.Config), h.Config != ""
	case tagModel:
		return []byte(h.Model), h.Model != ""
	case tagMetadata:
		v = le.AppendUint32(v, uint32(len(h.Metadata)))
		for _, k := range slices.Sorted(maps.Keys(h.Metadata)) {
			s := h.Metadata[k]
			v = le.AppendUint32(v, uint32(len(k)))
			v = le.AppendUint32(v, uint32(len(s)))
			v = append(append(v, k...), s...)
		}
		return v, len(h.Metadata) > 0
	case tagProfile:
		return h.Profile[:], h.Profile != [profileBytes]byte{}
	case tagQueryEnergy:
		v = le.AppendUint32(v, uint32(len(h.Layers)))
		v = le.AppendUint32(v, uint32(h.Geometry.KVHeads))
		for _, f := range h.QueryEnergy {
			v = le.AppendUint32(v, math.Float32bits(f))
		}
		return v, h.QueryEnergy != nil
	case tagTensors:
		return tensorsValue(h), rows
	case tagMetric:
		return metricValue(h), h.Metrics != nil
	case tagAttention:
		return attentionValue(h.Geometry), h.Geometry.PerLayer != nil
	case tagSegments:
		return segmentsValue(h), h.Starts != nil
	}
	return nil, false
}

func (h *Header) geometryValue() []byte {
	le := binary.LittleEndian
	g := h.Geometry
	v := make([]byte, geometryBytes)
	for i, n := range []int{g.Layers, g.Heads, g.KVHeads, g.HeadDim, g.HeadDimV} {
		le.PutUint32(v[4*i:], uint32(n))
	}
	v[20] = byte(g.Rope.Layout)
	le.PutUint32(v[24:], uint32(g.Rope.RotaryDim))
	le.PutUint64(v[32:], math.Float64bits(g.Rope.Theta))
	return v
}

// parseFileHeader checks the fixed part of the header and returns the section's length. b holds at
// least fileHeaderBytes bytes.
func parseFileHeader(p place, lim *Limits, b []byte, fileSize int64) (int, Kind, int64, error) {
	le := binary.LittleEndian
	if string(b[:8]) != magicHead {
		return 0, 0, 0, p.corrupt(0, "magic: not a kvist file",
			fmt.Sprintf("%q", magicHead), fmt.Sprintf("%q", b[:8]))
	}
	v := int(le.Uint16(b[8:]))
	if !supported(v) {
		return v, 0, 0, p.refuse(8, fmt.Errorf("file is of version %d, this build reads %d to %d: %w",
			v, MinSupported, MaxSupported, quant.ErrVersion))
	}
	n := int64(le.Uint32(b[12:]))
	switch {
	case n < fileHeaderBytes+fieldHeaderBytes || n%align != 0:
		return v, 0, n, p.corrupt(12, "header length is not a multiple of 16 from 32", nil, n)
	case n > fileSize:
		return v, 0, n, p.corrupt(12, "header is longer than the file", fileSize, n)
	case n > lim.MaxHeaderBytes:
		return v, 0, n, p.tooLarge(12, "header length", lim.MaxHeaderBytes, n)
	}
	return v, Kind(le.Uint16(b[10:])), n, nil
}

// parseHeader reads a header section whose fixed part has been checked. sides is KindProfile or
// KindVectors where a file of that kind is wanted, else kindInvalid.
func parseHeader(p place, s []byte, v int, k, sides Kind) (*Header, error) {
	le := binary.LittleEndian
	if want, got := checksum(s, fileHeaderCRCAt), le.Uint32(s[fileHeaderCRCAt:]); want != got {
		return nil, p.corrupt(fileHeaderCRCAt, "checksum", hex32(want), hex32(got))
	}
	if err := checkKind(k, sides); err != nil {
		return nil, p.refuse(10, err)
	}
	if f := le.Uint32(s[20:]); f != 0 {
		return nil, p.refuse(20, fmt.Errorf("header flags %#x: %w", f, quant.ErrUnsupported))
	}
	h := &Header{Version: v, Kind: k}
	have, err := h.parseFields(p, s)
	if err != nil {
		return nil, err
	}
	need := []uint16{tagSpan, tagSeed, tagTensors}
	switch k {
	case KindCache:
		need = []uint16{tagGeometry, tagLayers, tagSpan, tagSeed}
	case KindProfile:
		need = []uint16{tagGeometry}
	case KindVectors:
		need = []uint16{tagSeed}
	}
	for _, t := range need {
		if !have[t] {
			return nil, p.corrupt(fileHeaderBytes, "missing field", "tag "+fmt.Sprint(t), nil)
		}
	}
	if err := h.validate(); err != nil {
		if h.Geometry.PerLayer != nil && errors.Is(err, quant.ErrUnsupported) {
			return nil, p.refuse(fileHeaderBytes, err)
		}
		c := p.corrupt(fileHeaderBytes, "", nil, nil).(*CorruptError)
		c.Err = fmt.Errorf("%w: %v", quant.ErrCorrupt, err)
		return nil, c
	}
	return h, nil
}

// parseFields reads the fields of a header section and returns their tags.
func (h *Header) parseFields(p place, s []byte) (map[uint16]bool, error) {
	le := binary.LittleEndian
	have := map[uint16]bool{}
	last := -1
	for at := fileHeaderBytes; at < len(s); {
		tag, flags := le.Uint16(s[at:]), le.Uint16(s[at+2:])
		n := int64(le.Uint32(s[at+4:]))
		off := int64(at)
		if tag == tagPadding {
			if flags != 0 || n != 0 || at+fieldHeaderBytes != len(s) {
				return nil, p.corrupt(off, "padding field", nil, nil)
			}
			break
		}
		if int(tag) <= last {
			return nil, p.corrupt(off, "tags ascend", fmt.Sprintf("above %d", last), tag)
		}
		last = int(tag)
		if flags&^fieldFlagRequired != 0 {
			return nil, p.refuse(off+2, fmt.Errorf("flags %#x of field %d: %w", flags, tag,
				quant.ErrUnsupported))
		}
		at += fieldHeaderBytes
		if n > int64(len(s)-at) {
			return nil, p.corrupt(off+4, "field is longer than the header", len(s)-at, n)
		}
		c := &cursor{place: p, b: s[at : at+int(n)], off: int64(at)}
		known, err := h.setField(tag, c)
		if err != nil {
			return nil, err
		}
		if !known && flags&fieldFlagRequired != 0 {
			return nil, p.refuse(off, fmt.Errorf("field %d is required and not known: %w", tag,
				quant.ErrUnsupported))
		}
		have[tag] = true
		for at += int(n); at&7 != 0; at++ {
			if s[at] != 0 { // in bounds: the section ends on 16
				return nil, p.corrupt(int64(at), "padding", 0, s[at])
			}
		}
	}
	return have, nil
}

// setField reads one header field into h. It ignores unknown tags.
func (h *Header) setField(tag uint16, c *cursor) (known bool, err error) {
	cache, rows, vectors := h.Kind == KindCache, h.Kind == KindRows, h.Kind == KindVectors
	wrong := false
	switch tag {
	case tagGeometry:
		wrong = rows || vectors
		h.parseGeometry(c)
	case tagInvFreq:
		wrong = rows || vectors
		h.Geometry.Rope.InvFreq = c.floats(len(c.b) / 4)
	case tagLayers:
		wrong = !cache
		h.Layers = make([]int, len(c.b)/4)
		for i := range h.Layers {
			h.Layers[i] = c.size()
		}
	case tagSpan:
		wrong = h.Kind == KindProfile || vectors
		h.Tokens, h.First = int64(c.uint(8)), int64(c.uint(8))
		h.SegmentTokens, h.Sinks, h.Window = int(c.u32()), int(c.u32()), int(c.u32())
		h.KType, h.VType = quant.DType(c.uint(1)), quant.DType(c.uint(1))
		c.zero(2)
	case tagSeed:
		wrong = h.Kind == KindProfile
		h.Seed = c.uint(8)
	case tagConfig:
		wrong = h.Kind == KindProfile
		h.Config = c.string(len(c.b))
	case tagModel:
		h.Model = c.string(len(c.b))
	case tagMetadata:
		h.parseMetadata(c)
	case tagProfile:
		wrong = h.Kind == KindProfile || vectors
		copy(h.Profile[:], c.bytes(profileBytes))
	case tagQueryEnergy:
		wrong = !cache
		layers, heads := c.u32(), c.u32()
		if int(layers) != len(h.Layers) || int(heads) != h.Geometry.KVHeads {
			c.fail("shape of query energy", fmt.Sprint(len(h.Layers), h.Geometry.KVHeads),
				fmt.Sprint(layers, heads))
		}
		h.QueryEnergy = c.floats(len(c.b) / 4)
	case tagTensors:
		wrong = !rows
		parseTensors(h, c)
	case tagAttention:
		wrong = rows || vectors
		parseAttention(&h.Geometry, c)
	case tagMetric:
		wrong = !cache
		parseMetric(h, c)
	case tagSegments:
		wrong = !cache
		parseSegments(h, c)
	default:
		return false, nil
	}
	if wrong {
		c.fail(fmt.Sprintf("field %d in a file of kind %s", tag, h.Kind), nil, nil)
	}
	return true, c.done()
}

func (h *Header) parseGeometry(c *cursor) {
	g := &h.Geometry
	inv := g.Rope.InvFreq
	*g = quant.Geometry{
		Layers: c.size(), Heads: c.size(), KVHeads: c.size(), HeadDim: c.size(), HeadDimV: c.size(),
	}
	g.Rope.Layout = quant.RopeLayout(c.uint(1))
	c.zero(3)
	g.Rope.RotaryDim = c.size()
	c.zero(4)
	g.Rope.Theta = math.Float64frombits(c.uint(8))
	g.Rope.InvFreq = inv
}

func (h *Header) parseMetadata(c *cursor) {
	n := c.size()
	if n < 1 || n > len(c.b)/8 {
		c.fail("entries of metadata", nil, n)
		return
	}
	h.Metadata = map[string]string{} // grows with the entries present, not with n
	last := ""
	for i := range n {
		kl, vl := c.size(), c.size()
		k := c.string(kl)
		v := c.string(vl)
		if i > 0 && k <= last {
			c.fail("metadata keys ascend", nil, k)
		}
		if c.err != nil {
			return
		}
		h.Metadata[k], last = v, k
	}
}
