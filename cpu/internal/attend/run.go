// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"unsafe"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// RunHeads is the largest number of heads of a Run.
const RunHeads = 3

// runTiles is the number of tiles that a Run holds: the current one, the next and the one to prefetch.
const runTiles = 4

// TileForm is how a Run reads the tiles of blocks of one form. The zero value stands for a form that it
// cannot read. The assembly knows the place of the fields up to forms.
type TileForm struct {
	kPlane, vPlane      int // bytes of a plane
	kBits, vBits        int
	kUnit, vUnit, noise float32
	forms               uint32 // bit 0: scales of K have 8 bits; bit 1: those of V

	rows             int
	kScales, vScales scalePlace
	kBytes, vBytes   int // of a packed side
	kTable, vTable   *byteTable
}

// scalePlace is where the scales of a side are: the base of those of 8 bits, those of rows, and the bytes of
// one.
type scalePlace struct{ base, rows, width int }

// TileForm returns the form of blocks of rows rows of dim values; noise is as in Terms.
func (k *Kernels) TileForm(kc, vc quant.Coding, rows, dim, dimV int, noise float32) (f TileForm) {
	if k.bytes == nil || k.bytes.softmaxTile == nil || dim != byteBlock || dimV != byteBlock ||
		rows == 0 || rows%TileRows != 0 || !kc.Format.Nested() || !vc.Format.Nested() {
		return TileForm{}
	}
	f = TileForm{kBits: kc.Format.Bits(), vBits: vc.Format.Bits(), kUnit: Unit(kc.Format, dim),
		vUnit: Unit(vc.Format, dimV), noise: noise, rows: rows, kBytes: kc.PackedBytes(rows, dim),
		vBytes: vc.PackedBytes(rows, dimV), kTable: &byteTables[kc.Format][0], vTable: &byteTables[vc.Format][1]}
	f.kPlane, f.vPlane = layout.PlaneBytes(rows, dim), layout.PlaneBytes(rows, dimV)
	f.kScales, f.vScales = scalesOf(kc, f.kBytes, rows), scalesOf(vc, f.vBytes, rows)
	if kc.Scale == quant.ScaleLog8 {
		f.forms |= 1
	}
	if vc.Scale == quant.ScaleLog8 {
		f.forms |= 2
	}
	return f
}

// scalesOf returns where the scales of a side are, which end it.
func scalesOf(c quant.Coding, bytes, rows int) scalePlace {
	at := bytes - c.ScaleBytes(rows)
	if c.Scale == quant.ScaleLog8 {
		return scalePlace{at, at + 4, 1}
	}
	return scalePlace{at, at, 2}
}

// Rows returns the rows of a block, 0 for the zero value.
func (f *TileForm) Rows() int { return f.rows }

// tile is a tile of a Run. The assembly knows the place of its fields.
type tile struct {
	k, v           *byte // the first row in the first plane
	kBase, kScales *byte // scales of the rows; kBase is the base of those of 8 bits
	vBase, vScales *byte
	form           *TileForm
}

func (t *tile) address() *byte { return (*byte)(unsafe.Pointer(t)) }

// Run computes attention over tiles of 32 rows of 64 values in bit planes, one after the other, for up to
// RunHeads heads that see every row. A tile is Put before it is the one that comes next to the current one.
//
//	Dots(0)
//	for i := range tiles {
//		Weigh(i)
//		Add(acc, i)
//	}
//
// Add begins with the inner products of the next tile: sums of V would wait for the softmax. Every step has
// the bits of DotPlanes, Scales and SoftmaxCut, and AddPlanes.
type Run struct {
	b     *byteKernels
	heads int
	q     []byte
	tiles [runTiles]tile
	m     *runMemory
}

// runMemory is the memory of a Run. Go puts an object of this size and without pointers at a multiple of 64
// bytes, where vectors lie best. The assembly knows the place of its fields.
type runMemory struct {
	dots   [2][RunHeads * TileRows]float32
	digits [RunHeads * DigitBytes]byte
	scales [TileRows]float32 // of V
	frac   [16]float32       // log8Frac
	units  [4]float32
	heads  RunState
	scale  float32
	_      [31]float32
}

// RunState are the values of a Run's heads.
type RunState struct {
	Sums   [4]float32 // of the exponentials of the tile that was weighed last
	Tops   [4]float32 // see Heads
	Energy [4]float32
}

// Begin starts a run of heads queries in digits and returns their state, which has the Energy and the Tops to
// be set. K's scales are multiplied by scale.
func (r *Run) Begin(k *Kernels, q []byte, heads int, scale float32) *RunState {
	if r.m == nil {
		r.m = &runMemory{frac: log8Frac}
	}
	r.b, r.heads, r.q, r.m.scale = k.bytes, heads, q[:heads*QueryBytes(byteBlock)], scale
	return &r.m.heads
}

// End drops all references.
func (r *Run) End() {
	r.b, r.q, r.tiles = nil, nil, [runTiles]tile{}
}

// Put makes rows [r0, r0+TileRows) of a block tile i. k and v are its sides.
func (r *Run) Put(i int, f *TileForm, k, v []byte, r0 int) {
	k, v = k[:f.kBytes:f.kBytes], v[:f.vBytes:f.vBytes] // scales are last, so rows behind them panic
	at := r0 * (byteBlock / 8)
	t := &r.tiles[i%runTiles]
	t.k, t.v, t.form = &k[at], &v[at], f
	t.kBase, t.kScales = f.kScales.at(k, r0)
	t.vBase, t.vScales = f.vScales.at(v, r0)
}

// at returns the base of the scales of a side, and those of the rows from r0 on.
func (p *scalePlace) at(side []byte, r0 int) (base, scales *byte) {
	_ = side[p.rows+(r0+TileRows)*p.width-1]
	return &side[p.base], &side[p.rows+r0*p.width]
}

// Dots computes the inner products of tile i.
func (r *Run) Dots(i int) {
	t := &r.tiles[i%runTiles]
	r.b.dotTile[t.form.kBits-1][r.heads-1](&r.m.dots[i%2][0], &r.q[0], t.k, t.form.kPlane, &t.form.kTable[0][0])
}

// Weigh computes the weights of tile i as SoftmaxCut does, and prefetches tile i+2 if it was Put. bad
// reports that SoftmaxCut would report false; the weights are then undefined. rose reports that some top
// did.
func (r *Run) Weigh(i int, ahead bool) (bad, rose bool) {
	var next *byte
	if ahead {
		next = r.tiles[(i+2)%runTiles].address()
	}
	flags := r.b.softmaxTile[r.heads-1]((*byte)(unsafe.Pointer(r.m)), r.tiles[i%runTiles].address(), next,
		&r.m.dots[i%2][0])
	return flags&1 != 0, flags&2 != 0
}

// Add adds the rows of tile i times their weights to acc, [heads, 64]. With more, it first computes the inner
// products of tile i+1.
func (r *Run) Add(acc []float32, i int, more bool) {
	if more {
		r.Dots(i + 1)
	}
	t := &r.tiles[i%runTiles]
	_ = acc[r.heads*byteBlock-1]
	r.b.addTile[t.form.vBits-1][r.heads-1](&acc[0], &r.m.digits[0], &r.m.units[0], t.v, t.form.vPlane,
		&t.form.vTable[0][0])
}

// The assembly has these numbers.
var (
	_ = [1]struct{}{}[unsafe.Offsetof(tile{}.form)-48]
	_ = [1]struct{}{}[unsafe.Offsetof(TileForm{}.forms)-44]
	_ = [1]struct{}{}[unsafe.Offsetof(runMemory{}.digits)-768]
	_ = [1]struct{}{}[unsafe.Offsetof(runMemory{}.scale)-(768+384+128+64+64)]
	_ = [1]struct{}{}[unsafe.Sizeof(runMemory{})-1536]
)
