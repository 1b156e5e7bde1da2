// SPDX-License-Identifier: Apache-2.0

package archive

import "math"

// rowState compares the magnitudes of a row so far with those expected. Rows differ in length: one
// that was twice as long as expected so far is likely to go on so.
type rowState struct {
	seen, expected uint64 // in 1/4096 of a step
}

// shift8 returns the correction of the scales of the components that follow.
func (r *rowState) shift8(prior uint32) int {
	return clampShift(log8(r.seen+uint64(prior)) - log8(r.expected+uint64(prior)))
}

func clampShift(d int) int { return min(max(d, -24), 40) }

// add takes a coefficient of magnitude m that was expected to be expect.
func (r *rowState) add(m uint32, expect uint64) {
	r.seen += uint64(m) << 12
	r.expected += expect
}

// expectation returns the expected magnitude, in 1/4096 of a step, at a scale.
func (t *Tables) expectation(scale8 int) uint64 {
	k, s := classOf(scale8)
	return uint64(t.MeanAbs[k]) << s
}

// coded reports whether a component is stored. If its deviation is a small fraction of the step,
// every coefficient would be zero.
func coded(scale8 int) bool { return scale8 >= deadScale }

// eighths[i] is 2^(i/8), rounded to float32.
var eighths = [8]float32{1, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081}

// step returns fine * 2^(s8/8), the same on every machine.
func step(fine float32, s8 int) float32 {
	n, f := s8>>3, s8&7
	return float32(fine*eighths[f]) * float32(math.Ldexp(1, n))
}

// maxMagnitude bounds coefficients: float32 does not tell steps beyond 2^28 apart.
const maxMagnitude = 1 << 28

// lane is one side of one head of a segment, as coefficients.
type lane struct {
	rows, dim int
	std8      []int16 // [dim] deviation of each component
	step8     []int16 // [rows] step of each row, as compared with deviations
}

// rowQuantizer picks the levels of a row with the lowest cost: squared error in steps, plus lambda
// times bits.
type rowQuantizer struct {
	*coder
	// down[k][m] is the value below which magnitude m costs more than m-1 in class k; no value is
	// below that of 0.
	down [numClasses][maxLevel + 1]float32
	once bool    // no level is more than one below the nearest
	fit  *fitter // collects statistics, unless nil

	groups groupTables
}

func (c *coder) quantizer(lambda float32) *rowQuantizer {
	q := &rowQuantizer{coder: c, once: true}
	for k := range q.down {
		q.down[k][0] = -1
		for m := 1; m <= maxLevel; m++ {
			// (a-r)^2 + lambda*bits is the same for both at this a.
			hi, lo := c.recon[k][m], c.recon[k][m-1]
			q.down[k][m] = (lambda*(c.cost[k][m]-c.cost[k][m-1])/(hi-lo) + hi + lo) / 2
			// The nearest level of a is one above m where a is at least m + 1/2.
			q.once = q.once && q.down[k][m] <= float32(m)+0.4
		}
	}
	q.prepareGroups()
	return q
}

// level returns the level of a value a >= 0, in steps, in a class: the nearest, or a lower one while
// that costs less.
func (q *rowQuantizer) level(a float32, k int) uint32 {
	n := uint32(a + 0.5)
	if n > maxLevel {
		return n
	}
	for a < q.down[k][n] {
		n--
	}
	return n
}

// laneSink collects the symbols of one stream.
type laneSink struct {
	syms  []interval
	state []uint8
}

func (s *laneSink) put(state int, v interval) {
	s.syms = append(s.syms, v)
	s.state = append(s.state, uint8(state))
}

// raw stores the low n bits of v with a state.
func (s *laneSink) raw(state int, v uint32, n uint) {
	for n > 0 {
		k := min(n, 8)
		n -= k
		w := uint32(probOne >> k)
		s.put(state, newInterval((v>>n&(1<<k-1))*w, w))
	}
}

// escape stores v by its length in bits and the bits behind the first.
func (s *laneSink) escape(state int, v uint32) {
	n := uint(bitLen(v + 1))
	s.raw(state, uint32(n), 5)
	s.raw(state, (v+1)&^(1<<(n-1)), n-1)
}

func bitLen(v uint32) int {
	n := 0
	for ; v > 0; v >>= 1 {
		n++
	}
	return n
}

// escapeBits returns the bits of an escape, its sign included.
func escapeBits(v uint32) float32 { return float32(5+bitLen(v+1)-1) + 1 }

// encode quantizes y, [rows, dim], with steps [rows], in the order of the stream. It puts the symbols
// into sink, unless that is nil, and returns the bits that the model expects.
func (q *rowQuantizer) encode(l *lane, y, steps []float32, sink *laneSink) (cost float64) {
	var known []*rowScales
	for t := 0; t < l.rows; t += 2 {
		n := min(2, l.rows-t)
		var st [2]rowState
		var of [2]*rowScales
		var inv [2]float32
		for r := range n {
			known, of[r] = q.scalesOf(known, l, l.step8[t+r])
			inv[r] = 1 / steps[t+r]
		}
		for g := 0; g < l.dim; g += groupSize {
			var shift [2]int
			for r := range n {
				shift[r] = st[r].shift8(q.Prior)
			}
			for i := g; i < min(g+groupSize, l.dim); i++ {
				for r := range n {
					scale := int(of[r].scale[i])
					if !coded(scale) {
						continue
					}
					m, b := q.one(r, y[(t+r)*l.dim+i]*inv[r], scale+shift[r], scale, sink)
					cost += float64(b)
					st[r].add(m, of[r].exp[i])
				}
			}
		}
	}
	return cost
}

// one quantizes and stores one coefficient v, in steps.
func (q *rowQuantizer) one(state int, v float32, scale8, prior8 int,
	sink *laneSink) (m uint32, cost float32) {
	k, s := classOf(scale8)
	if s > 0 {
		return q.coarse(state, v, k, s, sink)
	}
	a := max(v, -v)
	if !(a <= maxMagnitude) {
		a = maxMagnitude
	}
	m = q.level(a, k)
	if q.fit != nil {
		q.fit.add(k, prior8, a, m)
	}
	neg := v < 0
	if m <= q.most[k] {
		if sink != nil {
			sym := maxLevel + int(m)
			if neg {
				sym = maxLevel - int(m)
			}
			sink.put(state, q.ivals[k][sym])
		}
		return m, q.cost[k][m]
	}
	over := m - q.most[k] - 1
	if sink != nil {
		sink.put(state, q.ivals[k][symEscape])
		sink.raw(state, b2u(neg), 1)
		sink.escape(state, over)
	}
	return m, float32(q.cost[k][maxLevel+1]) + escapeBits(over)
}

// coarse stores a coefficient of a scale above all classes, with its low bits as they are.
func (q *rowQuantizer) coarse(state int, v float32, k int, s uint,
	sink *laneSink) (m uint32, cost float32) {
	n, hi, u := parts(v, s)
	cost = float32(s)
	if u <= q.most[k] {
		cost += q.cost[k][u]
		if sink != nil {
			sink.put(state, q.ivals[k][maxLevel+int(hi)])
		}
	} else {
		over := u - q.most[k] - 1
		cost += q.cost[k][maxLevel+1] + escapeBits(over)
		if sink != nil {
			sink.put(state, q.ivals[k][symEscape])
			sink.raw(state, b2u(hi < 0), 1)
			sink.escape(state, over)
		}
	}
	if sink != nil {
		sink.raw(state, uint32(n)&(1<<s-1), s)
	}
	return uint32(max(n, -n)), cost
}

// parts returns the level n of a coefficient with s low bits, its upper part hi, and the magnitude of
// hi.
func parts(v float32, s uint) (n, hi int32, u uint32) {
	if v != v {
		v = 0
	}
	n = int32(math.Floor(float64(min(max(v, -maxMagnitude), maxMagnitude)) + 0.5))
	hi = n >> s
	return n, hi, uint32(max(hi, -hi))
}

func b2u(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// decodeLane reads the stream of a lane into coefficients, in steps. out is [rows, dim]. A stream that was
// dropped leaves zeros. It returns false where the stream is damaged.
func (c *coder) decodeLane(l *lane, stream []byte, out []float32) bool {
	if len(stream) == 0 {
		clear(out)
		return true
	}
	return c.decodeOne(l, stream, out)
}

// decodeRows decodes n rows, 1 or 2, from row t on. It defines the order of symbols.
func (c *coder) decodeRows(d *ransDecoder, l *lane, t, n int, out []float32) {
	var st [2]rowState
	for g := 0; g < l.dim; g += groupSize {
		var shift [2]int
		for r := range n {
			shift[r] = st[r].shift8(c.Prior)
		}
		for i := g; i < min(g+groupSize, l.dim); i++ {
			for r := range n {
				scale := int(l.std8[i]) - int(l.step8[t+r])
				if !coded(scale) {
					out[(t+r)*l.dim+i] = 0
					continue
				}
				v, m := c.next(d, r, scale+shift[r])
				out[(t+r)*l.dim+i] = v
				st[r].add(m, c.expectation(scale))
			}
		}
	}
}

// next reads one coefficient.
func (c *coder) next(d *ransDecoder, r, scale8 int) (v float32, m uint32) {
	k, s := classOf(scale8)
	e := c.slots[k][d.x[r]&(probOne-1)]
	x := (uint32(e)>>12&0xfff+1)*(d.x[r]>>probBits) + uint32(e)&0xfff
	if x < ransLow {
		x = x<<16 | uint32(d.word())
	}
	d.x[r] = x
	sym := int(e >> 24)
	if s == 0 && sym != symEscape {
		if sym >= maxLevel {
			m = uint32(sym - maxLevel)
			return c.recon[k][m], m
		}
		m = uint32(maxLevel - sym)
		return -c.recon[k][m], m
	}
	n := int64(sym - maxLevel)
	if sym == symEscape {
		neg := d.raw(r, 1) != 0
		n = int64(c.most[k]) + 1 + int64(d.escape(r))
		if neg {
			n = -n
		}
	}
	if s > 0 {
		n = n<<s | int64(d.raw(r, s))
	}
	n = min(max(n, -maxMagnitude), maxMagnitude)
	m = uint32(max(n, -n))
	if s == 0 && m <= maxLevel {
		if n < 0 {
			return -c.recon[k][m], m
		}
		return c.recon[k][m], m
	}
	return float32(n), m
}

// raw reads n bits.
func (d *ransDecoder) raw(r int, n uint) (v uint32) {
	for n > 0 {
		k := min(n, 8)
		n -= k
		w := uint32(probOne >> k)
		s := d.x[r] & (probOne - 1) / w
		d.take(r, s*w, w, probBits)
		v = v<<k | s
	}
	return v
}

func (d *ransDecoder) escape(r int) uint32 {
	n := uint(d.raw(r, 5))
	if n == 0 {
		return 0
	}
	return (1<<(n-1) | d.raw(r, n-1)) - 1
}
