// SPDX-License-Identifier: Apache-2.0

package resp

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/tidwall/redcon"
)

// Options are those of New. The zero value of a field is its default.
type Options struct {
	MaxBytes    int64         // of all packed values. Default 1 GiB
	ValueBytes  int64         // of a value. Default 64 MiB
	Arriving    int64         // bytes of values that arrive at once. Default 8 values
	Connections int           // at once. Default 1024
	Idle        time.Duration // how long a client may be silent between commands. Default 10 minutes
	Stall       time.Duration // how long it may be silent in one, or take no answer. Default 30 seconds
	Password    string        // "": nobody is asked for one
	Raw         bool          // values are not packed
	Events      io.Writer     // receives a line of JSON for every key that is stored or removed. nil: nobody does
	Now         func() time.Time
	Version     string
}

// redisVersion is what clients are told: the version whose answers these are.
const redisVersion = "7.0.0"

// mostItems is how many words a command has at most.
const mostItems = 4096

// Server holds values and serves them.
type Server struct {
	o        Options
	values   *values
	arriving *arriving
	began    time.Time
	open     atomic.Int64
	total    atomic.Uint64
	refused  atomic.Uint64
	server   *redcon.Server
}

// New returns a server without values.
func New(o Options) *Server {
	for _, d := range []struct {
		x   *int64
		def int64
	}{{&o.MaxBytes, 1 << 30}, {&o.ValueBytes, 64 << 20}, {(*int64)(&o.Idle), int64(10 * time.Minute)},
		{(*int64)(&o.Stall), int64(30 * time.Second)}} {
		if *d.x == 0 {
			*d.x = d.def
		}
	}
	if o.Arriving == 0 {
		o.Arriving = 8 * o.ValueBytes
	}
	if o.Connections == 0 {
		o.Connections = 1024
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{o: o, values: newValues(o.MaxBytes, o.Raw, o.Now, o.Events), arriving: newArriving(o.Arriving), began: o.Now()}
	s.server = redcon.NewServer("", s.handle, func(c redcon.Conn) bool {
		c.SetContext(&client{known: s.o.Password == "", id: int64(s.total.Add(1))})
		return true
	}, nil)
	s.server.AcceptError = func(error) { time.Sleep(50 * time.Millisecond) } // no file is left for a connection
	return s
}

// Serve serves until the listener is closed, and then ends all connections.
//
// Errors: those of the listener.
func (s *Server) Serve(l net.Listener) error {
	return s.server.Serve(&listener{l, s})
}

// Counts returns what the server counts.
func (s *Server) Counts() Counts {
	c := s.values.counts()
	c.Connections, c.Refused = s.total.Load(), s.refused.Load()
	return c
}

// client is what the server knows of a connection.
type client struct {
	known bool // it has said the password, or need not
	gone  bool // it has not taken an answer
	three bool // it speaks version 3 of the protocol
	id    int64
}

// password reports whether it is right, in the same time whatever it is.
func (s *Server) password(p []byte) bool {
	a, b := sha256.Sum256(p), sha256.Sum256([]byte(s.o.Password))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// info is the answer to INFO.
func (s *Server) info() string {
	c := s.Counts()
	ratio := 1.0
	if c.Packed > 0 {
		ratio = float64(c.Bytes) / float64(c.Packed)
	}
	return fmt.Sprintf("# Server\r\nredis_version:%s\r\nkvist_version:%s\r\nuptime_in_seconds:%d\r\n\r\n"+
		"# Clients\r\nconnected_clients:%d\r\nmaxclients:%d\r\n\r\n"+
		"# Memory\r\nused_memory:%d\r\nmaxmemory:%d\r\nmaxmemory_policy:allkeys-lru\r\nkvist_value_bytes:%d\r\nkvist_packed_bytes:%d\r\nkvist_ratio:%.3f\r\n\r\n"+
		"# Stats\r\ntotal_connections_received:%d\r\nrejected_connections:%d\r\nkeyspace_hits:%d\r\nkeyspace_misses:%d\r\n"+
		"expired_keys:%d\r\nevicted_keys:%d\r\nkvist_sets:%d\r\nkvist_same:%d\r\nkvist_damaged:%d\r\n\r\n"+
		"# Keyspace\r\ndb0:keys=%d,expires=0,avg_ttl=0\r\n",
		redisVersion, s.o.Version, int(s.o.Now().Sub(s.began).Seconds()), s.open.Load(), s.o.Connections, c.Held, s.o.MaxBytes, c.Bytes, c.Packed, ratio,
		c.Connections, c.Refused, c.Gets-c.Misses, c.Misses, c.Expired, c.Evicted, c.Sets, c.Same, c.Damaged, c.Keys)
}
