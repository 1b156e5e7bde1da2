// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"fmt"
	"strings"
)

// Format is the way in which the values of a row are stored. The numbers are part of the file format
// and are never reused.
type Format uint8

// The formats. Names in comments are what String returns and ParseCoding accepts.
const (
	formatInvalid Format = 0
	F32           Format = 1  // f32: float32, exact basis
	F16           Format = 2  // f16: IEEE binary16, exact basis
	BF16          Format = 3  // bf16: bfloat16, exact basis
	U8            Format = 4  // u8: 8-bit uniform, rotated, one scale a row
	LM1           Format = 5  // lm1: nested Lloyd-Max, 1 bit, rotated, one scale a row
	LM2           Format = 6  // lm2: 2 bits
	LM3           Format = 7  // lm3: 3 bits
	LM4           Format = 8  // lm4: 4 bits
	GGMLQ8_0      Format = 16 // ggml-q8_0: groups of 32, int8 and one f16 scale (34 bytes)
	GGMLQ4_0      Format = 17 // ggml-q4_0: groups of 32, 4 bits and one f16 scale (18 bytes)
	TQMSE1        Format = 24 // tqmse1: TurboQuant-mse, f16 norm, Lloyd-Max 1 bit (comparison)
	TQMSE2        Format = 25 // tqmse2
	TQMSE3        Format = 26 // tqmse3
	TQMSE4        Format = 27 // tqmse4
)

var formatNames = map[Format]string{
	F32: "f32", F16: "f16", BF16: "bf16", U8: "u8",
	LM1: "lm1", LM2: "lm2", LM3: "lm3", LM4: "lm4",
	GGMLQ8_0: "ggml-q8_0", GGMLQ4_0: "ggml-q4_0",
	TQMSE1: "tqmse1", TQMSE2: "tqmse2", TQMSE3: "tqmse3", TQMSE4: "tqmse4",
}

// plannedFormats are reserved names of formats that this version cannot store yet. ParseCoding
// reports them as planned rather than as unknown.
var plannedFormats = map[string]bool{
	"kivi2": true, "kivi3": true, "kivi4": true,
	"tqprod2": true, "tqprod3": true, "tqprod4": true, "fp8": true,
}

// Formats lists every format of this version in ascending number.
func Formats() []Format {
	return []Format{F32, F16, BF16, U8, LM1, LM2, LM3, LM4, GGMLQ8_0, GGMLQ4_0,
		TQMSE1, TQMSE2, TQMSE3, TQMSE4}
}

// String returns the name of the format, which ParseCoding accepts.
func (f Format) String() string {
	if s, ok := formatNames[f]; ok {
		return s
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// Valid reports whether f is a format of this version.
func (f Format) Valid() bool { return f.Bits() != 0 }

// Exact reports whether rows are stored in the original basis without quantization to a
// codebook (f32, f16, bf16).
func (f Format) Exact() bool { return f == F32 || f == F16 || f == BF16 }

// Rotated reports whether rows are stored after the randomised Hadamard rotation, so that a query
// must be rotated too (Rotation.Forward) before its inner product with them is taken.
func (f Format) Rotated() bool {
	return f == U8 || f.Nested() || (f >= TQMSE1 && f <= TQMSE4)
}

// Nested reports whether f belongs to the nested Lloyd-Max family lm1..lm4, within which rows
// are demoted without the original.
func (f Format) Nested() bool { return f >= LM1 && f <= LM4 }

// Bits returns the code bits of one value, scales not counted.
func (f Format) Bits() int {
	switch f {
	case F32:
		return 32
	case F16, BF16:
		return 16
	case U8, GGMLQ8_0:
		return 8
	case GGMLQ4_0:
		return 4
	case LM1, LM2, LM3, LM4:
		return int(f-LM1) + 1
	case TQMSE1, TQMSE2, TQMSE3, TQMSE4:
		return int(f-TQMSE1) + 1
	}
	return 0
}

// ScaleRule is the rule for the one scale of a row: what the scale preserves. It applies to lm1..lm4.
type ScaleRule uint8

// The scale rules. With x the row and c its centroids:
const (
	// LeastSquares: scale = <x,c>/<c,c>, the least squared error. For V.
	LeastSquares ScaleRule = 0
	// LengthKeeping: scale = |x|/|c|, so that the decoded row has the length of the original.
	LengthKeeping ScaleRule = 1
	// InnerProduct: scale = |x|^2/<x,c>, so that <x, decoded> = |x|^2: the estimate of an inner
	// product is unbiased. Source: RaBitQ (2024, arXiv 2405.12497), EDEN (2021, arXiv 2108.08842).
	InnerProduct ScaleRule = 2
)

// ScaleForm is the way in which the row scales of u8 and lm1..lm4 are stored.
type ScaleForm uint8

// The scale forms.
const (
	// ScaleF16 stores each scale as binary16: 2 bytes a row.
	ScaleF16 ScaleForm = 0
	// ScaleLog8 stores each scale as an 8-bit logarithm, 16 steps an octave, below one float32
	// maximum a block: 1 byte a row and 4 bytes a block, and the range of float32.
	ScaleLog8 ScaleForm = 1
)

// Coding is a format with its options. It determines the bytes of a row and how they decode. It is
// comparable, takes two bytes in a file, and is written like "lm3" or "lm4+len+s8".
type Coding struct {
	Format Format
	Rule   ScaleRule
	Scale  ScaleForm
}

// String returns the coding in the form that ParseCoding reads.
func (c Coding) String() string {
	s := c.Format.String()
	switch c.Rule {
	case LengthKeeping:
		s += "+len"
	case InnerProduct:
		s += "+ip"
	}
	if c.Scale == ScaleLog8 {
		s += "+s8"
	}
	return s
}

// ParseCoding reads a coding: a format name, then options joined by "+": "len" or "ip" (scale
// rule, lm1..lm4 only), "s8" (8-bit logarithmic row scales, u8 and lm1..lm4).
//
// Errors: ErrUnsupported, also for formats that are planned.
func ParseCoding(s string) (Coding, error) {
	parts := strings.Split(s, "+")
	var c Coding
	for f, name := range formatNames {
		if name == parts[0] {
			c.Format = f
		}
	}
	if c.Format == formatInvalid {
		if plannedFormats[parts[0]] {
			return Coding{}, fmt.Errorf(
				"kvist/quant: coding %q: format %s is planned, this version cannot store it: %w",
				s, parts[0], ErrUnsupported)
		}
		return Coding{}, fmt.Errorf("kvist/quant: coding %q: unknown format %q: %w", s,
			parts[0], ErrUnsupported)
	}
	for _, o := range parts[1:] {
		switch {
		case o == "len" && c.Rule == LeastSquares:
			c.Rule = LengthKeeping
		case o == "ip" && c.Rule == LeastSquares:
			c.Rule = InnerProduct
		case o == "s8" && c.Scale == ScaleF16:
			c.Scale = ScaleLog8
		default:
			return Coding{}, fmt.Errorf(
				"kvist/quant: coding %q: unknown or repeated option %q: %w", s, o,
				ErrUnsupported)
		}
	}
	if err := c.Validate(); err != nil {
		return Coding{}, err
	}
	return c, nil
}

// Validate reports whether the options go with the format.
//
// Errors: ErrUnsupported.
func (c Coding) Validate() error {
	if !c.Format.Valid() {
		return fmt.Errorf("kvist/quant: %s is not a format of this version: %w", c.Format,
			ErrUnsupported)
	}
	if c.Rule > InnerProduct || (c.Rule != LeastSquares && !c.Format.Nested()) {
		return fmt.Errorf("kvist/quant: format %s has no scale rule %d: %w", c.Format, c.Rule,
			ErrUnsupported)
	}
	if c.Scale > ScaleLog8 || (c.Scale != ScaleF16 && !c.Format.Nested() && c.Format != U8) {
		return fmt.Errorf("kvist/quant: format %s has no scale form %d: %w", c.Format, c.Scale,
			ErrUnsupported)
	}
	return nil
}

// CheckDim reports whether rows of dim values can be stored in this coding: any dim from 1 for
// the exact formats, multiples of 32 for the ggml formats, multiples of 8 for the rest, at most
// MaxDim.
//
// Errors: ErrUnsupported.
func (c Coding) CheckDim(dim int) error {
	if err := c.Validate(); err != nil {
		return err
	}
	mult := 8
	switch {
	case c.Format.Exact():
		mult = 1
	case c.Format == GGMLQ8_0 || c.Format == GGMLQ4_0:
		mult = 32
	}
	if dim <= 0 || dim > MaxDim || dim%mult != 0 {
		return fmt.Errorf(
			"kvist/quant: coding %s cannot store rows of %d values (wants a multiple of %d up to %d): %w",
			c,
			dim,
			mult,
			MaxDim,
			ErrUnsupported,
		)
	}
	return nil
}
