// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// tensorsValue returns the field that describes tensors.
func tensorsValue(h *Header) []byte {
	le := binary.LittleEndian
	v := le.AppendUint32(nil, uint32(len(h.Tensors)))
	v = append(v, byte(slices.Index(origins, h.Origin)), 0, 0, 0)
	for i := range h.Tensors {
		t := &h.Tensors[i]
		v = le.AppendUint16(v, uint16(len(t.Name)))
		v = append(v, byte(len(t.DType)), byte(len(t.Shape)))
		for _, d := range t.Shape {
			v = le.AppendUint64(v, uint64(d))
		}
		v = append(append(v, t.Name...), t.DType...)
	}
	return v
}

func parseTensors(h *Header, c *cursor) {
	n := c.size()
	code := c.uint(1)
	if h.Origin = fmt.Sprint(code); code < uint64(len(origins)) {
		h.Origin = origins[code]
	}
	c.zero(3)
	if n > min(maxStored, len(c.b)/12) { // an entry takes 12 bytes or more
		c.fail("tensors", nil, n)
		return
	}
	h.Tensors = make([]Tensor, n)
	for i := range h.Tensors {
		nameLen, dtypeLen, dims := int(c.uint(2)), int(c.uint(1)), int(c.uint(1))
		if dims > maxTensorDims {
			c.fail("dimensions of a tensor", maxTensorDims, dims)
		}
		if c.err != nil {
			return
		}
		t := &h.Tensors[i]
		t.Shape = make([]int64, dims)
		for d := range t.Shape {
			t.Shape[d] = int64(c.uint(8))
		}
		t.Name, t.DType = c.string(nameLen), c.string(dtypeLen)
	}
}

// segmentsValue returns the field that gives the tokens of each segment.
func segmentsValue(h *Header) (v []byte) {
	for s := range h.Starts {
		v = binary.LittleEndian.AppendUint32(v, uint32(h.SegmentLen(0, s)))
	}
	return v
}

func parseSegments(h *Header, c *cursor) {
	h.Starts = make([]int64, len(c.b)/4)
	from := int64(0)
	for i := range h.Starts {
		h.Starts[i] = from
		from += int64(c.u32())
	}
	if from != h.Tokens {
		c.fail("tokens of all segments", h.Tokens, from)
	}
}
