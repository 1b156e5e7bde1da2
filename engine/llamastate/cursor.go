// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// cursor reads a state in order. It keeps every byte that is no element of a tensor: the frame.
type cursor struct {
	src   io.ReaderAt
	buf   *bufio.Reader
	size  int64
	off   int64 // in the file
	frame []byte
	// bare says that the file is a frame: elements are left out, and so are tokens if tokensApart.
	bare, tokensApart bool
}

func newCursor(src io.ReaderAt, size int64) *cursor {
	return &cursor{src: src, buf: bufio.NewReaderSize(io.NewSectionReader(src, 0, size), 1<<15), size: size}
}

// need checks that n more bytes exist, before anything is allocated for them.
func (c *cursor) need(n int64) error {
	if n > c.size-c.off {
		return corruptf("%d bytes are missing at the end", n-(c.size-c.off))
	}
	return nil
}

// take reads n bytes of the frame. The result is valid until the next call.
func (c *cursor) take(n int) ([]byte, error) {
	if err := c.need(int64(n)); err != nil {
		return nil, err
	}
	at := len(c.frame)
	c.frame = append(c.frame, make([]byte, n)...)
	k, err := io.ReadFull(c.buf, c.frame[at:])
	c.off += int64(k)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = corruptf("shorter than its stated size")
	}
	return c.frame[at:], err
}

func (c *cursor) u32() (uint32, error) {
	b, err := c.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (c *cursor) u64() (uint64, error) {
	b, err := c.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// count reads a number in [least, most].
func (c *cursor) count(what string, least, most int) (int, error) {
	v, err := c.u32()
	if err == nil && (v < uint32(least) || uint64(v) > uint64(most)) {
		err = corruptf("%s is %d, want %d to %d", what, v, least, most)
	}
	return int(v), err
}

// skip passes over n bytes of elements and returns where they begin.
func (c *cursor) skip(n int64) (int64, error) {
	at := c.off
	if c.bare || n == 0 {
		return at, nil
	}
	if err := c.need(n); err != nil {
		return at, err
	}
	c.off += n
	if n <= int64(c.buf.Buffered()) {
		_, err := c.buf.Discard(int(n))
		return at, err
	}
	c.buf.Reset(io.NewSectionReader(c.src, c.off, c.size-c.off))
	return at, nil
}
