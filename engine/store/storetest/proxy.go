// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Trouble is what a Proxy does to what passes it. The shares are of pieces of up to 16 KiB, in both directions.
type Trouble struct {
	Delay   time.Duration // before each piece
	Cut     float64       // share of pieces after half of which the connection ends
	Corrupt float64       // share of pieces of which a bit is flipped
	Silent  bool          // nothing passes, and nothing ends
	Dead    bool          // connections are ended, and new ones at once
}

// Proxy stands between a client and a server.
type Proxy struct {
	l      net.Listener
	target string

	mu       sync.Mutex
	rng      *rand.Rand
	trouble  Trouble
	conns    map[net.Conn]bool
	troubled int
}

// NewProxy returns a proxy to a server on this machine, without trouble.
func NewProxy(t *testing.T, target string, seed uint64) *Proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{l: l, target: target, rng: rand.New(rand.NewPCG(seed, 2)), conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		_ = l.Close()
		p.Set(Trouble{Dead: true})
	})
	go p.serve()
	return p
}

// Addr returns where clients connect to.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Set changes the trouble.
func (p *Proxy) Set(t Trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = t
	if t.Dead {
		for c := range p.conns {
			_ = c.Close()
		}
		clear(p.conns)
	}
}

// Troubled returns how many pieces were cut or corrupted.
func (p *Proxy) Troubled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.troubled
}

func (p *Proxy) serve() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		go func() {
			out, err := net.Dial("tcp", p.target)
			if err != nil || !p.keep(in, out) {
				_ = in.Close()
				if err == nil {
					_ = out.Close()
				}
				return
			}
			go p.copy(in, out)
			p.copy(out, in)
		}()
	}
}

// keep remembers connections, so that they can be ended.
func (p *Proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trouble.Dead {
		return false
	}
	for _, c := range conns {
		p.conns[c] = true
	}
	return true
}

// copy carries what comes from a connection to another one, and ends both.
func (p *Proxy) copy(to, from net.Conn) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, to)
		delete(p.conns, from)
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			cut, silent, delay := p.fate(buf[:n])
			time.Sleep(delay)
			if silent {
				continue
			}
			if cut {
				_, _ = to.Write(buf[:n/2])
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// fate decides what happens to a piece, and does what is done to its bytes.
func (p *Proxy) fate(piece []byte) (cut, silent bool, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.trouble
	if p.rng.Float64() < t.Corrupt {
		piece[p.rng.IntN(len(piece))] ^= 1 << p.rng.IntN(8)
		p.troubled++
	}
	if cut = p.rng.Float64() < t.Cut; cut {
		p.troubled++
	}
	return cut, t.Silent, t.Delay
}
