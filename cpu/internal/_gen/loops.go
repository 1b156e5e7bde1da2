// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
)

// loops has the Go loop that a routine equals, up to the order of sums, by a pattern of its name.
// tile[r][i] is value i of row r of a tile; code(r, i) is the code of value i of row r in src; order is
// the place of a value in the layout that the comment names. Rows of float32 lie stride bytes apart.
var loops = []struct{ name, loop string }{
	{`^unpackLM.(Keys|Values)`, `
for r := range 8 * groups {
	for i := range dim {
		dst[order(r, i)] = table[code(r, i)]
	}
}`},
	{`^unpackLM.(Rows|Quads)`, `
for r := range 4 * groups {
	for i := range dim {
		dst[order(r, i)] = table[code(r, i)]
	}
}`},
	{`^unpackLM.AVX2`, `
for r := range rows {
	for i := range 32 * blocks {
		dst[r][i] = float32(table[code(r, i)])
	}
}`},
	{`^unpackU8Keys`, `
for r := range 8 * groups {
	for i := range 64 * blocks {
		dst[order(r, i)] = src[r][i]
	}
}`},
	{`^unpackU8Values`, `
for r := range 4 * groups {
	for i := range 64 * blocks {
		dst[order(r, i)] = src[r][i] - 128
	}
}`},
	{`^unpackU8AVX512`, `
for r := range rows {
	for i := range n { // 64 * full, and the values with a bit in tail
		dst[order(r, i)] = float32(src[r][i]) - 128
	}
}`},
	{`^unpackU8AVX2`, `
for i := range 8 * n {
	dst[i] = float32(src[i]) - 128
}`},
	{`^unpackB?F..AVX512`, `
for r := range rows {
	for i := range n { // 16 * full, and the values with a bit in tail
		dst[r][i] = float32(src[r][i])
	}
	clear(dst[r][n:]) // to a multiple of 16, and 16 * zeros values more
}`},
	{`^unpackB?F..AVX2`, `
for i := range 8 * n {
	dst[i] = float32(src[i])
}`},
	{`^scalesF16AVX512`, `
for i := range n {
	dst[i] = float32(src[i]) * factor
}
clear(dst[n:32])`},
	{`^scalesF16AVX2`, `
for i := range 32 {
	dst[i] = float32(src[i]) * factor
}`},
	{`^scalesLog8AVX2`, `
for i := range 32 {
	if k := src[i]; k == 255 {
		dst[i] = 0
	} else {
		dst[i] = base * frac[k%16] * exp2(-(k / 16)) * factor
	}
}`},
	{`^scalesLog8`, `
for i := range n {
	if k := src[i]; k == 255 {
		dst[i] = 0
	} else {
		dst[i] = base * frac[k%16] * exp2(-(k / 16)) * factor
	}
}
clear(dst[n:32])`},
	{`^dot(Quads|Rows|Bytes)`, `
for h := range heads {
	for r := range rows {
		dots[h][r] = dot(q[h], tile[r])
	}
}`},
	{`^dotLM`, `
for h := range heads {
	for r := range 32 {
		dots[h][r] = 0
		for i := range 64 {
			dots[h][r] += q[h][i] * table[code(r, i)]
		}
	}
}`},
	{`^accumulate`, `
for h := range heads {
	for r := range rows {
		for i := range acc[h] {
			acc[h][i] += w[h][r] * tile[r][i]
		}
	}
}`},
	{`^addBytes`, `
for h := range heads {
	for r := range 4 * quads {
		for i := range 64 * blocks {
			acc[h][i] += units[h] * weights[h][r] * tile[r][i]
		}
	}
}`},
	{`^addLM`, `
for h := range heads {
	for r := range 32 {
		for i := range 64 {
			acc[h][i] += units[h] * weights[h][r] * table[code(r, i)]
		}
	}
}`},
	{`^largest`, `
for _, x := range q[:16*n] {
	largest = max(largest, math.Float32bits(x)&^(1<<31))
}`},
	{`^cutQuery`, `
for i := range 16 * n {
	x := int32(roundToEven(q[i] * factor))
	for d := range 3 {
		dst[24*(i/8)+8*d+i%8] = int8(x)
		sums[d] += int8(x)
		x = (x - int8(x)) >> 8
	}
}`},
	{`^softmaxTile`, `
for h := range heads {
	for r := range 32 {
		s[r] = dots[h][r]*mul[r] - energy[h]*noise*mul[r]*mul[r]
	}
	if m := slices.Max(s); m > tops[h]+8 {
		tops[h] = m
	}
	sums[h] = 0
	for r := range 32 {
		p := exp(s[r] - tops[h])
		sums[h] += p
		w[h][r] = p * rowscale[r]
	}
	digits[h], units[h] = cut(w[h])
}`},
	{`^softmax`, `
for h := range heads {
	for r := range 32 {
		s[r] = dots[h][r]*mul[r] + add[r] - energy[h]*noise[r] // -Inf without bit r in masks[h]
	}
	if m := slices.Max(s); m > tops[h]+8 {
		tops[h] = m
	}
	sums[h] = 0
	for r := range 32 {
		p := exp(s[r] - tops[h])
		sums[h] += p
		w[h][r] = p * scale[r]
		if p == 0 {
			masks[h] &^= 1 << r
		}
	}
}`},
	{`^probs`, `
for h := range heads {
	for r := range 32 {
		s := dots[h][r]*mul[r] + add[r] - energy[h]*noise[r] // -Inf without bit r in masks[h]
		acc[r] += pow(exp(s-lse[h]), power)
	}
}`},
	{`^fold`, `
for i := range acc {
	sum[i] += float64(acc[i])
	acc[i] = 0
}`},
	{`^square`, `
for i := range 32 {
	dst[i] = factor * src[i] * src[i]
}`},
	{`^mixSquares`, `
clear(dst[:32])
for r := range n {
	for i := range 32 {
		dst[i] += w[r] * rows[r][i] * rows[r][i]
	}
}`},
	{`^mixAVX`, `
clear(dst[:32])
for r := range n {
	for i := range 32 {
		dst[i] += w[r] * rows[r][i]
	}
}`},
	{`^forward`, `
for r := range rows {
	for i := range x[r] {
		x[r][i] = flip(x[r][i], signs[r][i])
	}
	hadamard(x[r])
	for i := range x[r] {
		x[r][i] *= norm
	}
}`},
	{`^inverse`, `
for r := range rows {
	hadamard(x[r])
	for i := range x[r] {
		x[r][i] = flip(x[r][i]*norm, signs[r][i])
	}
}`},
	{`^butterflies`, `
for range pairs {
	for i := range h / 4 {
		a, b := x[i], x[i+h/4]
		x[i], x[i+h/4] = (a+b)*factor, (a-b)*factor
	}
	x = x[2*h/4:]
}`},
	{`^peaks`, `
for r := range rows {
	peaks[r] = 0
	for _, v := range x[r] {
		peaks[r] = max(peaks[r], math.Float32bits(v)&^(1<<31))
	}
}`},
	{`^scaleRows`, `
for r := range rows {
	for i := range x[r] {
		x[r][i] *= factors[r]
	}
}`},
	{`^quantizeLM`, `
for r := range rows {
	xx, xy, cc[r] = 0, 0, 0
	for _, v := range y[r] {
		xx += v * v
	}
	for i, v := range y[r] {
		m := 0 // magnitude: the number of thresholds that |v| reaches
		for m+1 < levels && abs(v) >= thresholds[m+1]*sqrt(xx/dim) {
			m++
		}
		setCode(r, i, m, v < 0)
		xy += abs(v) * float32(centroids[m])
		cc[r] += centroids[m] * centroids[m]
	}
	sums[2*r], sums[2*r+1] = xx, xy
}`},
	{`^quantizeU8`, `
for r := range rows {
	for i, v := range y[r] {
		codes[r][i] = clamp(128+roundToEven(v/steps[r]), 1, 255) // 128 for a step of 0
	}
}`},
	{`^decodeLM`, `
for r := range rows {
	for i := range dim {
		dst[r][i] = units[r] * float32(table[code(r, i)])
	}
}`},
	{`^decodeU8`, `
for r := range rows {
	for i := range dim {
		dst[r][i] = units[r] * float32(int(src[r][i])-128)
	}
}`},
	{`^toF16`, `
for i := range 8 * n {
	dst[i] = float16(src[i])
}`},
	{`^countLM`, `
for w := range 8 * groups {
	xx[w], xc[w], cc[w] = 0, 0, 0
	for set := range sets { // of magnitude bits; count: the values of word w with all of set
		xx[w] += weights[0][set] * count(w, set)
		xc[w] += weights[1][set] * count(w, set)
		cc[w] += weights[2][set] * count(w, set)
	}
}`},
	{`^ratios`, `
for i := range 16 * n {
	if scales[i] != 0 {
		scales[i] *= ratio(rule, xx[i], xc[i], cc[i])
	}
}`},
	{`^log8Codes`, `
for i := range n {
	dst[i] = log8(scales[i], base)
}`},
}

// loop returns the lines of the loop that a routine equals, none for a routine without one.
func loop(name string) []string {
	for _, l := range loops {
		if regexp.MustCompile(l.name).MatchString(name) {
			return strings.Split(strings.TrimPrefix(l.loop, "\n"), "\n")
		}
	}
	return nil
}
