// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package scan

import (
	"golang.org/x/sys/cpu"

	"github.com/kvist-project/kvist/quant/trellis"
)

//go:generate sh generate.sh

// native returns the assembly kernels that this processor supports, the best first.
func native() []*kernels {
	var list []*kernels
	x := &cpu.X86
	if x.HasAVX2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ && x.HasAVX512VBMI &&
		x.HasAVX512VNNI && x.HasAVX512GFNI {
		list = append(list, &kernels{"avx512", wideKernels.scores, wideKernels.unpack, wideKernels.pack, wideKernels.dots,
			finishOf(finishAVX512), search512})
	}
	if x.HasAVX2 {
		list = append(list, &kernels{"avx2", narrowKernels.scores, narrowKernels.unpack, narrowKernels.pack,
			narrowKernels.dots, finishOf(finishAVX2), search256})
	}
	return list
}

type (
	scoresFunc func(out *float32, tile *byte, stride, n, cells, prev int, mask uint64, codes *int8, start int32,
		scale float32, table *byte)
	unpackFunc func(dst, tile *byte, cells, prev int, mask uint64, table *byte)
	dotsFunc   func(out *float32, stride int, levels *byte, codes *int8, n int, starts *int32, scales *float32)
)

// isa are the kernels of an instruction set, by width where they depend on it.
type isa struct {
	scoresOf [trellis.MaxWidth + 1]scoresFunc
	unpackOf [trellis.MaxWidth + 1]unpackFunc
	tables   [trellis.MaxWidth + 1][]byte
	// dotsOf are the kernels for so many queries at once, the largest number first.
	dotsOf []group
}

type group struct {
	queries int
	dots    dotsFunc
}

var wideKernels = isa{
	scoresOf: [...]scoresFunc{nil, scores1AVX512, scores2AVX512, scores3AVX512, scores4AVX512, scores5AVX512, scores6AVX512},
	unpackOf: [...]unpackFunc{nil, unpack1AVX512, unpack2AVX512, unpack3AVX512, unpack4AVX512, unpack5AVX512, unpack6AVX512},
	tables:   wideTables(),
	dotsOf:   []group{{8, dots8AVX512}, {4, dots4AVX512}},
}

var narrowKernels = isa{
	scoresOf: [...]scoresFunc{nil, scores1AVX2, scores2AVX2, scores3AVX2, scores4AVX2, scores5AVX2, scores6AVX2},
	unpackOf: [...]unpackFunc{nil, unpack1AVX2, unpack2AVX2, unpack3AVX2, unpack4AVX2, unpack5AVX2, unpack6AVX2},
	tables:   narrowTables(),
	dotsOf:   []group{{4, dots4AVX2}},
}

// wideTables are the levels by index, as _gen/scores512.go joins it from window and member. From 5 bits on they
// are by subset and member.
func wideTables() (t [trellis.MaxWidth + 1][]byte) {
	for b := 1; b <= trellis.MaxWidth; b++ {
		if b >= 5 {
			t[b], _ = trellis.ScanLevels(b)
			continue
		}
		// Where the window starts, and the bits of the member, for each table.
		layouts := [...][]struct {
			window int
			member []int
		}{
			1: {{0, nil}, {1, nil}, {2, nil}},
			2: {{0, []int{4}}, {1, []int{5}}, {2, []int{0}}, {2, []int{1}}},
			3: {{0, []int{4, 5}}, {2, []int{0, 1}}},
			4: {{0, []int{4, 5, 6}}, {2, []int{0, 1, 6}}},
		}[b]
		for _, l := range layouts {
			for index := range max(64, 8<<b) {
				at := index >> l.window & 15
				for i, bit := range l.member {
					at |= index >> bit & 1 << (4 + i)
				}
				t[b] = append(t[b], windows[b][at])
			}
		}
	}
	return t
}

// narrowTables are the levels, repeated to 16.
func narrowTables() (t [trellis.MaxWidth + 1][]byte) {
	for b := 1; b <= trellis.MaxWidth; b++ {
		levels, _ := trellis.ScanLevels(b)
		for len(t[b]) < max(16, len(levels)) {
			t[b] = append(t[b], levels...)
		}
	}
	return t
}

// before returns where the path before a run lies, from the start of the run, and a mask for it.
func (r *run) before() (prev int, mask uint64) {
	if r.path < 0 {
		return 0, 0
	}
	return r.path - r.offset, 0xffff
}

func (k *isa) scores(out []float32, s *Section, tiles []byte, q *Query, _ []uint8) {
	clear(out)
	n := len(out) / trellis.TileRows
	if n == 0 {
		return
	}
	at := 0
	for i := range s.runs {
		r := &s.runs[i]
		prev, mask := r.before()
		k.scoresOf[r.width](&out[0], &tiles[r.offset], s.tileBytes, n, r.cells, prev, mask, &q.codes[at], q.starts[i],
			q.scales[i], &k.tables[r.width][0])
		at += trellis.CellDim * r.cells
	}
}

func (k *isa) unpack(dst []uint8, tile []byte, r *run) {
	prev, mask := r.before()
	k.unpackOf[r.width](&dst[0], &tile[r.offset], r.cells, prev, mask, &k.tables[r.width][0])
}

// group returns the group of the first of n queries.
func (k *isa) group(n int) group {
	for _, g := range k.dotsOf[:len(k.dotsOf)-1] {
		if n > k.dotsOf[len(k.dotsOf)-1].queries {
			return g
		}
	}
	return k.dotsOf[len(k.dotsOf)-1]
}

func (k *isa) pack(p *packed, s *Section, qs []*Query) {
	p.codes, p.starts, p.scales = p.codes[:0], p.starts[:0], p.scales[:0]
	for len(qs) > 0 {
		g := k.group(len(qs)).queries
		n := min(g, len(qs))
		for v := 0; v < s.coded(); v += 4 {
			for i := range g {
				if i < n {
					p.codes = append(p.codes, qs[i].codes[v:v+4]...)
				} else {
					p.codes = append(p.codes, 0, 0, 0, 0)
				}
			}
		}
		for r := range s.runs {
			for i := range g {
				if i < n {
					p.starts, p.scales = append(p.starts, qs[i].starts[r]), append(p.scales, qs[i].scales[r])
				} else {
					p.starts, p.scales = append(p.starts, 0), append(p.scales, 0)
				}
			}
		}
		qs = qs[n:]
	}
}

func (k *isa) dots(out []float32, stride int, s *Section, levels []uint8, qs []*Query, p *packed) {
	codes, runs := 0, 0
	for done := 0; done < len(qs); {
		g := k.group(len(qs) - done)
		n := min(g.queries, len(qs)-done)
		to, step := out[done*stride:], stride
		if n < g.queries {
			p.out = resize(p.out, g.queries*trellis.TileRows)
			to, step = p.out, trellis.TileRows
		}
		for i := range g.queries {
			clear(to[i*step:][:trellis.TileRows])
		}
		at := 0
		for i := range s.runs {
			vectors := 4 * s.runs[i].cells
			g.dots(&to[0], step, &levels[at], &p.codes[codes], vectors, &p.starts[runs], &p.scales[runs])
			at += 64 * vectors
			codes += 4 * g.queries * vectors
			runs += g.queries
		}
		if n < g.queries {
			for i := range n {
				copy(out[(done+i)*stride:][:trellis.TileRows], to[i*step:])
			}
		}
		done += n
	}
}

func finishOf(finish func(masks *uint16, scores *float32, factors *byte, table, norms *float32, n int, threshold float32)) func([]uint16, []float32, *Factors, []float32, float32) {
	return func(masks []uint16, scores []float32, f *Factors, norms []float32, threshold float32) {
		var table, norm *float32
		if f.Table != nil {
			table = &f.Table[0]
		}
		if norms != nil {
			norm = &norms[0]
		}
		finish(&masks[0], &scores[0], &f.Codes[0], table, norm, len(masks), threshold)
	}
}

// search calls a kernel for every stretch of components of one width.
func (p *paths) search(x []float32, widths []uint8, kernel func(x *float32, n int, levels *float32, members int, from *uint16, member *byte, cost *float32)) {
	p.begin()
	for lo := 0; lo < len(widths); {
		hi := lo
		for hi < len(widths) && widths[hi] == widths[lo] {
			hi++
		}
		if widths[lo] > 0 {
			levels := trellis.Levels(int(widths[lo]))
			kernel(&x[16*lo], hi-lo, &levels[0], len(levels)/4, &p.from[8*lo], &p.members[64*lo], &p.cost[0][0])
		}
		lo = hi
	}
}

func search512(p *paths, x []float32, widths []uint8) { p.search(x, widths, searchAVX512) }

func search256(p *paths, x []float32, widths []uint8) { p.search(x, widths, searchAVX2) }
