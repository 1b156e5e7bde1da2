// SPDX-License-Identifier: Apache-2.0

// Package guard bounds what one side of a connection can make the other allocate. Readers of line protocols take the
// length that a line announces and allocate it. A damaged digit is enough for gigabytes. A guarded connection reads along
// and fails at such a line before the reader sees it.
package guard

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/kvist-project/kvist/quant"
)

// Line returns how many bytes follow a line before the next one, its own end not counted. An error ends the
// connection.
type Line func(line []byte) (follow int64, err error)

const mostLine = 64 << 10

// Conn is a connection of which lines are checked as they are read.
type Conn struct {
	net.Conn
	check Line
	line  []byte // the line so far
	skip  int64  // bytes of a payload to come
	err   error
}

// New guards a connection.
func New(c net.Conn, check Line) *Conn { return &Conn{Conn: c, check: check} }

// Read is that of net.Conn. It returns what was read up to a line that the check refuses, and then the error.
func (c *Conn) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.Conn.Read(p)
	for at := 0; at < n; {
		if c.skip > 0 {
			k := min(c.skip, int64(n-at))
			c.skip -= k
			at += int(k)
			continue
		}
		end := bytes.IndexByte(p[at:n], '\n')
		if end < 0 {
			c.line = append(c.line, p[at:n]...)
			if len(c.line) > mostLine {
				return 0, c.refuse(fmt.Errorf("a line of more than %d bytes: %w", mostLine, quant.ErrTooLarge))
			}
			break
		}
		c.line = append(c.line, p[at:at+end]...)
		follow, bad := c.check(bytes.TrimSuffix(c.line, []byte("\r")))
		if bad != nil {
			return 0, c.refuse(bad)
		}
		at += end + 1
		c.line, c.skip = c.line[:0], follow
	}
	return n, err
}

// refuse ends the connection. The category is left out: the next try has a new connection.
func (c *Conn) refuse(err error) error {
	c.err = errors.Join(errors.New("kvist: the other side sends "+err.Error()), c.Close())
	return c.err
}

// number reads a decimal number of up to most.
func number(what string, digits []byte, most int64) (int64, error) {
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || n < -1 || n > most {
		return 0, fmt.Errorf("%s %.40q, want up to %d: %w", what, digits, most, quant.ErrTooLarge)
	}
	return n, nil
}

// Redis checks RESP 2 and 3: strings of up to most bytes, arrays of up to so many items.
func Redis(most, items int64) Line {
	return func(line []byte) (int64, error) {
		if len(line) == 0 {
			return 0, nil
		}
		switch line[0] {
		case '$', '=', '!':
			n, err := number("a string of", line[1:], most)
			if err != nil || n < 0 {
				return 0, err
			}
			return n + 2, nil
		case '*', '%', '~', '>', '|':
			_, err := number("an array of", line[1:], items)
			return 0, err
		}
		return 0, nil
	}
}

// NATS checks messages of up to most bytes.
func NATS(most int64) Line {
	return func(line []byte) (int64, error) {
		verb, rest, _ := bytes.Cut(line, []byte(" "))
		if verb = bytes.ToUpper(verb); string(verb) != "MSG" && string(verb) != "HMSG" {
			return 0, nil
		}
		fields := bytes.Fields(rest)
		if len(fields) == 0 {
			return 0, nil // the client refuses it
		}
		n, err := number("a message of", fields[len(fields)-1], most)
		if err != nil || n < 0 {
			return 0, err
		}
		if len(fields) > 1 && string(verb) == "HMSG" {
			if _, err := number("a header of", fields[len(fields)-2], n); err != nil {
				return 0, err
			}
		}
		return n + 2, nil
	}
}
