// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package matmul

import "unsafe"

// The wrappers of the kernels of a Matrix access the last element that the assembly accesses first,
// as those in isa_amd64.go.

func guardUnpack(dst, codes []uint8, bits, groups int) {
	_ = dst[groups*panelBytes8-1]
	_ = codes[groups*64*bits-1]
}

func unpackAVX512(dst, codes []uint8, bits int, consts *[16]uint8, groups int) {
	guardUnpack(dst, codes, bits, groups)
	switch bits {
	case 2:
		unpack2AVX512(&dst[0], &codes[0], &consts[0], groups)
	case 3:
		unpack3AVX512(&dst[0], &codes[0], &consts[0], groups)
	case 4:
		unpack4AVX512(&dst[0], &codes[0], &consts[0], groups)
	case 5:
		unpack5AVX512(&dst[0], &codes[0], &consts[0], groups)
	default:
		unpack6AVX512(&dst[0], &codes[0], &consts[0], groups)
	}
}

func unpackAVX2(dst, codes []uint8, bits int, consts *[16]uint8, groups int) {
	guardUnpack(dst, codes, bits, groups)
	switch bits {
	case 2:
		unpack2AVX2(&dst[0], &codes[0], &consts[0], groups)
	case 3:
		unpack3AVX2(&dst[0], &codes[0], &consts[0], groups)
	case 4:
		unpack4AVX2(&dst[0], &codes[0], &consts[0], groups)
	case 5:
		unpack5AVX2(&dst[0], &codes[0], &consts[0], groups)
	default:
		unpack6AVX2(&dst[0], &codes[0], &consts[0], groups)
	}
}

func guardScales(dst []float32, base []uint16, steps []int8, n, per int) {
	_ = dst[n*panelWidth-1]
	_ = base[n/per*panelWidth-1]
	if steps != nil {
		_ = steps[n*panelWidth-1]
	}
}

func scalesOf512(dst []float32, base []uint16, steps []int8, n, per int) {
	guardScales(dst, base, steps, n, per)
	if steps == nil {
		scalesAVX512(&dst[0], &base[0], n)
		return
	}
	stepsAVX512(&dst[0], &base[0], &steps[0], n/per, per)
}

func scalesOf256(dst []float32, base []uint16, steps []int8, n, per int) {
	guardScales(dst, base, steps, n, per)
	if steps == nil {
		scalesAVX2(&dst[0], &base[0], n)
		return
	}
	stepsAVX2(&dst[0], &base[0], &steps[0], n/per, per)
}

// guardPanel checks a panel but for its codes, and returns its minima or a pointer that no kernel follows.
func guardPanel(p panel) *float32 {
	n := p.steps() * panelWidth
	_ = p.scales[n-1]
	if p.mins == nil {
		return nil
	}
	_ = p.mins[n-1]
	return &p.mins[0]
}

func expandOf512(dst []float32, p panel) {
	mins := guardPanel(p)
	_ = p.codes[p.groups*panelBytes8-1]
	_ = dst[p.groups*groupSize*panelWidth-1]
	switch {
	case p.step == 32 && mins == nil:
		expandQ8AVX512(&dst[0], &p.codes[0], &p.scales[0], p.groups)
	case p.step == 32:
		expand32MinAVX512(&dst[0], &p.codes[0], &p.scales[0], mins, p.groups)
	case mins == nil:
		expand16AVX512(&dst[0], &p.codes[0], &p.scales[0], mins, p.groups)
	default:
		expand16MinAVX512(&dst[0], &p.codes[0], &p.scales[0], mins, p.groups)
	}
}

func expandOf256(dst []float32, p panel) {
	mins := guardPanel(p)
	_ = p.codes[p.groups*panelBytes8-1]
	_ = dst[p.groups*groupSize*panelWidth-1]
	switch {
	case p.step == 32 && mins == nil:
		expandQ8AVX2(&dst[0], &p.codes[0], &p.scales[0], p.groups)
	case p.step == 32:
		expand32MinAVX2(&dst[0], &p.codes[0], &p.scales[0], mins, p.groups)
	case mins == nil:
		expand16AVX2(&dst[0], &p.codes[0], &p.scales[0], mins, p.groups)
	default:
		expand16MinAVX2(&dst[0], &p.codes[0], &p.scales[0], mins, p.groups)
	}
}

func halvesOf256(t tile, row int) {
	guardTile(t)
	n := 2 * t.rows * t.groups
	_ = t.halfSum[n-1]
	_ = t.halfBias[n-1]
	halvesAVX2(&t.halfSum[row], &t.halfBias[row], &t.codes[row*groupSize], &t.scale[row], t.rows, t.groups)
}

// sides returns the sums of activations that a panel's kernels read, and checks the other operands.
func sides(c []float32, ldc int, p panel, t tile) (mins, sum *float32, bias *int32) {
	guardTile(t)
	_ = c[(t.rows-1)*ldc+panelWidth-1]
	mins = guardPanel(p)
	if p.step == groupSize {
		return mins, &t.sum[0], &t.bias[0]
	}
	n := 2 * t.rows * t.groups
	_ = t.halfSum[n-1]
	_ = t.halfBias[n-1]
	return mins, &t.halfSum[0], &t.halfBias[0]
}

// tileFunc is the signature of the generated tiles.
type tileFunc = func(c *float32, ldc int, codes *byte, scales, mins *float32, aq *int8, sa, as *float32,
	ai *int32, groups int)

// tiles512 and tiles256 hold the kernels by the index of a kind and of a number of rows.
var (
	tiles512 = [3][3]tileFunc{
		{tile32MinRows1AVX512, tile32MinRows4AVX512, tile32MinRows16AVX512},
		{tile16Rows1AVX512, tile16Rows4AVX512, tile16Rows16AVX512},
		{tile16MinRows1AVX512, tile16MinRows4AVX512, tile16MinRows16AVX512},
	}
	tiles256 = [3][2]tileFunc{
		{tile32MinRows1AVX2, tile32MinRows4AVX2},
		{tile16Rows1AVX2, tile16Rows4AVX2},
		{tile16MinRows1AVX2, tile16MinRows4AVX2},
	}
)

// kind returns the index of a panel's kernels in tiles512 and tiles256, where it has one, and in
// rows512 and rows256.
func (p panel) kind() int {
	switch {
	case p.step == groupSize && p.mins == nil:
		return 3
	case p.step == groupSize:
		return 0
	case p.mins == nil:
		return 1
	}
	return 2
}

// rowFunc is the signature of the generated kernels for one row of activations.
type rowFunc = func(c *float32, codes, consts, scales *byte, steps *int8, mins *byte, minSteps *int8,
	aq *int8, sa, as *float32, ai *int32, spans, per int)

// A rowKey finds a kernel: the bits of codes, the inputs of a scale, whether there are minima, and how
// scales are stored.
type rowKey struct {
	bits, step           int
	mins, shared, floats bool
}

var rows512 = map[rowKey]rowFunc{
	{2, 16, true, true, false}:   row2Of16MinStepsAVX512,
	{3, 16, false, true, false}:  row3Of16StepsAVX512,
	{4, 32, false, false, true}:  row4Of32AVX512,
	{4, 32, false, false, false}: row4Of32HalfAVX512,
	{4, 32, false, true, false}:  row4Of32StepsAVX512,
	{4, 32, true, false, false}:  row4Of32MinHalfAVX512,
	{4, 32, true, true, false}:   row4Of32MinStepsAVX512,
	{5, 32, false, false, false}: row5Of32HalfAVX512,
	{5, 32, true, false, false}:  row5Of32MinHalfAVX512,
	{5, 32, true, true, false}:   row5Of32MinStepsAVX512,
	{6, 16, false, true, false}:  row6Of16StepsAVX512,
	{8, 32, false, false, false}: row8Of32HalfAVX512,
}

var rows256 = map[rowKey]rowFunc{
	{2, 16, true, true, false}:   row2Of16MinStepsAVX2,
	{3, 16, false, true, false}:  row3Of16StepsAVX2,
	{4, 32, false, false, true}:  row4Of32AVX2,
	{4, 32, false, false, false}: row4Of32HalfAVX2,
	{4, 32, false, true, false}:  row4Of32StepsAVX2,
	{4, 32, true, false, false}:  row4Of32MinHalfAVX2,
	{4, 32, true, true, false}:   row4Of32MinStepsAVX2,
	{5, 32, false, false, false}: row5Of32HalfAVX2,
	{5, 32, true, false, false}:  row5Of32MinHalfAVX2,
	{5, 32, true, true, false}:   row5Of32MinStepsAVX2,
	{6, 16, false, true, false}:  row6Of16StepsAVX2,
	{8, 32, false, false, false}: row8Of32HalfAVX2,
}

// rowKernel returns the kernel of a form, nil if there is none. Those with minima read codes without
// an offset.
func rowKernel(list map[rowKey]rowFunc, f Form) rowFunc {
	if f.Mins && (f.Offset != 0 || f.Table != nil) {
		return nil
	}
	return list[rowKey{f.Bits, f.Step, f.Mins, f.Span > f.Step, f.Wide}]
}

func rowAVX512(c []float32, p storedPanel, t tile) bool {
	f := rowKernel(rows512, p.form)
	if f == nil {
		return false
	}
	p.run(f, c, t, 0)
	return true
}

func rowAVX2(c []float32, p storedPanel, t tile) bool {
	f := rowKernel(rows256, p.form)
	if f == nil {
		return false
	}
	for h := 0; h < panelWidth; h += panelWidth / 2 {
		p.run(f, c, t, h)
	}
	return true
}

// run calls a kernel for the outputs from lane on.
func (p storedPanel) run(f rowFunc, c []float32, t tile, lane int) {
	guardTile(t)
	_ = c[panelWidth-1]
	bases, steps := p.groups*groupSize/p.form.Span, p.groups*groupSize/p.form.Step
	_ = p.codes[p.groups*64*p.form.Bits-1]
	sum, bias := &t.sum[0], &t.bias[0]
	if p.form.Step < groupSize {
		_, _ = t.halfSum[2*t.groups-1], t.halfBias[2*t.groups-1]
		sum, bias = &t.halfSum[0], &t.halfBias[0]
	}
	per := max(1, p.form.Span/groupSize)
	f(&c[lane], &p.codes[4*lane], &p.consts[0], p.bytes(p.scales, bases, lane), lanes(p.steps, steps, lane),
		p.bytes(p.mins, bases, lane), lanes(p.minSub, steps, lane), &t.codes[0], &t.scale[0], sum, bias,
		p.groups/per, per)
}

// lanes returns the address of a lane of n vectors; nil where there are none.
func lanes(v []int8, n, lane int) *int8 {
	if v == nil {
		return nil
	}
	_ = v[n*panelWidth-1]
	return &v[lane]
}

// bytes returns the address of a lane of n vectors of bases, the float32 ones where those are used.
func (p storedPanel) bytes(half []uint16, n, lane int) *byte {
	if p.wide != nil && half == nil {
		_ = p.wide[n*panelWidth-1]
		return (*byte)(unsafe.Pointer(&p.wide[lane]))
	}
	if half == nil {
		return nil
	}
	_ = half[n*panelWidth-1]
	return (*byte)(unsafe.Pointer(&half[lane]))
}

func multiplyAVX512(c []float32, ldc int, p panel, t tile) {
	if p.step == groupSize && p.mins == nil {
		q8AVX512(c, ldc, p.codes, p.scales, t)
		return
	}
	mins, sum, bias := sides(c, ldc, p, t)
	_ = p.codes[p.groups*panelBytes8-1]
	rows := 0
	switch t.rows {
	case 4:
		rows = 1
	case 16:
		rows = 2
	}
	tiles512[p.kind()][rows](&c[0], 4*ldc, &p.codes[0], &p.scales[0], mins, &t.codes[0], &t.scale[0], sum,
		bias, t.groups)
}

// multiplyAVX2 covers half a panel at a time, as q8AVX2.
func multiplyAVX2(c []float32, ldc int, p panel, t tile) {
	if p.step == groupSize && p.mins == nil {
		q8AVX2(c, ldc, p.codes, p.scales, t)
		return
	}
	_, sum, bias := sides(c, ldc, p, t)
	_ = p.codes[p.groups*panelBytes8-1]
	rows := t.rows / 4
	for h := 0; h < panelWidth; h += panelWidth / 2 {
		var mins *float32
		if p.mins != nil {
			mins = &p.mins[h]
		}
		tiles256[p.kind()][rows](&c[h], 4*ldc, &p.codes[4*h], &p.scales[h], mins, &t.codes[0], &t.scale[0],
			sum, bias, t.groups)
	}
}
