// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// BlockInfo tells what a block holds and why it is coded as it is.
type BlockInfo struct {
	// From and To are the positions that the segment of the block covers, To excluded. The rows of a
	// sorted block are from anywhere in it; those of others are Rows tokens from First on.
	From, To, First int64
	Rows            int    // 0 if they were dropped
	State           string // "sinks", "exact": in the window; "open": it left the window; "sorted"
	K, V            string // codings, or "dropped"
	Bytes           int64  // of K, V and positions
	Users           int    // sequences and index entries that share the segment
	Pinned          bool
	Mass            float64 // attention that a recent query gives the block: sum over its rows of p^2
	// PriceK and PriceV are the damage of the next demotion for each byte that it frees: what pressure
	// compares. 0 if there is none.
	PriceK, PriceV float64
}

// Explain describes the blocks of a layer and KV head, in the order of their segments.
//
// Errors: quant.ErrShape for a wrong layer or head, or while a step is under way; quant.ErrClosed.
func (s *Sequence) Explain(layer, kvHead int) ([]BlockInfo, error) {
	const call = "explain"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return nil, err
	}
	g := c.geo
	if layer < 0 || layer >= g.Layers || kvHead < 0 || kvHead >= g.KVHeads {
		return nil, fail(call, s.id, "layer %d of %d, kv_head %d of %d: %w", layer, g.Layers, kvHead, g.KVHeads,
			quant.ErrShape)
	}
	c.pressure.weighHeads()
	c.pressure.owner = s
	var all []BlockInfo
	for _, seg := range s.segs {
		blocks := seg.of(layer, kvHead, g.KVHeads)
		for i := range blocks {
			if b := &blocks[i]; b.at[sideK] != 0 || seg.closed {
				all = append(all, s.explain(seg, b, layer, kvHead, i))
			}
		}
	}
	return all, nil
}

func (s *Sequence) explain(seg *segment, b *block, layer, kvHead, page int) BlockInfo {
	c, p := s.c, &s.c.pressure
	x := BlockInfo{From: seg.lo, To: min(seg.hi(), s.n), First: seg.lo + int64(page*seg.per), State: "sorted",
		K: b.rung[sideK].String(), V: b.rung[sideV].String(), Users: seg.refs, Pinned: seg.pinned > 0,
		Mass: float64(b.mass)}
	if v, ok := c.view(seg, b, layer, kvHead, page, s.n, false); ok {
		x.Rows = int(v.Rows)
	}
	for _, at := range b.slots() {
		if *at != 0 {
			x.Bytes += c.arena.classes[at.class()].bytes
		}
	}
	switch {
	case seg.sinks:
		x.State = "sinks"
	case !seg.closed && x.First >= s.exactFrom():
		x.State = "exact"
	case !seg.closed:
		x.State = "open"
	default:
		head := layer*c.geo.KVHeads + kvHead
		if b.at[sideK] != 0 && p.frees(b, sideK) > 0 {
			x.PriceK = p.priceOf(b, sideK, head, b.rung[sideK])
		}
		if b.at[sideK] != 0 && p.frees(b, sideV) > 0 {
			x.PriceV = p.priceOf(b, sideV, head, b.rung[sideV])
		}
	}
	return x
}

// Rest says that nobody waits for the sequence: it is idle until its next step. Under pressure, the window of an
// idle sequence is weighed and fades like what is older, and other sequences use its memory. Resting alone
// changes nothing.
//
// Errors: quant.ErrShape while a step is under way; quant.ErrClosed.
func (s *Sequence) Rest() error {
	const call = "rest"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return err
	}
	s.resting = true
	return nil
}

// Pin keeps the rows of the sequence as they are: pressure takes from others. Pinning what does not fit
// beside other sequences makes their steps fail with quant.ErrFull.
//
// Errors: quant.ErrShape while it is parked or saved; quant.ErrClosed.
func (s *Sequence) Pin(on bool) error {
	const call = "pin"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(call); err != nil {
		return err
	}
	if s.closed {
		return closed(call, s.id, "sequence")
	}
	if s.busy != "" {
		return fail(call, s.id, "it is being %s: %w", s.busy, quant.ErrShape)
	}
	s.pin(on)
	return nil
}

func (s *Sequence) pin(on bool) {
	if on == s.pinned {
		return
	}
	s.pinned = on
	for _, g := range s.segs {
		if on {
			g.pinned++
		} else {
			g.pinned--
		}
	}
}

// Demote is a hint that the sequence will not be used for a while: it frees about share of the bytes of
// its rows, cheapest damage first, for others to use. What it frees does not come back. Rows that other
// sequences share are left as they are.
//
// Errors: quant.ErrShape for a share outside [0, 1], or while a step is under way; quant.ErrClosed; those
// of the backend.
func (s *Sequence) Demote(share float64) error {
	const call = "demote"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return err
	}
	if !(share >= 0 && share <= 1) {
		return fail(call, s.id, "share %v, want 0 to 1: %w", share, quant.ErrShape)
	}
	goal := int64((1 - share) * float64(s.rowBytes()))
	c.pressure.only = s
	err := c.pressure.demoteUntil(func() int64 { return s.rowBytes() - goal }, maxUnits*len(s.segs))
	c.pressure.only = nil
	return wrap(call, s.id, c.broken(err))
}

// rowBytes returns the bytes of the rows of a sequence.
func (s *Sequence) rowBytes() (n int64) {
	for _, g := range s.segs {
		n += s.c.segmentBytes(g)
	}
	return n
}

// TokenInfo tells how sharply a token is kept, over all layers and heads. Layers whose window has passed
// the token do not count: an exact cache needs it there no longer either.
type TokenInfo struct {
	Bits   float32 // mean of the bits that a value of K and V is stored in, scales included; 0: nothing is left
	Kept   float32 // share of the heads that have its rows
	Weight float32 // mean over the heads of the attention p of recent queries; 0 until its segment closes
}

// Tokens describes every token of the sequence: dst[:0] with Len elements more. It reads the positions of
// all sorted rows, while no step can go on: call it a few times a second at most.
//
// Errors: quant.ErrShape while a step is under way; quant.ErrClosed; those of the backend.
func (s *Sequence) Tokens(dst []TokenInfo) ([]TokenInfo, error) {
	const call = "tokens"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return nil, err
	}
	dst = append(dst[:0], make([]TokenInfo, s.n)...)
	heads := make([]float32, s.n) // that may hold the token
	at := make([]byte, 2*pageTokens)
	for _, seg := range s.segs {
		for layer := range c.geo.Layers {
			lo, hi := max(seg.lo, s.horizon(layer, s.n)), min(seg.hi(), s.n)
			for p := lo; p < hi; p++ {
				heads[p] += float32(c.geo.KVHeads)
			}
			for head := range c.geo.KVHeads {
				for page := range seg.of(layer, head, c.geo.KVHeads) {
					if err := s.addTokens(dst, seg, layer, head, page, lo, at); err != nil {
						return nil, wrap(call, s.id, err)
					}
				}
			}
		}
	}
	for i := range dst {
		n := max(heads[i], 1)
		dst[i].Bits, dst[i].Kept, dst[i].Weight = dst[i].Bits/n, dst[i].Kept/n, dst[i].Weight/n
	}
	return dst, nil
}

// addTokens adds what a block holds of tokens from position from on. at is memory for positions.
func (s *Sequence) addTokens(dst []TokenInfo, seg *segment, layer, head, page int, from int64, at []byte) error {
	c := s.c
	b := &seg.of(layer, head, c.geo.KVHeads)[page]
	v, ok := c.view(seg, b, layer, head, page, s.n, false)
	if !ok {
		return nil
	}
	var bits float32
	for side, dim := range c.sizes.dim {
		if b.at[side] == 0 {
			continue
		}
		coded := 8 * b.rung[side].coding().PackedBytes(pageTokens, dim)
		bits += float32(coded) / float32(pageTokens*(c.sizes.dim[sideK]+c.sizes.dim[sideV]))
	}
	weight := float32(math.Sqrt(float64(b.mass) / float64(v.Rows)))
	if b.pos != 0 {
		if err := v.Pos.Buf.Download(v.Pos.Off, at[:v.Pos.Len]); err != nil {
			return err
		}
	}
	for r := range int64(v.Rows) {
		p := v.Base + r
		if b.pos != 0 {
			p = v.Base + int64(binary.LittleEndian.Uint16(at[2*r:]))
		}
		if p >= from && p < s.n {
			dst[p].Bits += bits
			dst[p].Kept++
			dst[p].Weight += weight
		}
	}
	return nil
}

// Bytes returns what the rows of the sequence take, shared ones included.
func (s *Sequence) Bytes() int64 {
	s.c.mu.RLock()
	defer s.c.mu.RUnlock()
	return s.rowBytes()
}
