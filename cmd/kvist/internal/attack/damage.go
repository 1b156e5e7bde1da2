// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
)

// escapes are texts that a terminal acts on: colours, a title, a reset, C1, and marks that turn the
// direction of what follows.
var escapes = []string{"\x1b[31m", "\x1b]0;x\a", "\x1bc", "\u009b2J", "\x00\b\r", "\u202e\u2066", "\x7f\x85"}

// numbers are those that lengths, counts and offsets break on.
func number(r *rand.Rand, size int) uint64 {
	list := []uint64{0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 255, 256, 1<<14 - 1, 1 << 14, 1<<16 - 1, 1 << 16,
		1<<20 + 1, 1 << 24, 1<<28 + 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 40, 1 << 62,
		math.MaxInt64, 1 << 63, math.MaxUint64, uint64(size), uint64(size) + 1, uint64(size) - 1}
	if r.IntN(4) == 0 {
		return r.Uint64() >> r.IntN(64)
	}
	return list[r.IntN(len(list))]
}

// setNumber writes a number of 1, 2, 4 or 8 bytes over b, mostly where one may stand.
func setNumber(b []byte, r *rand.Rand) {
	width := 1 << r.IntN(4)
	if len(b) < width {
		return
	}
	most := len(b)
	if r.IntN(2) == 0 {
		most = min(most, 128) // heads of sections
	}
	at := r.IntN(max(1, most/width)) * width
	var v [8]byte
	binary.LittleEndian.PutUint64(v[:], number(r, len(b)))
	copy(b[at:at+width], v[:])
}

// setText writes an escape over a stretch of text, or anywhere where there is none.
func setText(b []byte, r *rand.Rand) {
	s := escapes[r.IntN(len(escapes))]
	if len(b) < len(s) {
		return
	}
	at := r.IntN(len(b) - len(s) + 1)
	for try := 0; try < 64; try++ {
		i := r.IntN(len(b) - len(s) + 1)
		if bytes.IndexFunc(b[i:i+len(s)], func(c rune) bool { return c < ' ' || c > '~' }) < 0 {
			at = i
			break
		}
	}
	copy(b[at:], s)
}

// resize puts 16 bytes in, or takes 16 out.
func resize(b []byte, r *rand.Rand) []byte {
	const n = 16
	at := r.IntN(len(b)/n+1) * n
	if r.IntN(2) == 0 || len(b) < 3*n || at+n > len(b) {
		at = min(at, len(b))
		return append(append(append([]byte(nil), b[:at]...), make([]byte, n)...), b[at:]...)
	}
	return append(append([]byte(nil), b[:at]...), b[at+n:]...)
}

// Damage returns damaged file number n of any file, which is not changed.
func Damage(seed []byte, n uint64) []byte {
	return damage(seed, rand.New(rand.NewPCG(n, 0x64616d616765)))
}

func damage(seed []byte, r *rand.Rand) []byte {
	b := bytes.Clone(seed)
	for range 1 + r.IntN(3) {
		if len(b) == 0 {
			return b
		}
		switch r.IntN(9) {
		case 0: // cut short
			b = b[:r.IntN(len(b))]
		case 1: // a stretch of noise
			from := r.IntN(len(b))
			for i := from; i < min(len(b), from+1+r.IntN(64)); i++ {
				b[i] = byte(r.Uint32())
			}
		case 2:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case 3, 4:
			setNumber(b, r)
		case 5:
			setText(b, r)
		case 6:
			digits(b, r)
		case 7: // one part twice
			from := r.IntN(len(b))
			to := from + r.IntN(min(len(b)-from, 4096)+1)
			b = append(append(append([]byte(nil), b[:to]...), b[from:to]...), b[to:]...)
		default:
			b = resize(b, r)
		}
	}
	return b
}

// digits makes another number of one that stands in text: shapes and offsets of safetensors and .npy.
func digits(b []byte, r *rand.Rand) {
	for try := 0; try < 64; try++ {
		i := r.IntN(min(len(b), 4096))
		if b[i] < '0' || b[i] > '9' {
			continue
		}
		for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
			b[i] = '0' + byte(r.IntN(10))
		}
		return
	}
}
