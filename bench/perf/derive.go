// SPDX-License-Identifier: Apache-2.0

package perf

// What derived figures are about.
const (
	ManyTokens   = 128 << 10 // a long context
	Conversation = 8 << 10   // tokens of a conversation
	SpeedContext = 8 << 10   // tokens behind which speeds are compared
)

// BitsPerValue is the stored bits of a value, all bytes counted; 0 where the result is not about values.
func (r *Result) BitsPerValue() float64 {
	if r.Plain == 0 {
		return 0
	}
	return 16 * r.Bytes / r.Plain
}

// Time is what a unit takes: by the device's clock where there is one, else by the wall's.
func (r *Result) Time() Spread {
	if r.DeviceNS != nil {
		return *r.DeviceNS
	}
	return r.NS
}

// Cost is the time that other work of the machine disturbs least: the device's, or else the processor's.
func (r *Result) Cost() float64 {
	if r.DeviceNS == nil && r.CPUNS.Median > 0 {
		return r.CPUNS.Median
	}
	return r.Time().Median
}

// TokensPerSecond is how many tokens a second a model decodes behind a context, if it did nothing but attend.
func TokensPerSecond(m Model, r *Result, tokens int64) float64 {
	t := r.Time().Median * float64(m.Pairs(tokens))
	if t == 0 {
		return 0
	}
	return 1e9 / t
}

// CacheBytes is what the cache of a model takes for so many tokens.
func CacheBytes(m Model, r *Result, tokens int64) float64 { return r.Bytes * float64(m.Pairs(tokens)) }

// Conversations is how many conversations fit in some memory, if nothing else did.
func Conversations(m Model, r *Result, memory int64) int64 {
	b := CacheBytes(m, r, Conversation)
	if b == 0 {
		return 0
	}
	return int64(float64(memory) / b)
}

// Share is the rate of a result over that at which as many threads read memory, both for processor time, which
// other work of the machine disturbs least; 0 if that was not measured, or a device did the work.
func (r *Record) Share(x *Result) float64 {
	read := r.Find(ReadName(x.Threads))
	if read == nil || x.DeviceNS != nil || read.NS.Median == 0 || read.Bytes == 0 {
		return 0
	}
	if x.CPUNS.Median > 0 && read.CPUNS.Median > 0 {
		return x.Bytes / x.CPUNS.Median / (read.Bytes / read.CPUNS.Median)
	}
	return x.GBps() / read.GBps()
}
