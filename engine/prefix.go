// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
	"unsafe"
)

// prefixTokens is the number of tokens between two keys.
const prefixTokens = 64

// key stands for all tokens up to a multiple of prefixTokens. It is an HMAC-SHA256 of them, of the model and
// the profile, under the salt of those who may share: without the salt nobody can tell whether a prompt
// is in the cache, and two salts never share.
type key [sha256.Size]byte

// prefix is a closed segment in the index, with the one before it. The index keeps it after the
// sequences that made it have gone, until the memory is wanted.
type prefix struct {
	parent   *prefix
	sinks    *segment // before the first segment; nil for others
	seg      *segment
	keys     []key // those of its tokens that no other node has
	before   key   // the one before them
	last     key   // of its tokens, whoever has it
	after    key   // the one after, of the sequence that made it; zero if that was not known
	children int
	used     uint64 // clock of its last use
	at       time.Time
}

// keyBytes is what a key takes in a node and in the map.
const keyBytes = int64(2*sha256.Size + 64)

const prefixBytes = int64(unsafe.Sizeof(prefix{})) + 16

// chain are the keys of a sequence. Its zero value follows no tokens.
type chain struct {
	follows bool
	root    key
	keys    []key
	rest    [prefixTokens]int32 // tokens after the last key
	n       int
	node    *prefix // of the last segment of the sequence that is in the index
}

// rootKey returns the key of no tokens.
func (c *Config) rootKey(salt []byte) (k key) {
	h := hmac.New(sha256.New, salt)
	for _, s := range []string{"kvist prefix 1", c.Model, c.Profile} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	h.Sum(k[:0])
	return k
}

// next returns the key after 64 more tokens.
func (root *key) next(last key, tokens []int32) (k key) {
	h := hmac.New(sha256.New, root[:])
	var buf [4 * prefixTokens]byte
	for i, t := range tokens {
		binary.LittleEndian.PutUint32(buf[4*i:], uint32(t))
	}
	h.Write(last[:])
	h.Write(buf[:])
	h.Sum(k[:0])
	return k
}

// last returns the key of all tokens but the rest.
func (x *chain) last() key {
	if len(x.keys) == 0 {
		return x.root
	}
	return x.keys[len(x.keys)-1]
}

// MatchPrefix returns a new sequence that holds as many first tokens as the cache knows under the salt: a
// multiple of 64, and less than len(tokens), because a model needs one token to go on from. Len tells how
// many; the caller adds the others, with their ids (Row.IDs), so that later sequences can share them too.
//
// Tokens are shared when their segment is closed, whole segments with their bytes charged once. Sequences
// with different salts share nothing.
//
// No row of a token that is found is missing, in any layer and head: a segment that loses a row under
// pressure is found no more, nor are those after it. Rows that are found may be coarse.
//
// Errors: quant.ErrFull if the budget holds no further sequence; quant.ErrClosed; those of the backend.
func (c *Cache) MatchPrefix(salt []byte, tokens []int32) (*Sequence, error) {
	const call = "match prefix"
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(call); err != nil {
		return nil, err
	}
	c.stats.PrefixQueries += uint64(len(tokens))
	x, found := c.lookup(salt, tokens)
	x.keys = x.keys[:found.tokens/prefixTokens]
	c.index.use(found.node)
	defer found.node.keep()() // what follows may make room
	s, err := c.newSequence()
	if err != nil {
		return nil, wrap(call, 0, err)
	}
	if err = s.follow(x); err == nil {
		err = s.resumeAt(found)
	}
	if err != nil {
		return nil, s.undo(call, s.id, err)
	}
	c.stats.PrefixHits += uint64(s.n)
	return s, nil
}

// lookup returns the keys of all tokens but the last few, and where the index ends that has the first ones.
func (c *Cache) lookup(salt []byte, tokens []int32) (x chain, found mark) {
	x = chain{follows: true, root: c.cfg.rootKey(salt)}
	for last, n := x.root, 0; n+prefixTokens < len(tokens); n += prefixTokens {
		last = x.root.next(last, tokens[n:n+prefixTokens])
		if p, ok := c.index.at[last]; ok { // and those before it, which are of the same sequence
			found = p
		}
		x.keys = append(x.keys, last)
	}
	return x, found
}

// follow gives the sequence a copy of a chain.
func (s *Sequence) follow(x chain) error {
	c := s.c
	keys := x.keys
	x.keys = nil
	if err := c.pressure.makeRoom(context.Background(), nil, int64(slack(len(keys)+1))*sha256.Size); err != nil {
		return err
	}
	var ok bool
	if x.keys, ok = grown(&c.led, forIndex, x.keys, len(keys)); !ok {
		return errNoRoom
	}
	x.keys = append(x.keys, keys...)
	s.chain = x
	return nil
}

// adoptPath appends the segments of a node and of those before it to an empty sequence.
func (s *Sequence) adoptPath(end *prefix) error {
	var path []*prefix
	for n := end; n != nil; n = n.parent {
		path = append(path, n)
	}
	defer end.keep()() // adopting may make room
	for i := len(path) - 1; i >= 0; i-- {
		if g := path[i].sinks; g != nil {
			if err := s.adopt(g, false); err != nil {
				return err
			}
		}
		if err := s.adopt(path[i].seg, false); err != nil {
			return err
		}
	}
	return nil
}

// resumeAt makes an empty sequence one that holds the tokens of a place in the index.
func (s *Sequence) resumeAt(p mark) error {
	if err := s.adoptPath(p.node); err != nil {
		return err
	}
	if p.node == nil {
		return nil
	}
	s.n, s.left, s.stale, s.chain.node = p.node.seg.hi(), p.node.seg.hi(), 1, p.node
	if p.tokens < s.n {
		if err := s.truncate(p.tokens); err != nil {
			return err
		}
		s.chain.node = p.node.parent
	}
	s.high = s.n
	return nil
}

// extend adds committed tokens to the keys of a sequence. Without their ids it follows no longer.
func (s *Sequence) extend(ids []int32, n int) {
	x := &s.chain
	if !x.follows || n == 0 {
		return
	}
	if ids == nil {
		s.unfollow()
		return
	}
	for _, id := range ids[:n] {
		x.rest[x.n] = id
		if x.n++; x.n < prefixTokens {
			continue
		}
		var ok bool
		k := x.root.next(x.last(), x.rest[:])
		if x.keys, ok = grown(&s.c.led, forIndex, x.keys, len(x.keys)+1); !ok {
			s.unfollow()
			return
		}
		x.keys, x.n = append(x.keys, k), 0
	}
}

func (s *Sequence) unfollow() {
	s.chain.keys = dropped(&s.c.led, forIndex, s.chain.keys)
	s.chain = chain{}
}

// rewindTo brings the keys back to n tokens.
func (x *chain) rewindTo(n int64) (ok bool) {
	whole := int64(len(x.keys)) * prefixTokens
	switch {
	case n >= whole:
		x.n = int(n - whole)
	case n%prefixTokens == 0:
		x.keys, x.n = x.keys[:n/prefixTokens], 0
	default:
		return false // the ids of the tokens after the last key are not known
	}
	for x.node != nil && x.node.seg.hi() > n {
		x.node = x.node.parent
	}
	return true
}

// enlist puts the closed segments of a sequence that follows its tokens into the index. It ends at the
// first one that has lost rows: what comes after it cannot be found without it.
func (s *Sequence) enlist() {
	c, x := s.c, &s.chain
	for i := 0; i < len(s.segs) && x.follows; i++ {
		g := s.segs[i]
		if !g.closed || g.sinks || x.node != nil && g.hi() <= x.node.seg.hi() {
			continue
		}
		if !g.complete() || g.lo != s.listedTo() {
			s.unfollow()
			return
		}
		n := &prefix{parent: x.node, seg: g, last: x.upTo(g.hi())}
		if next := int(g.hi() / prefixTokens); next < len(x.keys) {
			n.after = x.keys[next]
		}
		if p, ok := c.index.at[n.last]; ok && p.node.same(n) { // another sequence was first
			x.node = p.node
			continue
		}
		first, end := int(g.lo/prefixTokens), int(g.hi()/prefixTokens)
		for i := end; i > first; i-- { // a text that parts from another one within the segment finds it by the others
			if _, ok := c.index.at[x.keys[i-1]]; ok {
				first = i
			}
		}
		if first > 0 {
			n.before = x.keys[first-1]
		}
		n.keys = append([]key(nil), x.keys[first:end]...) // a short segment may have none: it is found by those after it
		if !c.led.take(forIndex, prefixBytes+int64(len(n.keys))*keyBytes) {
			return
		}
		if i == 1 && s.segs[0].sinks {
			n.sinks = s.segs[0]
			n.sinks.refs++
			n.sinks.listed++
		}
		g.refs++
		g.listed++
		c.index.add(n, int64(first))
		emit(&c.cfg, Stored, n)
		x.node = n
	}
}

// upTo returns the last key of the first tokens: zero if there are less than 64.
func (x *chain) upTo(tokens int64) (k key) {
	if n := int(tokens / prefixTokens); n > 0 && n <= len(x.keys) {
		k = x.keys[n-1]
	}
	return k
}

// listedTo returns the position behind the tokens of the sequence that are in the index.
func (s *Sequence) listedTo() int64 {
	if s.chain.node == nil {
		return int64(s.c.cfg.Sinks)
	}
	return s.chain.node.seg.hi()
}
