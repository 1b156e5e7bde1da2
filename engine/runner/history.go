// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"slices"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/model"
)

// Fading tells when a token last lost detail.
type Fading struct {
	At     int32   // tokens of the conversation when that was seen; 0: it never did
	Before float32 // bits that a value of it had until then
}

// Moment is the size of a conversation at one time of its life.
type Moment struct {
	Tokens int
	Bytes  int64 // that its rows take
	Exact  int64 // what they would take in binary16
}

// mostMoments bounds the moments that are kept of a conversation: every other one goes when there are more.
const mostMoments = 256

// history is what was seen of a conversation over time.
type history struct {
	due     int // tokens from which it is tended again, whoever looks at it in between
	info    []engine.TokenInfo
	spare   []engine.TokenInfo
	fading  []Fading
	moments []Moment
	stride  int // tokens from moment to moment
}

// lookEvery is the number of tokens after which a conversation is looked at again; longer ones are
// looked at after a sixteenth of their tokens, so that looking stays a small part of the work.
const lookEvery = 32

// look notes what is left of the tokens of a conversation.
func (c *conversation) look(m *model.Model) (err error) {
	h := &c.seen
	n := len(c.tokens)
	if h.spare, err = c.seq.Tokens(h.spare); err != nil {
		return err
	}
	h.fading = slices.Grow(h.fading[:min(n, len(h.fading))], n)[:n]
	for i := range h.spare {
		switch {
		case i >= len(h.info):
			h.fading[i] = Fading{}
		case h.spare[i].Bits < h.info[i].Bits-0.01:
			h.fading[i] = Fading{At: int32(n), Before: h.info[i].Bits}
		}
	}
	h.info, h.spare = h.spare, h.info
	now := Moment{Tokens: n, Bytes: c.seq.Bytes(), Exact: ExactBytes(m, n)}
	if last := len(h.moments) - 1; last >= 0 && n < h.moments[last].Tokens+h.stride {
		h.moments[last] = now
		return nil
	}
	h.moments = append(h.moments, now)
	if len(h.moments) > mostMoments {
		for i := range mostMoments / 2 {
			h.moments[i] = h.moments[2*i+1]
		}
		h.moments = h.moments[:mostMoments/2]
		h.stride = 2 * max(h.stride, lookEvery)
	}
	return nil
}
