// SPDX-License-Identifier: Apache-2.0

package resp

import (
	"net"
	"sync"
	"time"

	"github.com/kvist-project/kvist/cmd/kvist/internal/guard"
)

// largeBytes is the size from which on a value counts among those that arrive.
const largeBytes = 64 << 10

// arriving bounds the bytes of values that arrive at once.
type arriving struct {
	mu   sync.Mutex
	room *sync.Cond
	most int64
	held int64
}

func newArriving(most int64) *arriving {
	a := &arriving{most: most}
	a.room = sync.NewCond(&a.mu)
	return a
}

// take waits for n bytes; not if the caller holds some, as it would wait for itself.
func (a *arriving) take(n int64, holds bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !holds && a.held > 0 && a.held+n > a.most {
		a.room.Wait()
	}
	a.held += n
}

func (a *arriving) give(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held -= n
	a.room.Broadcast()
}

// conn is a connection of a client with the time and the bytes of its commands bounded.
type conn struct {
	net.Conn
	s    *Server
	held int64
	mid  bool // in the middle of a command
	once sync.Once
	mu   sync.Mutex // of held: Close is called by others
}

// listener makes conns of what it accepts, and refuses those that are too many.
type listener struct {
	net.Listener
	s *Server
}

// Accept is that of net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.s.open.Add(1) <= int64(l.s.o.Connections) {
			x := &conn{Conn: c, s: l.s}
			return guard.New(x, x.line), nil
		}
		l.s.open.Add(-1)
		l.s.refused.Add(1)
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.Write([]byte("-ERR max number of clients reached\r\n"))
		_ = c.Close()
	}
}

// line checks a line of a client. What is refused is told to the client before the connection ends.
func (c *conn) line(line []byte) (int64, error) {
	follow, err := guard.Redis(c.s.o.ValueBytes, mostItems)(line)
	if err != nil {
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.Conn.Write([]byte("-ERR " + err.Error() + "\r\n"))
		return 0, err
	}
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	switch {
	case len(line) > 0 && line[0] == '*': // a new command: the one before has been read
		c.release()
	case follow >= largeBytes:
		c.s.arriving.take(follow, held > 0)
		c.mu.Lock()
		c.held += follow
		c.mu.Unlock()
	}
	c.mid = true
	return follow, nil
}

func (c *conn) release() {
	c.mu.Lock()
	held := c.held
	c.held = 0
	c.mu.Unlock()
	if held > 0 {
		c.s.arriving.give(held)
	}
}

// Read is that of net.Conn. Between commands a client may be idle; in the middle of one it must go on.
func (c *conn) Read(p []byte) (int, error) {
	wait := c.s.o.Idle
	if c.mid {
		wait = c.s.o.Stall
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	return c.Conn.Read(p)
}

// Write is that of net.Conn: a piece at a time, each of which the client must take in time.
func (c *conn) Write(p []byte) (n int, err error) {
	c.mid = false // an answer: the command was read
	c.release()
	for len(p) > 0 && err == nil {
		var k int
		_ = c.SetWriteDeadline(time.Now().Add(c.s.o.Stall))
		k, err = c.Conn.Write(p[:min(len(p), 1<<20)])
		n += k
		p = p[k:]
	}
	return n, err
}

// Close is that of net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.release()
		c.s.open.Add(-1)
	})
	return c.Conn.Close()
}
