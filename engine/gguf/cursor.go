// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// cursor reads the front of the file in order and knows where it stands.
type cursor struct {
	r       *bufio.Reader
	off     int64
	end     int64 // no byte at or beyond it is read
	cut     bool  // end is a limit, not the end of the file
	file    string
	section string
	lim     Limits
}

// need checks that n more bytes exist before anything is allocated for them.
func (c *cursor) need(n int64) error {
	if n <= c.end-c.off {
		return nil
	}
	if c.cut {
		return tooLargef("the metadata does not fit in %d bytes", c.end)
	}
	return corruptf("%d bytes are missing at the end of the file", n-(c.end-c.off))
}

func (c *cursor) bytes(b []byte) error {
	if err := c.need(int64(len(b))); err != nil {
		return err
	}
	n, err := io.ReadFull(c.r, b)
	c.off += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corruptf("the file is shorter than its stated size")
	}
	return err
}

func (c *cursor) u32() (uint32, error) {
	var b [4]byte
	err := c.bytes(b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

func (c *cursor) u64() (uint64, error) {
	var b [8]byte
	err := c.bytes(b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// count reads a number of things that take at least each bytes in the rest of the file.
func (c *cursor) count(what string, limit int, each int64) (int, error) {
	u, err := c.u64()
	if err != nil {
		return 0, err
	}
	if u > uint64(limit) {
		return 0, tooLargef("%d %s, the limit is %d", u, what, limit)
	}
	if err := c.need(int64(u) * each); err != nil {
		return 0, fmt.Errorf("%d %s: %w", u, what, err)
	}
	return int(u), nil
}

func (c *cursor) str(limit int) (string, error) {
	n, err := c.count("bytes of a string", limit, 1)
	if err != nil {
		return "", err
	}
	b := make([]byte, n)
	err = c.bytes(b)
	return string(b), err
}

func (c *cursor) value(t ValueType, depth int) (Value, error) {
	v := Value{Type: t}
	switch {
	case t == TypeString:
		s, err := c.str(c.lim.MaxStringBytes)
		v.strs = []string{s}
		return v, err
	case t == TypeArray:
		return c.array(depth)
	case t.size() > 0:
		v.raw = make([]byte, t.size())
		return v, c.bytes(v.raw)
	}
	return v, corruptf("value type %d is not known", uint32(t))
}

func (c *cursor) array(depth int) (Value, error) {
	v := Value{Type: TypeArray}
	if depth >= c.lim.MaxNesting {
		return v, tooLargef("arrays within arrays, the limit is %d deep", c.lim.MaxNesting)
	}
	e, err := c.u32()
	if err != nil {
		return v, err
	}
	v.Elem = ValueType(e)
	if v.Elem.minStored() == 0 {
		return v, corruptf("element type %d is not known", e)
	}
	n, err := c.count("elements of an array", c.lim.MaxArrayLen, v.Elem.minStored())
	if err != nil {
		return v, err
	}
	switch v.Elem {
	case TypeString:
		v.strs = make([]string, n)
		for i := range v.strs {
			if v.strs[i], err = c.str(c.lim.MaxStringBytes); err != nil {
				return v, err
			}
		}
	case TypeArray:
		for range n { // appended, since a Value is larger than an empty array in the file
			e, err := c.array(depth + 1)
			if err != nil {
				return v, err
			}
			v.nested = append(v.nested, e)
		}
	default:
		v.raw = make([]byte, n*v.Elem.size())
		err = c.bytes(v.raw)
	}
	return v, err
}
