// SPDX-License-Identifier: Apache-2.0

package codec

//go:generate sh ../generate.sh codec

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// tileRows is the number of rows that are processed together.
const tileRows = 32

// Kernels are the routines of one instruction set. x and y are rows of stride values. n is the
// number of groups of 16 values in a row; the last group ends with zeros if dim is not a multiple
// of 16.
type Kernels struct {
	isa string
	// forward and inverse transform rows of one window of a power of two, at least 8. signs holds
	// the sign bit of each value.
	forward, inverse func(x []float32, signs []uint32, rows, stride, length int, norm float32)
	// peaks writes the largest magnitude of every row as bits. Integer order is the order of
	// magnitudes, followed by infinity and NaN.
	peaks func(peaks []uint32, x []float32, stride, n int)
	// scale multiplies every row by its factor.
	scale func(x, factors []float32, stride, n int)
	// quantize writes the codes of rows in lm1..lm4, and the sums that their scales need.
	quantize func(q planesJob, y []float32)
	// quantizeU8 writes the codes of rows with the given steps.
	quantizeU8 func(codes []byte, y, steps []float32, stride, dim int)
	// planes and u8 decode rows, times a unit per row. planes reads up to 7 bytes after a row.
	planes func(dst []float32, p planeRows, units []float32, stride int)
	u8     func(dst []float32, src []byte, units []float32, stride, dim int)
	// toF16 rounds finite values that binary16 can hold, like quant.F32ToF16.
	toF16 func(dst []byte, src []float32)
	// count, if not nil, does the work of countRows for rows whose dim is a multiple of 64. It
	// returns the number of rows done.
	count func(s *rowSums, src []byte, plane, rows, dim int, d *demotion, bits int) int
	// ratios multiplies nonzero scales by the ratio that the rule computes from the sums.
	ratios func(scales []float32, s *rowSums, rule quant.ScaleRule)
	// log8 writes the 8-bit logarithms of scales below base.
	log8 func(dst []byte, scales []float32, base float32)
}

// rowSums are the sums over a tile of rows that a demotion needs: <x,x>, <x,c>, <c,c>, and the same
// for single words of planes.
type rowSums struct {
	xx, xc, cc [tileRows]int32
	words      [3][8 * tileRows]int32
}

// planesJob is a tile of rows for quantize.
type planesJob struct {
	dst             []byte // from the first row in plane 0 to the end of the planes
	plane           int    // bytes per plane
	rows, dim       int
	stride          int
	thresholds      []float32 // in units of the root mean square
	centroids       []int32   // magnitudes
	tmp             []float32 // [stride]
	sums            []float32 // [2*rows]: |y|^2, <y,c>
	cc              []int32   // [rows]: <c,c>
	bits, n, oddEnd int       // oddEnd: 1 if the last group has 8 values
}

// planeRows is a range of rows of a packed side in bit planes.
type planeRows struct {
	src             []byte // from the first row in plane 0 to the end of the side
	plane, rowBytes int
	bits, rows      int
	table           *[16]float32 // entries by code
}

// ISA returns the name of the instruction set.
func (k *Kernels) ISA() string { return k.isa }

// Rotation is quant.Rotation in the form that the kernels need.
type Rotation struct {
	dim     int
	windows []window
}

type window struct {
	start, length int
	norm          float32
	signs         []uint32 // the sign bit of every value
}

// NewRotation returns the rotation of rows of dim values for a seed.
//
// Errors: those of quant.NewRotation.
func NewRotation(dim int, seed uint64) (*Rotation, error) {
	q, err := quant.NewRotation(dim, seed)
	if err != nil {
		return nil, err
	}
	r := &Rotation{dim: dim}
	for _, w := range q.Windows() {
		v := window{start: w.Start, length: w.Len, norm: w.Norm, signs: make([]uint32, w.Len)}
		for i := range v.signs {
			v.signs[i] = uint32(w.Signs[i/64]>>(i%64)) << 31
		}
		r.windows = append(r.windows, v)
	}
	return r, nil
}

// Dim returns the row length.
func (r *Rotation) Dim() int { return r.dim }

// Forward rotates rows of stride values: it applies quant.Rotation.Forward to the first Dim values
// of each.
func (k *Kernels) Forward(r *Rotation, x []float32, rows, stride int) {
	for _, w := range r.windows {
		if rows > 0 {
			k.forward(x[w.start:(rows-1)*stride+w.start+w.length], w.signs, rows, stride, w.length,
				w.norm)
		}
	}
}

// Inverse undoes Forward up to rounding: it applies quant.Rotation.Inverse to each row.
func (k *Kernels) Inverse(r *Rotation, x []float32, rows, stride int) {
	for _, w := range r.windows {
		if rows > 0 {
			k.inverse(x[w.start:(rows-1)*stride+w.start+w.length], w.signs, rows, stride, w.length,
				w.norm)
		}
	}
}

// Worker encodes and decodes with its own scratch memory.
type Worker struct {
	k          *Kernels
	y, tmp     []float32
	scales     []float32
	peaks      [tileRows]uint32
	factors    [tileRows]float32
	exps       [tileRows]int32
	sums       [2 * tileRows]float32
	cc         [tileRows]int32
	padded     []byte
	centroids  [8]int32
	thresholds [8]float32
	rows       rowSums
}

// NewWorker returns a worker for an instruction set.
func (k *Kernels) NewWorker() *Worker { return &Worker{k: k} }

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// GrowScales returns n scales, in s if it is large enough, with room for a whole vector after the
// last.
// last.
func GrowScales(s []float32, n int) []float32 { return grow(s, (n+15)&^15)[:n] }

// Loader writes rows [r0, r0+n) to tile, stride values apart, and clears the values after each row.
type Loader func(tile []float32, stride, r0, n int)

// Encodes reports whether Encode supports a coding. EncodeExact supports the exact formats.
func Encodes(c quant.Coding) bool { return c.Format.Nested() || c.Format == quant.U8 }

// Encode packs rows like quant.Encode. It reports false, with dst undefined, if quant.Encode would
// refuse a row.
func (w *Worker) Encode(dst []byte, c quant.Coding, rows int, rot *Rotation, load Loader) bool {
	w.scales = GrowScales(w.scales, rows)
	if !w.EncodeRows(dst, c, rows, w.scales, rot, load, 0, rows) || !w.PutScales(dst, c, w.scales, rot) {
		return false
	}
	if c.Format == quant.U8 {
		// A single tile is still in memory.
		w.codesU8(dst, w.scales, rot, load, 0, rows, rows > tileRows)
	}
	return true
}

// Packing in parts: call EncodeRows for every part, then PutScales once, and for u8, whose codes
// need the stored scales, EncodeCodes for every part. A part starts at a multiple of TileRows.
// scales, from GrowScales, holds the scales of all rows and is shared by all parts.

// EncodeRows packs rows [from, to) without their scales, which it writes to scales. For u8 it
// computes only the scales. It reports false if quant.Encode would refuse a row.
func (w *Worker) EncodeRows(dst []byte, c quant.Coding, rows int, scales []float32, rot *Rotation,
	load Loader, from, to int) bool {
	dim := rot.dim
	stride := w.growRows(dim)
	if c.Format == quant.U8 {
		return w.scalesU8(scales, rot, load, from, to)
	}
	f := c.Format
	copy(w.thresholds[:], nested[f-quant.LM1].thresholds)
	copy(w.centroids[:], nested[f-quant.LM1].centroids)
	codes, plane := dst[:len(dst)-c.ScaleBytes(rows)], layout.PlaneBytes(rows, dim)
	for r0 := from; r0 < to; r0 += tileRows {
		n := min(tileRows, to-r0)
		if !w.rotated(rot, load, stride, r0, n) {
			return false
		}
		w.k.quantize(planesJob{dst: codes[r0*layout.RowPlaneBytes(dim):], plane: plane, rows: n,
			dim: dim, stride: stride, thresholds: w.thresholds[:], centroids: w.centroids[:],
			tmp: w.tmp, sums: w.sums[:], cc: w.cc[:], bits: f.Bits(), n: (dim + 15) / 16,
			oddEnd: dim / 8 % 2}, w.y)
		for i := range n {
			var s float32
			if xx := w.sums[2*i]; float32(xx/float32(dim)) > 0 {
				s = RuleScale(c.Rule, xx, w.sums[2*i+1], float32(w.cc[i]))
			}
			scales[r0+i] = float32(s * pow2(int(w.exps[i])))
		}
	}
	return true
}

// growRows prepares scratch for a tile and returns the distance of its rows.
func (w *Worker) growRows(dim int) (stride int) {
	stride = (dim + 63) &^ 63
	w.y, w.tmp = grow(w.y, tileRows*stride), grow(w.tmp, stride)
	return stride
}

// PutScales stores the scales of all rows and clears the bytes between the codes and the next
// plane. If EncodeCodes follows, it also rounds scales to their stored values. It reports false if
// quant.Encode would refuse a scale.
func (w *Worker) PutScales(dst []byte, c quant.Coding, scales []float32, rot *Rotation) bool {
	rows, f := len(scales), c.Format
	codes, tail := dst[:len(dst)-c.ScaleBytes(rows)], dst[len(dst)-c.ScaleBytes(rows):]
	if !w.k.putScales(tail, c, scales) {
		return false
	}
	if f == quant.U8 {
		clear(codes[rows*rot.dim:])
		getScales(scales, c, tail)
		return true
	}
	plane := layout.PlaneBytes(rows, rot.dim)
	if pad := plane - rows*layout.RowPlaneBytes(rot.dim); pad > 0 {
		for p := 1; p <= f.Bits(); p++ {
			clear(codes[p*plane-pad : p*plane])
		}
	}
	return true
}

// EncodeCodes packs the u8 codes of rows [from, to), with the scales that PutScales left.
func (w *Worker) EncodeCodes(dst []byte, scales []float32, rot *Rotation, load Loader, from, to int) {
	w.growRows(rot.dim)
	w.codesU8(dst, scales, rot, load, from, to, true)
}

// EncodeExact packs rows in an exact format like quant.Encode. It reports false, with dst
// undefined, if quant.Encode would refuse a row.
func (w *Worker) EncodeExact(dst []byte, f quant.Format, rows, dim int, load Loader) bool {
	stride := (dim + 63) &^ 63
	w.y = grow(w.y, tileRows*stride)
	rowBytes := dim * f.Bits() / 8
	for r0 := 0; r0 < rows; r0 += tileRows {
		n := min(tileRows, rows-r0)
		y := w.y[:n*stride]
		load(y, stride, r0, n)
		w.k.peaks(w.peaks[:n], y, stride, (dim+15)/16)
		for i, peak := range w.peaks[:n] {
			row, out := y[i*stride:][:dim], dst[(r0+i)*rowBytes:][:rowBytes]
			ok := true
			switch {
			case f == quant.F32:
				for j, v := range row {
					binary.LittleEndian.PutUint32(out[4*j:], math.Float32bits(v))
				}
			case f == quant.BF16:
				ok = toBF16(out, row)
			case peak < overF16:
				w.k.toF16(out, row)
			default:
				ok = toF16Checked(out, row)
			}
			if !ok {
				return false
			}
		}
	}
	return true
}

const (
	overF16 = 0x477ff000 // 65520 and more round to an infinity
	infBits = 0x7f800000
)

// toF16Checked reports false if a finite value is beyond binary16.
func toF16Checked(dst []byte, src []float32) bool {
	for i, v := range src {
		if b := math.Float32bits(v) &^ (1 << 31); b >= overF16 && b < infBits {
			return false
		}
		binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToF16(v))
	}
	return true
}

// toBF16 reports false if a finite value is beyond bfloat16.
func toBF16(dst []byte, src []float32) bool {
	for i, v := range src {
		h := quant.F32ToBF16(v)
		if h&0x7fff == 0x7f80 && math.Float32bits(v)&infBits != infBits {
			return false
		}
		binary.LittleEndian.PutUint16(dst[2*i:], h)
	}
	return true
}

// rotated loads rows, scales each to [1, 2) by a power of two, and rotates them. It reports false
// if a value is not finite or beyond quant.MaxMagnitude.
func (w *Worker) rotated(rot *Rotation, load Loader, stride, r0, n int) bool {
	y := w.y[:n*stride]
	load(y, stride, r0, n)
	vectors := (rot.dim + 15) / 16
	w.k.peaks(w.peaks[:n], y, stride, vectors)
	for i, p := range w.peaks[:n] {
		if p > maxMagnitudeBits {
			return false
		}
		e := int32(0)
		if p > 0 { // subnormals give -127
			e = min(max(int32(p>>23)-127, -120), 126)
		}
		w.exps[i], w.factors[i] = e, pow2(int(-e))
	}
	w.k.scale(y, w.factors[:n], stride, vectors)
	w.k.Forward(rot, y, n, stride)
	return true
}

const maxMagnitudeBits = (127 + 111) << 23 // 2^111

// scalesU8 computes the scales of rows [from, to) in u8.
func (w *Worker) scalesU8(scales []float32, rot *Rotation, load Loader, from, to int) bool {
	dim := rot.dim
	stride := (dim + 63) &^ 63
	for r0 := from; r0 < to; r0 += tileRows {
		n := min(tileRows, to-r0)
		if !w.rotated(rot, load, stride, r0, n) {
			return false
		}
		w.k.peaks(w.peaks[:n], w.y, stride, (dim+15)/16)
		for i, p := range w.peaks[:n] {
			peak := math.Float32frombits(p)
			scales[r0+i] = float32(float32(float32(peak/127)/layout.CentroidUnit) * pow2(int(w.exps[i])))
		}
	}
	return true
}

// codesU8 computes the codes with the stored scale. It rotates the rows again.
func (w *Worker) codesU8(dst []byte, scales []float32, rot *Rotation, load Loader, from, to int,
	again bool) {
	dim := rot.dim
	stride := (dim + 63) &^ 63
	for r0 := from; r0 < to; r0 += tileRows {
		n := min(tileRows, to-r0)
		if again {
			w.rotated(rot, load, stride, r0, n)
		}
		for i := range n {
			w.factors[i] = float32(float32(scales[r0+i]*pow2(int(-w.exps[i]))) * layout.CentroidUnit)
		}
		w.k.quantizeU8(dst[r0*dim:(r0+n)*dim], w.y, w.factors[:n], stride, dim)
	}
}

// Decode unpacks rows [r0, r0+n) of a packed side of rows rows to dst, like quant.Decode. n is at
// most tileRows, len(dst) is n*dim, and c is a rotated coding.
func (w *Worker) Decode(dst []float32, c quant.Coding, src []byte, rows int, rot *Rotation, r0,
	n int) {
	dim := rot.dim
	w.DecodeRotated(dst, c, src, rows, dim, r0, n)
	w.k.Inverse(rot, dst, n, dim)
}

// TileRows is the largest number of rows in a call of Decode.
const TileRows = tileRows

// DecodeRotated is Decode in the stored basis.
func (w *Worker) DecodeRotated(dst []float32, c quant.Coding, src []byte, rows, dim, r0, n int) {
	dst = dst[:n*dim]
	tail := src[len(src)-c.ScaleBytes(rows):]
	w.scales = grow(w.scales, n)
	scalesOf(w.scales, c, tail, r0)
	out, stride := dst, dim
	if dim%64 != 0 {
		stride = (dim + 63) &^ 63
		w.y = grow(w.y, tileRows*stride)
		out = w.y[:n*stride]
	}
	f := c.Format
	switch {
	case f == quant.U8:
		for i := range w.scales {
			w.scales[i] *= layout.CentroidUnit
		}
		w.k.u8(out, src[r0*dim:(r0+n)*dim], w.scales, stride, dim)
	default:
		p := planeRows{src: src[r0*layout.RowPlaneBytes(dim):], plane: layout.PlaneBytes(rows, dim),
			rowBytes: layout.RowPlaneBytes(dim), bits: f.Bits(), rows: n, table: &codebooks[f]}
		for i := range w.scales {
			if f.Nested() {
				w.scales[i] *= layout.CentroidUnit
			} else {
				w.scales[i] = float32(w.scales[i] / float32(math.Sqrt(float64(dim))))
			}
		}
		w.planes(out, p, stride)
	}
	if stride != dim {
		for i := range n {
			copy(dst[i*dim:(i+1)*dim], out[i*stride:])
		}
	}
}

// planes decodes rows. It first copies rows whose reads would pass the end of the side.
func (w *Worker) planes(out []float32, p planeRows, stride int) {
	for p.rows > 0 {
		q := p
		if q.end(stride) > len(q.src) {
			q.rows--
			for q.rows > 0 && q.end(stride) > len(q.src) {
				q.rows--
			}
		}
		done := q.rows
		if q.rows == 0 { // the last rows, one at a time
			q.rows, done, q.plane = 1, 1, p.rowBytes
			w.padded = grow(w.padded, p.bits*p.rowBytes+8)
			for b := range p.bits {
				copy(w.padded[b*p.rowBytes:], p.src[b*p.plane:b*p.plane+p.rowBytes])
			}
			q.src = w.padded
		}
		w.k.planes(out, q, w.scales[len(w.scales)-p.rows:][:done], stride)
		if p.rows -= done; p.rows > 0 {
			p.src, out = p.src[done*p.rowBytes:], out[done*stride:]
		}
	}
}

// end returns the end of the bytes that are read, 8 bytes at a time.
func (p *planeRows) end(stride int) int {
	return (p.bits-1)*p.plane + (p.rows-1)*p.rowBytes + stride/8
}

// scalesOf decodes the stored scales of rows [r0, r0+len(dst)).
func scalesOf(dst []float32, c quant.Coding, tail []byte, r0 int) {
	if c.Scale == quant.ScaleLog8 {
		base := math.Float32frombits(binary.LittleEndian.Uint32(tail))
		for i := range dst {
			dst[i] = log8Scale(base, tail[4+r0+i])
		}
		return
	}
	for i := range dst {
		dst[i] = quant.F16ToF32(binary.LittleEndian.Uint16(tail[2*(r0+i):]))
	}
}
