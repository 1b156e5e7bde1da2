// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// EnvAttend is the environment variable that chooses the kernel of attention where Options.Attend
// does not.
const EnvAttend = "KVIST_CUDA_ATTEND"

// The kernels of attention: values of Options.Attend and of EnvAttend. Each leaves what it cannot do to
// those before it.
const (
	AttendPlain = "plain" // float32 arithmetic; every shape and coding
	AttendF16   = "f16"   // products of binary16 in tensor cores; V of lm1..lm4 and u8
	AttendInt8  = "int8"  // products of bytes in tensor cores; K and V of lm1..lm4
)

// AttendKernels lists them.
func AttendKernels() []string { return []string{AttendPlain, AttendF16, AttendInt8} }

// Choice is the kernel of attention of a device, and why.
type Choice struct {
	Kernel string
	Why    string
	forced bool
}

func (c Choice) String() string { return c.Kernel + ": " + c.Why }

// ChooseAttend returns the kernel of attention for a device of a compute capability: 90 is 9.0. asked is
// Options.Attend; if it is empty, EnvAttend counts, and then the capability.
//
// Integer products are chosen where a multiprocessor has them at the rate of other tensor core work:
// 8.0 to 9.0, 10.0 and 12.0. 10.3 has few, so binary16 is chosen there, and on what this build does not
// know. 7.5 lacks the shapes of both.
//
// Errors: quant.ErrUnsupported for an unknown name, quant.ErrUnavailable for a kernel that the device
// cannot run.
func ChooseAttend(capability int, asked string) (Choice, error) {
	source := "Options.Attend"
	if asked == "" {
		asked, source = os.Getenv(EnvAttend), EnvAttend
	}
	version := fmt.Sprintf("compute capability %d.%d", capability/10, capability%10)
	least := 80 // of both kernels for tensor cores
	switch {
	case asked != "" && !slices.Contains(AttendKernels(), asked):
		return Choice{}, fmt.Errorf("kvist/cuda: opening: %s %q: want one of %s: %w", source, asked,
			strings.Join(AttendKernels(), ", "), quant.ErrUnsupported)
	case asked != "" && asked != AttendPlain && capability < least:
		return Choice{}, fmt.Errorf("kvist/cuda: opening: %s %q: the device has %s, want %d.%d or later: %w",
			source, asked, version, least/10, least%10, quant.ErrUnavailable)
	case asked != "":
		return Choice{asked, "set by " + source, true}, nil
	case capability < least:
		return Choice{Kernel: AttendPlain, Why: version + " lacks the tensor core products of the others"}, nil
	case capability <= 90 || capability == 100 || capability == 120:
		return Choice{Kernel: AttendInt8, Why: version}, nil
	}
	return Choice{Kernel: AttendF16, Why: version + " is not known for fast integer products"}, nil
}

// The kernels for tensor cores have room for 8 heads.
const (
	mmaKernel  = "kvist_attend_mma"
	mmaHeads   = 8
	mmaShared  = 64 << 10 // enough for its largest shape
	int8Kernel = "kvist_attend_int8_d"
	// int8Rows bounds the rows of a block, so that offsets in its planes take 32 bits.
	int8Rows = 1 << 24
)

// mmaWorks reports whether the f16 kernel supports a shape: whole groups of columns for four warps, and
// 8 heads in shared memory.
func mmaWorks(dim, dimV int) bool {
	return mostHeads(dim) >= mmaHeads && (dimV == 64 || dimV == 128 || dimV == 256)
}

// int8Works reports whether the int8 kernel supports a shape.
func int8Works(dim, dimV int) bool { return dim == dimV && (dim == 64 || dim == 128) }

// useKernels decides which kernels a batch of queries may use. kindOf then says which one takes a block.
func (t *batch) useKernels(kernel string) {
	t.mma = kernel != AttendPlain && mmaWorks(t.HeadDim, t.HeadDimV)
	t.int8 = kernel == AttendInt8 && int8Works(t.HeadDim, t.HeadDimV)
}

// kindOf returns Piece.RotatedV for the blocks of a form.
func (t *batch) kindOf(f *form) int32 {
	k, v := f.Key.K.Format, f.Key.V.Format
	switch {
	case t.int8 && k.Nested() && v.Nested() && f.Key.Rows <= int8Rows:
		return kernels.Planes
	case !v.Rotated():
		return 0
	case v.Nested() || v == quant.U8:
		return kernels.CodedV
	}
	return kernels.OtherV
}

// launchAttend launches the kernels of attention that some piece needs, each for all pieces, and combine
// for every unit.
func launchAttend(l *lane, p kernels.AttendParams, pieces []kernels.Piece, units int, mma bool) error {
	h := int(p.UnitHeads)
	stride := (int(p.HeadDim) + 7) / 8 * 8
	// As Layout in attend.cuh.
	floats := 3*h*stride + h*kernels.TileRows + 9*kernels.TileRows + kernels.BookFloats + 3*h
	grid := [2]int{len(pieces), 1}
	var kinds int32 // a bit a kind
	for _, c := range pieces {
		kinds |= 1 << c.RotatedV
	}
	if kinds>>kernels.Planes&1 != 0 {
		p.Skip |= 1 << kernels.Planes
		dim := int(p.HeadDim)
		err := start(l, fmt.Sprint(int8Kernel, dim), grid, kernels.TileRows, kernels.Int8Shared(dim), p)
		if err != nil {
			return err
		}
	}
	if mma && kinds>>kernels.CodedV&1 != 0 {
		p.Skip |= 1 << kernels.CodedV
		// As MmaLayout in attend_mma.cu: queries and weights as two binary16, a table, the sums.
		more := h*stride + h*kernels.TileRows + 4*256 + 2*h + 2048
		if err := start(l, mmaKernel, grid, kernels.TileRows, 4*(floats+more), p); err != nil {
			return err
		}
	}
	if kinds&^p.Skip != 0 {
		name := map[int]string{1: "kvist_attend_h1", 2: "kvist_attend_h2", 4: "kvist_attend_h4",
			8: "kvist_attend_h8"}[h]
		if err := start(l, name, grid, kernels.TileRows, 4*floats, p); err != nil {
			return err
		}
	}
	return start(l, "kvist_combine", [2]int{units, h}, kernels.TileRows, 4*(int(p.HeadDimV)+16), p)
}
