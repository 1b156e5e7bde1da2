// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// conn is a connection that is only read.
type conn struct {
	net.Conn
	io.Reader
}

func (c conn) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (c conn) Close() error               { return nil }

func TestLines(t *testing.T) {
	for _, c := range []struct {
		name  string
		check Line
		bytes string
		bad   string
	}{
		{"redis", Redis(10, 100), "+OK\r\n$5\r\n$9999\r\n$-1\r\n*2\r\n:1\r\n$10\r\n0123456789\r\n", ""},
		{"redis too long", Redis(10, 100), "$11\r\n", "a string of"},
		{"redis no number", Redis(10, 100), "$1x\r\n", "a string of"},
		{"redis negative", Redis(10, 100), "$-5\r\n", "a string of"},
		{"redis array", Redis(10, 100), "*9999999\r\n", "an array of"},
		{"redis after a payload", Redis(10, 100), "$2\r\n$9\r\n$99999999999\r\n", "a string of"},
		{"nats", NATS(10), "INFO {}\r\nMSG a 1 5\r\nMSG 9\r\nHMSG a 1 r 2 4\r\nabcd\r\nPING\r\n", ""},
		{"nats too long", NATS(10), "MSG a 1 11\r\n", "a message of"},
		{"nats header", NATS(10), "hmsg a 1 6 5\r\n", "a header of"},
		{"endless line", Redis(10, 100), strings.Repeat("x", 2*mostLine), "a line of"},
	} {
		for _, r := range []io.Reader{strings.NewReader(c.bytes), iotest.OneByteReader(strings.NewReader(c.bytes)),
			iotest.HalfReader(strings.NewReader(c.bytes))} {
			g := New(conn{Reader: r}, c.check)
			got, err := io.ReadAll(g)
			if c.bad == "" {
				require.NoError(t, err, c.name)
				require.Equal(t, c.bytes, string(got), c.name)
				continue
			}
			require.ErrorContains(t, err, c.bad, c.name)
			_, again := g.Read(make([]byte, 1))
			require.Equal(t, err, again, "%s: for good", c.name)
		}
	}
}
