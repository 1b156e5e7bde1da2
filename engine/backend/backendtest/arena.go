// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

const (
	canary    = 0xa5
	guard     = 32 // canary bytes before and after every span
	slabBytes = 1 << 18
)

// arena places spans between canaries in buffers of a backend.
type arena struct {
	t     testing.TB
	b     backend.Backend
	slabs []*slab
}

// slab is one buffer, with its content at the last upload and at the last check.
type slab struct {
	buf   backend.Buffer
	host  []byte // as uploaded
	got   []byte // as fetched
	outs  [][2]int
	place int
}

func newArena(t testing.TB, b backend.Backend) *arena { return &arena{t: t, b: b} }

// take reserves n bytes at a multiple of 16.
func (a *arena) take(n int) (*slab, int) {
	var s *slab
	if len(a.slabs) > 0 {
		s = a.slabs[len(a.slabs)-1]
	}
	if s == nil || s.place+n+2*guard > len(s.host) {
		size := max(slabBytes, n+4*guard)
		buf, err := a.b.Alloc(int64(size))
		require.NoError(a.t, err)
		s = &slab{buf: buf, host: make([]byte, size), place: guard}
		for i := range s.host {
			s.host[i] = canary
		}
		a.slabs = append(a.slabs, s)
	}
	at := s.place
	s.place = (at + n + guard + 15) / 16 * 16
	return s, at
}

// put places bytes that the call under test must not change.
func (a *arena) put(p []byte) backend.Span {
	s, at := a.take(len(p))
	copy(s.host[at:], p)
	return backend.Span{Buf: s.buf, Off: int64(at), Len: int64(len(p))}
}

// room places n bytes that the call under test may write.
func (a *arena) room(n int) backend.Span {
	s, at := a.take(n)
	s.outs = append(s.outs, [2]int{at, at + n})
	return backend.Span{Buf: s.buf, Off: int64(at), Len: int64(n)}
}

// inPlace places bytes that the call under test may write.
func (a *arena) inPlace(p []byte) backend.Span {
	span := a.put(p)
	s := a.slabs[len(a.slabs)-1]
	s.outs = append(s.outs, [2]int{int(span.Off), int(span.Off + span.Len)})
	return span
}

// upload sends everything to the backend.
func (a *arena) upload() {
	for _, s := range a.slabs {
		require.NoError(a.t, s.buf.Upload(0, s.host[:min(len(s.host), s.place+guard)]))
	}
}

// check downloads everything and fails if anything but an output changed.
func (a *arena) check() {
	a.t.Helper()
	a.fetch(true)
}

// unchanged is check for a call that must not have written anything.
func (a *arena) unchanged() {
	a.t.Helper()
	a.fetch(false)
}

func (a *arena) fetch(outputs bool) {
	a.t.Helper()
	for _, s := range a.slabs {
		n := min(len(s.host), s.place+guard)
		s.got = make([]byte, n)
		require.NoError(a.t, s.buf.Download(0, s.got))
		want := append([]byte(nil), s.host[:n]...)
		if outputs {
			for _, o := range s.outs {
				copy(want[o[0]:o[1]], s.got[o[0]:o[1]])
			}
		}
		for i := range want {
			if want[i] != s.got[i] {
				a.t.Fatalf("byte %d of a buffer was written: got %#x, want %#x", i, s.got[i], want[i])
			}
		}
	}
}

// bytes returns the content of a span at the last check.
func (a *arena) bytes(s backend.Span) []byte {
	for _, sl := range a.slabs {
		if sl.buf == s.Buf {
			return sl.got[s.Off : s.Off+s.Len]
		}
	}
	a.t.Fatal("the span is of another arena")
	return nil
}

// free frees the buffers.
func (a *arena) free() {
	for _, s := range a.slabs {
		require.NoError(a.t, s.buf.Free())
	}
	a.slabs = nil
}

func bytesOfF32(x []float32) []byte {
	p := make([]byte, 0, 4*len(x))
	for _, v := range x {
		p = binary.LittleEndian.AppendUint32(p, math.Float32bits(v))
	}
	return p
}

func bytesOfI32(x []int32) []byte {
	p := make([]byte, 0, 4*len(x))
	for _, v := range x {
		p = binary.LittleEndian.AppendUint32(p, uint32(v))
	}
	return p
}

func bytesOfU16(x []uint16) []byte {
	p := make([]byte, 0, 2*len(x))
	for _, v := range x {
		p = binary.LittleEndian.AppendUint16(p, v)
	}
	return p
}

// toDType stores rows as elements of type t and returns their values after rounding.
func toDType(x quant.Rows, t quant.DType) ([]byte, quant.Rows) {
	y := quant.Rows{Dim: x.Dim, Data: make([]float32, len(x.Data))}
	var p []byte
	for i, v := range x.Data {
		switch t {
		case quant.Float16:
			h := quant.F32ToF16(v)
			p, y.Data[i] = binary.LittleEndian.AppendUint16(p, h), quant.F16ToF32(h)
		case quant.BFloat16:
			h := quant.F32ToBF16(v)
			p, y.Data[i] = binary.LittleEndian.AppendUint16(p, h), quant.BF16ToF32(h)
		default:
			p, y.Data[i] = binary.LittleEndian.AppendUint32(p, math.Float32bits(v)), v
		}
	}
	return p, y
}

// sameFloats fails if two floats differ in a bit. All NaNs are equal, because machines differ in
// the payloads they produce.
func sameFloats(t testing.TB, got []byte, want []float32, what string) {
	t.Helper()
	require.Len(t, got, 4*len(want), what)
	for i, w := range want {
		g := math.Float32frombits(binary.LittleEndian.Uint32(got[4*i:]))
		if math.Float32bits(g) != math.Float32bits(w) && !(g != g && w != w) {
			t.Fatalf("%s: value %d: got %g (%#x), want %g (%#x)", what, i, g, math.Float32bits(g), w,
				math.Float32bits(w))
		}
	}
}
