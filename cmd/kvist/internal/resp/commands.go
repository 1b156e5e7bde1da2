// SPDX-License-Identifier: Apache-2.0

package resp

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/redcon"

	"github.com/kvist-project/kvist/quant"
)

// command is what a name does, and how many words it has with its name.
type command struct {
	least, most int
	open        bool // also for clients that have not said the password
	do          func(s *Server, c redcon.Conn, args [][]byte)
}

var commands = map[string]command{
	"ping":     {1, 2, false, ping},
	"echo":     {2, 2, false, func(_ *Server, c redcon.Conn, a [][]byte) { c.WriteBulk(a[1]) }},
	"auth":     {2, 3, true, auth},
	"hello":    {1, mostItems, true, hello},
	"quit":     {1, 1, true, quit},
	"select":   {2, 2, false, choose},
	"client":   {2, mostItems, true, func(_ *Server, c redcon.Conn, _ [][]byte) { c.WriteString("OK") }},
	"command":  {1, mostItems, true, func(_ *Server, c redcon.Conn, _ [][]byte) { c.WriteArray(0) }},
	"info":     {1, mostItems, false, func(s *Server, c redcon.Conn, _ [][]byte) { c.WriteBulkString(s.info()) }},
	"dbsize":   {1, 1, false, func(s *Server, c redcon.Conn, _ [][]byte) { c.WriteInt64(s.values.counts().Keys) }},
	"get":      {2, 2, false, get},
	"mget":     {2, mostItems, false, mget},
	"set":      {3, 7, false, set},
	"setnx":    {3, 3, false, setnx},
	"exists":   {2, mostItems, false, exists},
	"del":      {2, mostItems, false, del},
	"unlink":   {2, mostItems, false, del},
	"strlen":   {2, 2, false, strlen},
	"flushdb":  {1, 2, false, flush},
	"flushall": {1, 2, false, flush},
}

// handle answers a command. A pipeline goes on when its client has gone: nothing is done for that.
func (s *Server) handle(c redcon.Conn, cmd redcon.Command) {
	if c.Context().(*client).gone {
		return
	}
	name := strings.ToLower(string(cmd.Args[0][:min(len(cmd.Args[0]), 20)]))
	x, ok := commands[name]
	switch {
	case !ok:
		c.WriteError("ERR unknown command '" + strings.Map(printable, name) + "'")
	case !x.open && !c.Context().(*client).known:
		c.WriteError("NOAUTH Authentication required.")
	case len(cmd.Args) < x.least || len(cmd.Args) > x.most:
		c.WriteError("ERR wrong number of arguments for '" + name + "' command")
	default:
		x.do(s, c, cmd.Args)
	}
}

func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return '?'
	}
	return r
}

func ping(_ *Server, c redcon.Conn, a [][]byte) {
	if len(a) == 2 {
		c.WriteBulk(a[1])
		return
	}
	c.WriteString("PONG")
}

func auth(s *Server, c redcon.Conn, a [][]byte) {
	switch {
	case s.o.Password == "":
		c.WriteError("ERR AUTH called without any password configured")
	case !s.password(a[len(a)-1]) || len(a) == 3 && string(a[1]) != "default":
		c.WriteError("WRONGPASS invalid username-password pair or user is disabled.")
	default:
		c.Context().(*client).known = true
		c.WriteString("OK")
	}
}

// hello chooses the version of the protocol, and may say the password.
func hello(s *Server, c redcon.Conn, a [][]byte) {
	x, version := c.Context().(*client), 2
	if len(a) > 1 {
		v, err := strconv.Atoi(string(a[1]))
		if err != nil || v != 2 && v != 3 {
			c.WriteError("NOPROTO unsupported protocol version")
			return
		}
		version = v
	}
	for i := 2; i < len(a); i++ {
		switch w := strings.ToLower(string(a[i])); {
		case w == "auth" && i+2 < len(a):
			if s.o.Password == "" || string(a[i+1]) != "default" || !s.password(a[i+2]) {
				c.WriteError("WRONGPASS invalid username-password pair or user is disabled.")
				return
			}
			x.known = true
			i += 2
		case w == "setname" && i+1 < len(a):
			i++
		default:
			c.WriteError("ERR Syntax error in HELLO option '" + strings.Map(printable, w) + "'")
			return
		}
	}
	if !x.known {
		c.WriteError("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
		return
	}
	if x.three = version == 3; x.three {
		c.WriteRaw([]byte("%7\r\n"))
	} else {
		c.WriteArray(14)
	}
	for _, w := range []string{"server", "redis", "version", redisVersion, "proto"} {
		c.WriteBulkString(w)
	}
	c.WriteInt(version)
	c.WriteBulkString("id")
	c.WriteInt64(x.id)
	for _, w := range []string{"mode", "standalone", "role", "master", "modules"} {
		c.WriteBulkString(w)
	}
	c.WriteArray(0)
}

// writeNull says that there is nothing, in the client's version of the protocol.
func writeNull(c redcon.Conn) {
	if c.Context().(*client).three {
		c.WriteRaw([]byte("_\r\n"))
		return
	}
	c.WriteNull()
}

func quit(_ *Server, c redcon.Conn, _ [][]byte) {
	c.WriteString("OK")
	_ = c.Close()
}

// choose knows one database.
func choose(_ *Server, c redcon.Conn, a [][]byte) {
	if string(a[1]) != "0" {
		c.WriteError("ERR DB index is out of range")
		return
	}
	c.WriteString("OK")
}

// writeValue sends a value at once: a pipeline of answers is not collected in memory.
func writeValue(c redcon.Conn, data []byte) {
	if data == nil {
		writeNull(c)
		return
	}
	c.WriteBulk(data)
	if len(data) >= largeBytes && redcon.BaseWriter(c).Flush() != nil {
		c.Context().(*client).gone = true
		_ = c.Close()
	}
}

func get(s *Server, c redcon.Conn, a [][]byte) { writeValue(c, s.values.get(string(a[1]))) }

func mget(s *Server, c redcon.Conn, a [][]byte) {
	c.WriteArray(len(a) - 1)
	for _, k := range a[1:] {
		writeValue(c, s.values.get(string(k)))
	}
}

// expiry reads what follows the value in SET.
func (s *Server) expiry(words [][]byte) (expires time.Time, when int, err error) {
	for i := 0; i < len(words); i++ {
		switch w := strings.ToLower(string(words[i])); w {
		case "nx":
			when = ifAbsent
		case "xx":
			when = ifPresent
		case "ex", "px":
			if i++; i == len(words) {
				return expires, when, errSyntax
			}
			n, err := strconv.ParseInt(string(words[i]), 10, 64)
			unit := time.Second
			if w == "px" {
				unit = time.Millisecond
			}
			if err != nil || n <= 0 || n > math.MaxInt64/int64(unit) {
				return expires, when, errExpire
			}
			expires = s.o.Now().Add(time.Duration(n) * unit)
		default:
			return expires, when, errSyntax
		}
	}
	return expires, when, nil
}

var (
	errSyntax = errors.New("ERR syntax error")
	errExpire = errors.New("ERR invalid expire time in 'set' command")
)

func set(s *Server, c redcon.Conn, a [][]byte) {
	expires, when, err := s.expiry(a[3:])
	if err != nil {
		c.WriteError(err.Error())
		return
	}
	ok, err := s.values.set(string(a[1]), a[2], expires, when)
	switch {
	case errors.Is(err, quant.ErrTooLarge):
		c.WriteError("OOM " + err.Error())
	case err != nil:
		c.WriteError("ERR " + err.Error())
	case !ok:
		writeNull(c)
	default:
		c.WriteString("OK")
	}
}

func setnx(s *Server, c redcon.Conn, a [][]byte) {
	ok, err := s.values.set(string(a[1]), a[2], time.Time{}, ifAbsent)
	if err != nil {
		c.WriteError("OOM " + err.Error())
		return
	}
	c.WriteInt(map[bool]int{true: 1}[ok])
}

func exists(s *Server, c redcon.Conn, a [][]byte) {
	n := 0
	for _, k := range a[1:] {
		if _, ok := s.values.size(string(k)); ok {
			n++
		}
	}
	c.WriteInt(n)
}

func del(s *Server, c redcon.Conn, a [][]byte) {
	n := 0
	for _, k := range a[1:] {
		if s.values.delete(string(k)) {
			n++
		}
	}
	c.WriteInt(n)
}

func strlen(s *Server, c redcon.Conn, a [][]byte) {
	n, _ := s.values.size(string(a[1]))
	c.WriteInt64(n)
}

func flush(s *Server, c redcon.Conn, _ [][]byte) {
	s.values.clear()
	c.WriteString("OK")
}
