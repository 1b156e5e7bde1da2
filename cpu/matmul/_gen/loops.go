// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
)

// loops has the Go loop that a routine equals, by a pattern of its name. The package comment of matmul
// has the order of sums. weight(g, i, j) is weight i of group g for output j of the panel or panels.
var loops = []struct{ name, loop string }{
	{`^f32Tile`, `
for i := range c {
	for j := range c[i] {
		s := float32(0)
		if accumulate != 0 {
			s = c[i][j]
		}
		for x := range k {
			s = fma(a[i][x], b[x][j], s)
		}
		c[i][j] = s
	}
}`},
	{`^pack8`, `
for i := range 8 * blocks {
	for r := range 8 {
		dst[16*i+r] = src[r][i]
	}
}`},
	{`^expandQ8`, `
for g := range groups {
	for i := range 32 {
		for j := range 16 {
			dst[32*g+i][j] = scales[g][j] * float32(code(g, i, j))
		}
	}
}`},
	{`^expandQ4`, `
for g := range groups {
	for i := range 32 {
		for j := range 16 {
			dst[32*g+i][j] = float32(scales[g][j]*float32(code(g, i, j))) + mins[g][j]
		}
	}
}`},
	{`^rowQ`, `
for j := range c {
	c[j] = 0
	for g := range groups {
		for i := range 32 {
			c[j] = fma(a[32*g+i], weight(g, i, j), c[j])
		}
	}
}`},
	{`^q8Tile`, `
for r := range c {
	for j := range c[r] {
		c[r][j] = 0
		for g := range groups {
			sum := int32(0)
			for i := range 32 {
				sum += int32(aq[g][r][i]) * int32(code(g, i, j))
			}
			c[r][j] = fma(float32(sum), scales[g][j]*sa[g][r], c[r][j])
		}
	}
}`},
	{`^q4Tile`, `
for r := range c {
	for j := range c[r] {
		c[r][j] = 0
		for g := range groups {
			sum := int32(0)
			for i := range 32 {
				sum += int32(aq[g][r][i]) * int32(code(g, i, j))
			}
			c[r][j] = fma(float32(sum), scales[g][j]*sa[g][r], c[r][j])
			c[r][j] = fma(mins[g][j], as[g][r], c[r][j])
		}
	}
}`},
	{`^quantize`, `
for g := range groups {
	l := maxAbs(src[32*g:][:32]) // below 2^-100: all zero; not finite: sa and as are NaN
	s, sum := l/127, 0
	for i := range 32 {
		q := roundToEven(src[32*g+i] * (127 / l))
		codes[32*stride*g+i] = q
		sum += q
	}
	sa[stride*g], as[stride*g], ai[stride*g] = s, s*float32(sum), -128*sum
}`},
	{`^unpack`, `
for g := range groups {
	for i := range 32 {
		for j := range 16 {
			dst[g][i][j] = meaning(code(g, i, j)) // up to 4 bits: consts[code], else code - consts[0]
		}
	}
}`},
	{`^scalesAVX`, `
for i := range n {
	for j := range 16 {
		dst[i][j] = float32(base[i][j])
	}
}`},
	{`^stepsAVX`, `
for i := range spans * per {
	for j := range 16 {
		dst[i][j] = float32(base[i/per][j]) * float32(steps[i][j])
	}
}`},
	{`^expand(32|16)`, `
for i := range 32 * groups {
	for j := range 16 {
		dst[i][j] = float32(scales[i/step][j]*float32(code(i, j))) // + mins[i/step][j], if there are any
	}
}`},
	{`^tile(32|16)`, `
for r := range c {
	for j := range c[r] {
		c[r][j] = 0
		for s := range 32 / step * groups {
			g, sum := s*step/32, int32(0)
			for i := range step {
				sum += int32(aq[s][r][i]) * int32(code(s, i, j))
			}
			c[r][j] = fma(float32(sum), scales[s][j]*sa[g][r], c[r][j])
			c[r][j] = fma(mins[s][j], as[s][r], c[r][j]) // if there are any
		}
	}
}`},
	{`^row[2-8]Of`, `
// scale(s) is scales[s], as float32 or binary16, or scales[span]*steps[s]; min(s) likewise
for j := range c {
	c[j] = 0
	for s := range 32 / step * per * spans {
		g, sum := s*step/32, int32(0)
		for i := range step {
			sum += int32(aq[s][i]) * int32(meaning(code(s, i, j))) // of unpack; with minima: code
		}
		c[j] = fma(float32(sum), scale(s)[j]*sa[g], c[j])
		c[j] = fma(min(s)[j], as[s], c[j]) // if there are any
	}
}`},
	{`^halves`, `
for g := range groups {
	for h := range 2 {
		sum := sumOf(codes[32*stride*g+16*h:][:16])
		sums[stride*(2*g+h)], bias[stride*(2*g+h)] = sa[stride*g]*float32(sum), -128*sum
	}
}`},
	{`^expSum`, `
for i := range n {
	dst[i] = exp(x[i] - top) // of exp.go, with fused sums
	s[i%32] += dst[i]
}
for h := 16; h > 0; h /= 2 {
	for j := range h {
		s[j] += s[j+h]
	}
}
return s[0]`},
	{`^largest`, `
for i := range n {
	if x[i] > top {
		top = x[i]
	}
}
return top`},
	{`^dotAVX`, `
for i := range n {
	s[i%32] = fma(a[i], b[i], s[i%32])
}
for h := 16; h > 0; h /= 2 {
	for j := range h {
		s[j] += s[j+h]
	}
}
return s[0]`},
	{`^axpy`, `
for i := range n {
	dst[i] = fma(x, src[i], dst[i])
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
