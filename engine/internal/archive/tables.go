// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Scales are integers in eighths of an octave: scale8 s means 2^(s/8). The class of a coefficient
// is its expected deviation over its step, in quarter octaves.

const (
	numClasses = 23  // classes 0..22: a deviation of 2^-2.5 to 2^3 steps
	classBase  = -20 // scale8 of class 0
	classTop   = classBase + 2*(numClasses-1)
	deadScale  = -30 // a component whose deviation lies below 2^(-30/8) of the step is not coded
	maxLevel   = 31  // the largest magnitude with a symbol of its own
	numSymbols = 2*maxLevel + 2
	symEscape  = numSymbols - 1
	maxShift   = 20
	groupSize  = 8 // coefficients between corrections by rowState
	maxRecon   = 3 // magnitudes with a point of reconstruction of their own; more share the last
)

// Tables are the statistics of the coder, by class: the frequencies of magnitudes, and what is
// expected of them. They belong to a profile; DefaultTables serves without one.
type Tables struct {
	// Freq is the frequency of magnitude m, in 1/4096. For m > 0 it is that of both signs together,
	// and so even. The last is that of the escape, which stands for all magnitudes from the first of
	// frequency 0 on. Magnitude 0 and the escape have at least 1.
	Freq [numClasses][maxLevel + 2]uint16
	// MeanAbs is the expected magnitude of a coefficient whose class is known from its component
	// and step alone, in 1/4096 of a step.
	MeanAbs [numClasses]uint16
	// Recon is the distance by which the values of magnitudes 1, 2 and 3 or more lie below the
	// magnitude, in 1/256 of a step.
	Recon [numClasses][maxRecon]int8
	// Noise is the expected squared error, in 1/4096 of a squared step.
	Noise [numClasses]uint16
	// Prior is the weight of the expectation against what a row has shown so far, in 1/4096 of a
	// step of magnitude.
	Prior uint32
}

// slot is an entry of a decoding table: symbol, frequency - 1 and offset within the symbol.
type slot uint32

// coder is Tables made ready.
type coder struct {
	*Tables
	slots  [numClasses][probOne]slot
	ivals  [numClasses][numSymbols]interval
	cost   [numClasses][maxLevel + 2]float32 // bits of a magnitude, its sign included
	most   [numClasses]uint32                // the largest magnitude with a symbol
	recon  [numClasses][maxLevel + 1]float32 // points of reconstruction, in steps
	signed [numClasses][numSymbols]float32   // the same by symbol

	refined *refineTables // of a stage; see coders

	// For encoding, by class and symbol: see fast_encode.go.
	symbols []encodeSymbol
	bits    []float32
}

func newCoder(t *Tables, encode bool) *coder {
	c := &coder{Tables: t}
	if encode {
		defer c.forEncoding()
	}
	for k := range t.Freq {
		at := uint32(0)
		put := func(sym int, freq uint16) {
			c.ivals[k][sym] = newInterval(at, uint32(freq))
			for j := range uint32(freq) {
				c.slots[k][at+j] = slot(uint32(sym)<<24 | (uint32(freq)-1)<<12 | j)
			}
			at += uint32(freq)
		}
		for m := maxLevel; m > 0; m-- {
			put(maxLevel-m, t.Freq[k][m]/2)
		}
		put(maxLevel, t.Freq[k][0])
		for m := 1; m <= maxLevel; m++ {
			put(maxLevel+m, t.Freq[k][m]/2)
		}
		put(symEscape, t.Freq[k][maxLevel+1])
		for c.most[k] < maxLevel && t.Freq[k][c.most[k]+1] > 0 {
			c.most[k]++
		}
		for m, f := range t.Freq[k] {
			if f == 0 {
				f = t.Freq[k][maxLevel+1] // the escape; the bits behind it are counted apart
			}
			c.cost[k][m] = float32(probBits - math.Log2(float64(f)))
			if m > 0 && m <= maxLevel {
				c.cost[k][m]++
			}
			if m <= maxLevel && m > 0 {
				r := t.Recon[k][min(m, maxRecon)-1]
				c.recon[k][m] = float32(m) - float32(r)/256
				c.signed[k][maxLevel+m], c.signed[k][maxLevel-m] = c.recon[k][m], -c.recon[k][m]
			}
		}
	}
	return c
}

func (c *coder) forEncoding() {
	for k := range c.ivals {
		for sym, v := range c.ivals[k] {
			c.symbols = append(c.symbols, newEncodeSymbol(v))
			m := min(max(sym-maxLevel, maxLevel-sym), maxLevel+1)
			c.bits = append(c.bits, c.cost[k][m])
		}
	}
}

// classOf returns the class of a scale, and how many low bits of a coefficient are stored as they
// are because its scale lies above all classes.
func classOf(scale8 int) (class int, shift uint) {
	if scale8 > classTop {
		s := (scale8 - classTop + 7) / 8
		return (scale8 - 8*s - classBase) >> 1, uint(min(s, maxShift))
	}
	return max(scale8-classBase, 0) >> 1, 0
}

// log8 returns 8 * log2(x), rounded down to an eighth of an octave by a table.
func log8(x uint64) int {
	n := bits.Len64(x)
	if n == 0 {
		return 0
	}
	frac := x << (64 - n) >> 57 & 63 // six bits behind the first
	return 8*(n-1) + int(log8Table[frac])
}

// log8Table[i] is floor(8*log2(1 + i/64) + 1/2).
var log8Table = func() (t [64]uint8) {
	for i := range t {
		// 2^((2k-1)/16) in units of 1/64, rounded up: where the table steps to k.
		for k, from := range [8]int{3, 9, 16, 23, 31, 40, 49, 59} {
			if i >= from {
				t[i] = uint8(k + 1)
			}
		}
	}
	return t
}()

// validate checks that every table adds up.
func (t *Tables) validate() error {
	for k := range t.Freq {
		sum, ended := 0, false
		for m, f := range t.Freq[k] {
			sum += int(f)
			inner := m > 0 && m <= maxLevel
			if inner && f%2 != 0 || !inner && f == 0 || inner && ended && f != 0 {
				return shapef("tables: class %d: frequency %d of magnitude %d", k, f, m)
			}
			ended = ended || f == 0
		}
		if sum != probOne {
			return shapef("tables: class %d: frequencies add up to %d, want %d", k, sum, probOne)
		}
	}
	if t.Prior == 0 || t.Prior > 1<<24 {
		return shapef("tables: prior %d, want 1 to 2^24", t.Prior)
	}
	return nil
}

// tablesBytes is the size of marshalled tables.
const tablesBytes = 4 + numClasses*(2*(maxLevel+2)+2+maxRecon+2)

// appendTables appends t, little-endian, in the order of its fields, the prior first.
func appendTables(dst []byte, t *Tables) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, t.Prior)
	for k := range t.Freq {
		for _, f := range t.Freq[k] {
			dst = le.AppendUint16(dst, f)
		}
		dst = le.AppendUint16(dst, t.MeanAbs[k])
		for _, r := range t.Recon[k] {
			dst = append(dst, byte(r))
		}
		dst = le.AppendUint16(dst, t.Noise[k])
	}
	return dst
}

// parseTables reads tablesBytes bytes.
func parseTables(b []byte) (*Tables, error) {
	le := binary.LittleEndian
	t := &Tables{Prior: le.Uint32(b)}
	b = b[4:]
	for k := range t.Freq {
		for m := range t.Freq[k] {
			t.Freq[k][m] = le.Uint16(b)
			b = b[2:]
		}
		t.MeanAbs[k] = le.Uint16(b)
		b = b[2:]
		for i := range t.Recon[k] {
			t.Recon[k][i] = int8(b[i])
		}
		b = b[maxRecon:]
		t.Noise[k] = le.Uint16(b)
		b = b[2:]
	}
	return t, t.validate()
}

// normalise turns counts into frequencies that add up to probOne. Magnitudes that are too rare go to
// the escape; magnitude 0 takes what rounding leaves.
func normalise(counts []float64) (f [maxLevel + 2]uint16) {
	var total float64
	for _, c := range counts {
		total += c
	}
	left := probOne
	escape := counts[maxLevel+1]
	ended := false
	for m := 1; m <= maxLevel; m++ {
		n := 2 * int(math.Round(counts[m]/total*probOne/2))
		if ended || n == 0 {
			ended = true
			escape += counts[m]
			continue
		}
		f[m] = uint16(n)
		left -= n
	}
	f[maxLevel+1] = uint16(max(1, int(math.Round(escape/total*probOne))))
	left -= int(f[maxLevel+1])
	for left < 1 { // rounding up took too much: the largest pay for it
		big := 1
		for m := 1; m <= maxLevel; m++ {
			if f[m] > f[big] {
				big = m
			}
		}
		f[big] -= 2
		left += 2
	}
	f[0] = uint16(left)
	return f
}
