// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// RelevanceConfig says which queries count. The zero value is the window of the last 64.
type RelevanceConfig struct {
	// Window is the number of queries of a window. 0: 64; at most 2^20.
	Window int
	// Mix is the share of all queries against those of the window, in [0, 1]: 0 looks at the
	// window only, 1 at all queries, between is global-local:
	//
	//	relevance^2 = (1-Mix) * mean square in the window + Mix * mean square over all
	Mix float64
	// HalfLife is the number of queries after which what was seen counts half in "all queries".
	// It takes effect a window at a time. 0: nothing fades.
	HalfLife float64
	// Power is that of the sums handed in. 0 means 2. With 1 the relevance is the mean
	// attention, mixed without squares.
	Power int
	// MaxTokens bounds the positions taken, and so the state. 0: 2^20.
	MaxTokens int
	// Sees is the number of tokens that a query sees, its own included, in a layer with a window: one at
	// position p sees (p-Sees, p]. 0: all up to p. It is the model's, so texts of weightings lack it.
	Sees int64
}

func (c RelevanceConfig) withDefaults() RelevanceConfig {
	if c.Window == 0 {
		c.Window = 64
	}
	if c.Power == 0 {
		c.Power = 2
	}
	if c.MaxTokens == 0 {
		c.MaxTokens = 1 << 20
	}
	return c
}

// validate checks the ranges of the fields.
//
// Errors: quant.ErrShape.
func (c RelevanceConfig) validate() error {
	d := c.withDefaults()
	switch {
	case d.Window < 1 || d.Window > 1<<20:
		return shapeErr("relevance: window of %d queries, want 1 to %d", c.Window, 1<<20)
	case !(d.Mix >= 0 && d.Mix <= 1):
		return shapeErr("relevance: mix %v, want 0 to 1", c.Mix)
	case !(d.HalfLife >= 0) || math.IsInf(d.HalfLife, 0):
		return shapeErr("relevance: half-life of %v queries, want a number from 0 up", c.HalfLife)
	case d.Power != 1 && d.Power != 2:
		return shapeErr("relevance: power %d, want 1 or 2", c.Power)
	case d.Sees < 0 || d.Sees > quant.MaxTokens:
		return shapeErr("relevance: queries see %d tokens, want 0 (all) to %d", c.Sees, int64(quant.MaxTokens))
	case d.MaxTokens < 1 || int64(d.MaxTokens) > math.MaxInt32:
		return shapeErr("relevance: at most %d tokens, want 1 to %d", c.MaxTokens, math.MaxInt32)
	}
	return nil
}

// RowSums are the sums of attention probabilities that a backend's Relevance returned for the
// rows of a block, in the backend's own terms: row r stands at position Base+Pos[r], counted
// from the first token of the sequence.
type RowSums struct {
	Base  int64
	Pos   []uint16  // [rows], or nil: row r stands at Base+r
	Count []uint16  // [rows] adjacent tokens merged into the row, or nil: all 1
	Sum   []float32 // [rows] sum over queries and query heads of p^power
}

// maxFar bounds the number of past windows that are told apart.
const maxFar = 1024

// stretch is a run of queries: those at positions [first, end), n query heads in all.
type stretch struct {
	first, end int64
	n          float64
}

// seen returns how many of the stretch's query heads stood at position t or after it.
func (s stretch) seen(t int64) float64 {
	switch {
	case t <= s.first:
		return s.n
	case t >= s.end:
		return 0
	}
	return s.n * float64(s.end-t) / float64(s.end-s.first)
}

// seenIn returns how many of the stretch's query heads stood at positions [from, to).
func (s stretch) seenIn(from, to int64) float64 {
	n := min(s.end, to) - max(s.first, from)
	if n <= 0 {
		return 0
	}
	return s.n * float64(n) / float64(s.end-s.first)
}

// cut moves what lies from position end on to just before it.
func (s *stretch) cut(end int64) {
	if s.end > end {
		s.first, s.end = min(s.first, end-1), end
	}
}

// Relevance adds up how much attention the tokens of one KV head get: the root mean square of
// attention probabilities over the queries that saw the token, and over all query heads that
// share the KV head. Dividing by those that saw it matters: a plain sum over all queries ranks
// old tokens first whatever they are worth (measured in the package's tests).
//
// Queries are counted in windows of RelevanceConfig.Window. A window is exact when it is full;
// while one fills, the mean square is over it and the fading rest of the one before,
//
//	(current + f*previous) / (queries current + f*queries previous), f = 1 - filled/Window
//
// so that no attention of a single query needs to be kept. A batch may not cross the end of a
// window, which the first query starts.
//
// State: 4 bytes a token, and 4 more for each of Mix > 0 and Mix < 1 (sums are
// float32 between calls, as the backend's own are, and float64 within a call), plus at most 24
// KiB. Results do not depend on how a window was split into batches, but for that rounding.
//
// A Relevance is not safe for concurrent use. Clone serves a fork of the sequence.
//
// Source: SnapKV (2024, arXiv 2404.14469) for the window, H2O (2023, arXiv 2306.14048) for all
// queries; the root mean square and the division by what was seen are the project's own.
type Relevance struct {
	cfg            RelevanceConfig
	fade           float64 // of what is older than a window, per window
	next           int64   // queries at earlier positions are done with
	filled         int     // queries in the current window
	now, last      stretch // current and previous window
	far            []stretch
	cur, prev, old []float32 // [tokens] sums; old includes prev
}

// NewRelevance returns an accumulator that has seen nothing.
//
// Errors: quant.ErrShape.
func NewRelevance(cfg RelevanceConfig) (*Relevance, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r := &Relevance{cfg: cfg.withDefaults(), fade: 1}
	if cfg.HalfLife > 0 {
		r.fade = math.Exp2(-float64(r.cfg.Window) / cfg.HalfLife)
	}
	return r, nil
}

// room returns how many queries the next batch may hold: what is left of the current window.
func (r *Relevance) room() int {
	if r.filled >= r.cfg.Window {
		return r.cfg.Window
	}
	return r.cfg.Window - r.filled
}

// tokens returns the number of tokens known: one more than the highest position seen.
func (r *Relevance) tokens() int { return len(r.cur) }

// stateBytes returns the bytes that the accumulator holds on to.
func (r *Relevance) stateBytes() int64 {
	return 4*int64(cap(r.cur)+cap(r.prev)+cap(r.old)) + 24*int64(cap(r.far)) + 256
}

// clone returns an independent copy.
func (r *Relevance) clone() *Relevance {
	c := *r
	c.far = slices.Clone(r.far)
	c.cur, c.prev, c.old = slices.Clone(r.cur), slices.Clone(r.prev), slices.Clone(r.old)
	return &c
}

// truncate forgets the tokens from n on. What queries at later positions read of the others
// stays counted: keep a Clone where that must not be.
func (r *Relevance) truncate(n int) {
	if n = max(n, 0); n >= len(r.cur) {
		return
	}
	end := int64(n)
	r.next = min(r.next, end)
	// Tokens that will take the places of those forgotten were not seen by the queries so far.
	r.now.cut(end)
	r.last.cut(end)
	for i := range r.far {
		r.far[i].cut(end)
	}
	r.cur = r.cur[:n]
	if r.prev != nil {
		r.prev = r.prev[:n]
	}
	if r.old != nil {
		r.old = r.old[:n]
	}
}

// Queries is a batch of queries at adjacent positions.
type Queries struct {
	First int64 // position of the first, counted from the first token of the sequence
	N     int   // queries
	Group int   // query heads a query holds: the GQA ratio
}

// Add takes the sums of a batch of queries over all rows they attended to, in any number of
// parts. Rows that are left out got no attention. Batches come in the order of their positions.
//
// Errors: quant.ErrShape, also for a batch that crosses the end of a window or comes before an
// earlier one;
// quant.ErrTooLarge for positions from MaxTokens on; *ValueError wrapping quant.ErrRange for
// sums that are negative, NaN or infinite. Nothing is added then.
func (r *Relevance) Add(q Queries, parts ...RowSums) error {
	if q.Group < 1 || q.Group > quant.MaxHeads {
		return shapeErr("relevance: queries of %d heads, want 1 to %d", q.Group, quant.MaxHeads)
	}
	if err := r.fits(q.First, q.N); err != nil {
		return err
	}
	tokens := 0
	for i := range parts {
		end, err := r.check(&parts[i])
		if err != nil {
			return err
		}
		tokens = max(tokens, end)
	}
	if q.N == 0 {
		return nil
	}
	if r.filled == r.cfg.Window {
		r.rotate()
	}
	r.grow(tokens)
	for i := range parts {
		r.addRows(&parts[i])
	}
	if r.now.n == 0 {
		r.now.first = q.First
	}
	r.now.end, r.now.n = q.First+int64(q.N), r.now.n+float64(q.N*q.Group)
	r.next = r.now.end
	r.filled += q.N
	return nil
}

// Skip passes over n queries from position first on whose attention is not known. They take their
// places in the window, so that batches which follow end where they would have, and count nowhere
// else. A window of which all queries are passed over leaves no trace.
//
// Errors: as Add.
func (r *Relevance) Skip(first int64, n int) error {
	if err := r.fits(first, n); err != nil || n == 0 {
		return err
	}
	if r.filled == r.cfg.Window {
		r.rotate()
	}
	r.next = first + int64(n)
	r.filled += n
	return nil
}

// fits checks that a batch of n queries from position first on can be the next.
func (r *Relevance) fits(first int64, n int) error {
	if n < 0 || n > r.room() {
		return shapeErr("relevance: batch of %d queries, want at most %d", n, r.room())
	}
	if first < r.next || first > quant.MaxTokens {
		return shapeErr("relevance: batch at position %d, want %d to %d", first, r.next,
			int64(quant.MaxTokens))
	}
	return nil
}

// check returns one more than the highest position of the rows.
func (r *Relevance) check(p *RowSums) (int, error) {
	n := len(p.Sum)
	if p.Pos != nil && len(p.Pos) != n || p.Count != nil && len(p.Count) != n {
		return 0, shapeErr("relevance: %d positions and %d counts of %d rows", len(p.Pos),
			len(p.Count), n)
	}
	if p.Base < 0 || p.Base > quant.MaxTokens {
		return 0, shapeErr("relevance: rows from position %d, want 0 to %d", p.Base,
			int64(quant.MaxTokens))
	}
	end := int64(0)
	for i, s := range p.Sum {
		if !(s >= 0) || math.IsInf(float64(s), 0) {
			return 0, &ValueError{"attention sum", i, float64(s), "a finite number from 0 up",
				quant.ErrRange}
		}
		pos, count := p.at(i)
		if count == 0 {
			return 0, shapeErr("relevance: row %d stands for no token", i)
		}
		end = max(end, pos+count)
	}
	if end > int64(r.cfg.MaxTokens) {
		return 0, tooLarge("relevance: position %d, limit %d tokens", end-1, r.cfg.MaxTokens)
	}
	return int(end), nil
}

func (p *RowSums) at(i int) (pos, count int64) {
	pos, count = p.Base+int64(i), 1
	if p.Pos != nil {
		pos = p.Base + int64(p.Pos[i])
	}
	if p.Count != nil {
		count = int64(p.Count[i])
	}
	return pos, count
}

// addRows shares the attention of a merged row among its tokens.
func (r *Relevance) addRows(p *RowSums) {
	for i, s := range p.Sum {
		pos, count := p.at(i)
		share := float64(s) / math.Pow(float64(count), float64(r.cfg.Power))
		for t := pos; t < pos+count; t++ {
			r.cur[t] = float32(min(float64(r.cur[t])+share, math.MaxFloat32))
		}
	}
}

func (r *Relevance) grow(n int) {
	add := n - len(r.cur)
	if add <= 0 {
		return
	}
	r.cur = append(r.cur, make([]float32, add)...)
	if r.cfg.Mix < 1 {
		r.prev = append(r.prev, make([]float32, add)...)
	}
	if r.cfg.Mix > 0 {
		r.old = append(r.old, make([]float32, add)...)
	}
}

// rotate closes the current window.
func (r *Relevance) rotate() {
	if r.now.n == 0 { // all of its queries were passed over
		r.filled = 0
		return
	}
	if r.cfg.Mix > 0 {
		for t, s := range r.old {
			r.old[t] = float32(min(r.fade*float64(s)+float64(r.cur[t]), math.MaxFloat32))
		}
		for i := range r.far {
			r.far[i].n *= r.fade
		}
		r.far = append(r.far, r.now)
		if len(r.far) > maxFar {
			// The oldest two become one: who of that time saw what is then known less exactly.
			a, b := r.far[0], r.far[1]
			r.far[1] = stretch{a.first, b.end, a.n + b.n}
			r.far = slices.Delete(r.far, 0, 1)
		}
	}
	if r.cfg.Mix < 1 {
		r.cur, r.prev = r.prev, r.cur
	}
	clear(r.cur)
	r.last, r.now, r.filled = r.now, stretch{}, 0
}

// Values writes the relevance of every token: root mean square attention (power 1: mean
// attention), in [0, 1] up to rounding. A token that no query saw yet gets the mean of the
// others, because nothing speaks for or against it; 0 where no query saw anything.
//
// dst: [Tokens] or longer; tokens beyond those known count as not seen.
//
// Errors: quant.ErrShape.
func (r *Relevance) Values(dst []float64) error {
	if len(dst) < len(r.cur) {
		return shapeErr("relevance: room for %d tokens, want %d", len(dst), len(r.cur))
	}
	f := 1 - float64(r.filled)/float64(r.cfg.Window)
	if r.now.n == 0 {
		f = 1 // of the current window nothing is known: the one before stands for it
	}
	after := 0.0 // query heads of the far stretches that lie wholly at or after the token
	for _, s := range r.far {
		after += s.n
	}
	var sum, count float64
	i := 0
	near := r.nearby()
	for t := range dst {
		for i < len(r.far) && r.far[i].first < int64(t) {
			after -= r.far[i].n
			i++
		}
		if t >= len(r.cur) {
			dst[t] = -1
			continue
		}
		var x float64
		var ok bool
		if r.cfg.Sees == 0 {
			x, ok = r.value(int64(t), f, after, i)
		} else {
			end := int64(t) + r.cfg.Sees // of the positions that see the token
			x, ok = r.mean(int64(t), f, r.now.seenIn(int64(t), end), r.last.seenIn(int64(t), end),
				near.seen(int64(t), end))
		}
		if !ok {
			dst[t] = -1
			continue
		}
		if r.cfg.Power == 2 {
			x = math.Sqrt(x)
		}
		dst[t] = x
		sum, count = sum+x, count+1
	}
	mean := 0.0
	if count > 0 {
		mean = sum / count
	}
	for t, x := range dst {
		if x < 0 {
			dst[t] = mean
		}
	}
	return nil
}

// value returns the mean of p^power of a token; false where no query saw it. passed is the number
// of far stretches that begin before the token, the last of which may reach past it.
func (r *Relevance) value(t int64, f, after float64, passed int) (float64, bool) {
	far := max(after, 0)
	if passed > 0 {
		far += r.far[passed-1].seen(t)
	}
	return r.mean(t, f, r.now.seen(t), r.last.seen(t), far)
}

// mean is value, given how many query heads of the current window, of the one before and of the far
// stretches saw the token.
func (r *Relevance) mean(t int64, f, now, last, far float64) (float64, bool) {
	var window, all, seenWindow, seenAll float64
	if r.cfg.Mix < 1 {
		seenWindow = now + f*last
		if seenWindow > 0 {
			window = (float64(r.cur[t]) + f*float64(r.prev[t])) / seenWindow
		}
	}
	if r.cfg.Mix > 0 {
		seenAll = now + far
		if seenAll > 0 {
			all = (float64(r.cur[t]) + float64(r.old[t])) / seenAll
		}
	}
	if seenWindow == 0 && seenAll == 0 {
		return 0, false
	}
	return (1-r.cfg.Mix)*window + r.cfg.Mix*all, true
}

// nearby counts the query heads of the far stretches in a range of positions that moves ahead.
type nearby struct {
	far    []stretch
	before []float64 // [stretches+1] query heads of the stretches before each
	lo, hi int       // stretches that reach into the range
}

func (r *Relevance) nearby() *nearby {
	n := &nearby{far: r.far}
	if r.cfg.Sees == 0 {
		return n
	}
	n.before = make([]float64, len(r.far)+1)
	for i, s := range r.far {
		n.before[i+1] = n.before[i] + s.n
	}
	return n
}

// seen returns the query heads at positions [from, to), neither of which ever falls.
func (n *nearby) seen(from, to int64) float64 {
	for n.lo < len(n.far) && n.far[n.lo].end <= from {
		n.lo++
	}
	for n.hi < len(n.far) && n.far[n.hi].first < to {
		n.hi++
	}
	switch n.hi - n.lo {
	case 0:
		return 0
	case 1:
		return n.far[n.lo].seenIn(from, to)
	}
	between := max(0, n.before[n.hi-1]-n.before[n.lo+1])
	return n.far[n.lo].seenIn(from, to) + between + n.far[n.hi-1].seenIn(from, to)
}
