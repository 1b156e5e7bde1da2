// SPDX-License-Identifier: Apache-2.0

package input

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/half"
	"github.com/kvist-project/kvist/quant"
)

// Energy is the squared length, in four sums: one would wait for itself.
func Energy(x []float32) float64 {
	var a, b, c, d float64
	for ; len(x) >= 4; x = x[4:] {
		v := (*[4]float32)(x)
		a += float64(float64(v[0]) * float64(v[0]))
		b += float64(float64(v[1]) * float64(v[1]))
		c += float64(float64(v[2]) * float64(v[2]))
		d += float64(float64(v[3]) * float64(v[3]))
	}
	for _, v := range x {
		a += float64(float64(v) * float64(v))
	}
	return (a + b) + (c + d)
}

// Distance is the squared distance of two rows, likewise.
func Distance(x, y []float32) float64 {
	y = y[:len(x)]
	var a, b, c, d float64
	for ; len(x) >= 4; x, y = x[4:], y[4:] {
		v, w := (*[4]float32)(x), (*[4]float32)(y)
		p, q, r, s := float64(v[0]-w[0]), float64(v[1]-w[1]), float64(v[2]-w[2]), float64(v[3]-w[3])
		a, b = a+float64(p*p), b+float64(q*q)
		c, d = c+float64(r*r), d+float64(s*s)
	}
	for i, v := range x {
		p := float64(v - y[i])
		a += float64(p * p)
	}
	return (a + b) + (c + d)
}

// HeadRows are energies of the rows of a head.
type HeadRows struct {
	KEnergy, VEnergy []float64 // |k|^2, |v|^2
	// The rows themselves, in chunks of ChunkRows where there are no cuts between.
	Keys, Values []quant.Rows
	First        int  // token of the first row
	Shortened    bool // some rows stood apart
}

// From returns the rows from token first on.
func (s HeadRows) From(first int) HeadRows {
	n := first - s.First
	s.First, s.KEnergy, s.VEnergy = first, s.KEnergy[n:], s.VEnergy[n:]
	s.Keys, s.Values = rowsFrom(s.Keys, n), rowsFrom(s.Values, n)
	return s
}

func rowsFrom(chunks []quant.Rows, n int) []quant.Rows {
	for len(chunks) > 0 && n >= chunks[0].Len() {
		n -= chunks[0].Len()
		chunks = chunks[1:]
	}
	if n > 0 {
		chunks = slices.Clone(chunks)
		chunks[0].Data = chunks[0].Data[n*chunks[0].Dim:]
	}
	return chunks
}

// MeanValue returns the mean of V weighed by the weights of the first tokens; nil: all the same.
func (s *HeadRows) MeanValue(w []float32) []float64 {
	if len(s.Values) == 0 {
		return nil
	}
	mean, sum, at := make([]float64, s.Values[0].Dim), 0.0, 0
	for _, v := range s.Values {
		for r := range v.Len() {
			weight := 1.0
			if w != nil {
				if at >= len(w) {
					break
				}
				weight = float64(w[at])
			}
			for i, x := range v.Row(r) {
				mean[i] += weight * float64(x)
			}
			sum += weight
			at++
		}
	}
	for i := range mean {
		if sum > 0 {
			mean[i] /= sum
		}
	}
	return mean
}

// ChunkRows is the rows of an exact block.
const ChunkRows = 4096

// LoadHead uploads K and V of a head as exact blocks that start anew at each of the cuts, the
// first of which is 0 and the last the number of tokens wanted. Rows that are not finite become zeros. With
// calm, rows that stand apart are shortened (calmed).
func LoadHead(up *Uploader, l *Layer, head int, cuts []int, calm bool) (blocks []backend.Block, st HeadRows,
	err error) {
	tokens := cuts[len(cuts)-1]
	st = HeadRows{KEnergy: make([]float64, tokens), VEnergy: make([]float64, tokens)}
	for first, cut := 0, 1; first < tokens; {
		for cuts[cut] <= first {
			cut++
		}
		n := min(ChunkRows, cuts[cut]-first)
		b := backend.Block{
			Layer:  int32(l.Number),
			KVHead: int32(head),
			Rows:   int32(n),
			Base:   int64(first),
		}
		k, kShort, err := exactSide(up, l.K, head, first, n, &b.K, calm)
		if err != nil {
			return nil, st, err
		}
		v, vShort, err := exactSide(up, l.V, head, first, n, &b.V, calm)
		if err != nil {
			return nil, st, err
		}
		for r := range n {
			st.KEnergy[first+r], st.VEnergy[first+r] = Energy(k.Row(r)), Energy(v.Row(r))
		}
		st.Shortened = st.Shortened || kShort || vShort
		st.Keys, st.Values = append(st.Keys, k), append(st.Values, v)
		blocks = append(blocks, b)
		first += n
	}
	return blocks, st, nil
}

// exactSide uploads rows of one head as they are, and returns them as float32. shortened reports whether some
// stood apart and calm shortened them.
func exactSide(up *Uploader, t Tensor, head, first, n int, side *backend.Side, calm bool) (x quant.Rows,
	shortened bool, err error) {
	x = quant.Rows{Dim: t.Dim(), Data: make([]float32, n*t.Dim())}
	raw := make([]byte, n*t.RowBytes())
	if err := t.Read(head, first, n, raw); err != nil {
		return x, false, err
	}
	if err := Decode(x, t, raw); err != nil {
		return x, false, err
	}
	if !Finite(x.Data) {
		for r := range n {
			if row := x.Row(r); !Finite(row) {
				clear(row)
				clear(raw[r*t.RowBytes() : (r+1)*t.RowBytes()])
			}
		}
	}
	if shortened = calm && calmed(x); shortened {
		if err := quant.Encode(raw, Exact(t), x, 0); err != nil {
			return x, false, err
		}
	}
	span, err := up.Upload(raw)
	*side = backend.Side{Coding: Exact(t), Data: span}
	return x, shortened, err
}

// Decode decodes raw rows of t.
func Decode(x quant.Rows, t Tensor, raw []byte) error {
	if t.DType() == quant.Float16 {
		half.Widen(x.Data, raw)
		return nil
	}
	return quant.Decode(x, Exact(t), raw, 0)
}

// Uploader keeps track of the buffers of a batch.
type Uploader struct {
	Backend backend.Backend
	bufs    []backend.Buffer
}

func (u *Uploader) Upload(b []byte) (backend.Span, error) {
	s, err := u.Alloc(int64(len(b)))
	if err != nil {
		return s, err
	}
	err = s.Buf.Upload(0, b)
	return s, err
}

func (u *Uploader) Alloc(n int64) (backend.Span, error) {
	buf, err := u.Backend.Alloc(n)
	if err != nil {
		return backend.Span{}, err
	}
	u.bufs = append(u.bufs, buf)
	return backend.Span{Buf: buf, Len: n}, nil
}

// free gives all buffers back. Failing to free host memory is not an error a caller can act on.
func (u *Uploader) Free() {
	for _, b := range u.bufs {
		_ = b.Free()
	}
	u.bufs = nil
}

// AppendFloats appends float32 values to dst, little-endian.
func AppendFloats(dst []byte, x []float32) []byte {
	at := len(dst)
	dst = slices.Grow(dst, 4*len(x))[:at+4*len(x)]
	b := dst[at:]
	for i, v := range x {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return dst
}
