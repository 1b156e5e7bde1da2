// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"

	"github.com/kvist-project/kvist/quant"
)

// Rows of K may share a constant that was added behind the position embedding. Without the embedding it turns with
// the position, and no basis takes it up. It changes no attention, because the scores of a query all move alike. So
// it is taken off where it is most of what the rows differ by from their mean, and stored in binary16.
//
// What models have of this by themselves is far less: up to a thirtieth of that energy in SmolLM2. So their records
// lack it and take no byte more.

// constantPays is the share of the energy of rows less their mean from which on a constant is taken off.
const constantPays = 0.4

// fewestRows have a constant that is told from the rows themselves, and that saves more bits than it takes.
const fewestRows = 64

// columns returns the mean of each column of rows of dim values.
func columns(rows []float32, dim int) []float64 {
	mean := make([]float64, dim)
	for at := 0; at < len(rows); at += dim {
		for i, v := range rows[at : at+dim] {
			mean[i] += float64(v)
		}
	}
	for i := range mean {
		mean[i] /= float64(max(1, len(rows)/dim))
	}
	return mean
}

// energies returns the mean square of each column of rows of dim values.
func energies(rows []float32, dim int) []float64 {
	sum := make([]float64, dim)
	for at := 0; at < len(rows); at += dim {
		for i, v := range rows[at : at+dim] {
			sum[i] += float64(float64(v) * float64(v))
		}
	}
	for i := range sum {
		sum[i] /= float64(max(1, len(rows)/dim))
	}
	return sum
}

// swing is the mean of the turns of a segment: it makes of a row that is turned by all positions the mean of what
// comes out.
type swing struct {
	rope     *Rope
	sin, cos []float64 // [rotary_dim/2]
}

func newSwing(r *Rope, sin, cos []float32) swing {
	n := len(r.Freqs)
	if n == 0 {
		return swing{rope: r}
	}
	return swing{r, columns(sin, n), columns(cos, n)}
}

// pair returns the places of the components of rotary pair i.
func (r *Rope) pair(i int) (a, b int) {
	if r.Layout == quant.RopeInterleaved {
		return 2 * i, 2*i + 1
	}
	return i, i + len(r.Freqs)
}

// of returns the mean of a row turned forward, with sign 1, or back, with -1.
func (s swing) of(row []float64, sign float64) []float64 {
	out := append([]float64(nil), row...)
	for i := range s.sin {
		a, b := s.rope.pair(i)
		sin := sign * s.sin[i]
		out[a] = float64(row[a]*s.cos[i]) - float64(row[b]*sin)
		out[b] = float64(row[b]*s.cos[i]) + float64(row[a]*sin)
	}
	return out
}

// still is how little a rotary pair turns within a segment, as 1 less the squared length of its mean turn, below
// which a constant behind the embedding and a mean before it are not told apart.
const still = 0.1

// split divides what rows have in common, turned and not, into a constant behind the embedding and a mean before it,
// by least squares. Pairs that hardly turn are given to the constant, and told is false for their components.
func (s swing) split(turned, undone []float64) (constant, mean []float64, told []bool) {
	constant, told = append([]float64(nil), turned...), make([]bool, len(turned))
	swung := s.of(undone, 1)
	for i := range s.sin {
		a, b := s.rope.pair(i)
		if turns := 1 - s.sin[i]*s.sin[i] - s.cos[i]*s.cos[i]; turns >= still {
			constant[a], constant[b] = (turned[a]-swung[a])/turns, (turned[b]-swung[b])/turns
			told[a], told[b] = true, true
		}
	}
	mean = s.of(constant, -1)
	for i := range mean {
		mean[i] = undone[i] - mean[i]
	}
	return constant, mean, told
}

// worthwhile reports whether a constant is worth its bytes in rows without embedding, which lie about a mean. undone
// are the means of their columns. Components that are not told do not count; told nil: all are.
func worthwhile(constant []float64, rows []float32, undone, about []float64, told []bool) bool {
	if len(rows) < fewestRows*len(about) {
		return false
	}
	energies := energies(rows, len(about))
	var c, whole float64
	for i, m := range about {
		if told == nil || told[i] {
			c, whole = c+constant[i]*constant[i], whole+energies[i]+m*m-2*m*undone[i]
		}
	}
	return c > 0 && c >= constantPays*whole
}

// store returns a constant as it is stored.
func store(constant []float64) []byte {
	stored := make([]byte, 0, 2*len(constant))
	for _, c := range constant {
		const most = 65504
		stored = binary.LittleEndian.AppendUint16(stored, quant.F32ToF16(float32(min(max(c, -most), most))))
	}
	return stored
}

// constantOf returns the values of a stored constant.
func constantOf(stored []byte) []float32 {
	c := make([]float32, len(stored)/2)
	for i := range c {
		c[i] = quant.F16ToF32(binary.LittleEndian.Uint16(stored[2*i:]))
	}
	return c
}

// takeOff takes a constant off rows of which the embedding was undone.
func (r *Rope) takeOff(rows, constant, sin, cos []float32) {
	dim, n := len(constant), len(r.Freqs)
	turned := make([]float32, dim)
	for t := range len(rows) / dim {
		copy(turned, constant)
		if n > 0 {
			r.turn(turned, sin[t*n:(t+1)*n], cos[t*n:(t+1)*n], -1)
		}
		for i, v := range turned {
			rows[t*dim+i] -= v
		}
	}
}

// undo takes the embedding off rows of K and then, if it is worth its bytes, what they share behind it against a mean
// of rows without embedding. It returns the stored constant, or nil.
func (r *Rope) undo(rows []float32, mean, sin, cos []float32) []byte {
	dim := len(mean)
	turned := columns(rows, dim)
	r.apply(rows, dim, sin, cos, -1)
	about := make([]float64, dim)
	for i, m := range mean {
		about[i] = float64(m)
	}
	constant := newSwing(r, sin, cos).of(about, 1)
	for i := range constant {
		constant[i] = turned[i] - constant[i]
	}
	if !worthwhile(constant, rows, columns(rows, dim), about, nil) {
		return nil
	}
	stored := store(constant)
	r.takeOff(rows, constantOf(stored), sin, cos)
	return stored
}

// UndoWithout takes the embedding off rows of K, [len(pos), dim], in place, and what they share behind it where that
// is most of what they differ by. Rows without it are what a transform is fitted to.
func (c *Turns) UndoWithout(rows []float32, dim int, pos []int64) {
	sin, cos := c.angles(pos)
	turned := columns(rows, dim)
	c.rope.apply(rows, dim, sin, cos, -1)
	undone := columns(rows, dim)
	constant, mean, told := newSwing(&c.rope, sin, cos).split(turned, undone)
	if worthwhile(constant, rows, undone, mean, told) {
		c.rope.takeOff(rows, constantOf(store(constant)), sin, cos)
	}
}

// addConstant adds a stored constant to rows.
func addConstant(rows []float32, stored []byte) {
	constant := constantOf(stored)
	for at := 0; at < len(rows); at += len(constant) {
		for i, v := range constant {
			rows[at+i] += v
		}
	}
}

// appendConstants appends what stands before a payload in transform mode where some lane has a constant: u8 2, u8 0,
// u16 values of a row of K, for each lane u8: 1 if it has one, and the constants, binary16.
func appendConstants(dst []byte, constants [][]byte) []byte {
	size := 0
	for _, c := range constants {
		size = max(size, len(c))
	}
	if size == 0 {
		return dst
	}
	dst = binary.LittleEndian.AppendUint16(append(dst, modeConstants, 0), uint16(size/2))
	for _, c := range constants {
		dst = append(dst, byte(b2u(c != nil)))
	}
	for _, c := range constants {
		dst = append(dst, c...)
	}
	return dst
}

// parseConstants reads what appendConstants wrote and returns how many bytes that is, 0 where it wrote nothing.
//
// Errors: *CorruptError.
func parseConstants(b []byte, lanes int) (constants [][]byte, n int, err error) {
	if len(b) == 0 || b[0] != modeConstants {
		return nil, 0, nil
	}
	if n = 4 + lanes; len(b) < n || b[1] != 0 {
		return nil, 0, corrupt("payload", -1, -1, 1, "%d bytes for constants of %d lanes", len(b), lanes)
	}
	constants = make([][]byte, lanes)
	size, some := 2*int(binary.LittleEndian.Uint16(b[2:])), false
	for i := range constants {
		if b[4+i] == 0 {
			continue
		}
		if b[4+i] != 1 || size == 0 || len(b)-n < size {
			return nil, 0, corrupt("payload", -1, -1, 4+i, "the constant of lane %d", i)
		}
		constants[i], some = b[n:n+size:n+size], true
		n += size
		for j := 0; j < size; j += 2 {
			if binary.LittleEndian.Uint16(constants[i][j:])&0x7c00 == 0x7c00 {
				return nil, 0, corrupt("payload", -1, -1, n-size+j, "the constant of lane %d is NaN or Inf", i)
			}
		}
	}
	if !some {
		return nil, 0, corrupt("payload", -1, -1, 0, "constants of no lane")
	}
	return constants, n, nil
}

// checkConstants holds the constants of a payload against its rows: those of K have them alone.
//
// Errors: *CorruptError.
func (s *streams) checkConstants(dims []int) error {
	for i, c := range s.constants {
		if c != nil && (len(dims) != 2 || i%2 != 0 || len(c) != 2*dims[0]) {
			return corrupt("payload", i/len(dims), i%len(dims), 4+i, "a constant of %d values", len(c)/2)
		}
	}
	return nil
}
