// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// scenario calls every method and every kind of transfer once, and stops at the first error.
type scenario struct {
	b    *Backend
	bufs []backend.Buffer
	out  []float32
	rel  []float32
	left [3]backend.Residual
}

const scenarioRows, scenarioDim = 40, 64

func (s *scenario) span(n int) (backend.Span, error) {
	buf, err := s.b.Alloc(int64(n))
	if err != nil {
		return backend.Span{}, err
	}
	s.bufs = append(s.bufs, buf)
	return backend.Span{Buf: buf, Len: int64(n)}, nil
}

func (s *scenario) run() error {
	const rows, dim = scenarioRows, scenarioDim
	ctx := context.Background()
	lm4 := quant.Coding{Format: quant.LM4, Scale: quant.ScaleLog8}
	lm2 := quant.Coding{Format: quant.LM2, Scale: quant.ScaleLog8}
	u8 := quant.Coding{Format: quant.U8}
	sizes := []int{4 * rows * dim, 4 * rows, lm4.PackedBytes(rows, dim), u8.PackedBytes(rows, dim),
		4 * rows * dim, lm4.PackedBytes(rows, dim)}
	var at []backend.Span
	for _, n := range sizes {
		sp, err := s.span(n)
		if err != nil {
			return err
		}
		at = append(at, sp)
	}
	src, index, k, v, floats, spare := at[0], at[1], at[2], at[3], at[4], at[5]
	var raw, idx []byte
	for _, x := range quanttest.Rows(quanttest.Gaussian, rows, dim, 3).Data {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	for r := range rows {
		idx = binary.LittleEndian.AppendUint32(idx, uint32(rows-1-r))
	}
	if err := errors.Join(src.Buf.Upload(0, raw), index.Buf.Upload(0, idx)); err != nil {
		return err
	}
	kSide, vSide := backend.Side{Coding: lm4, Data: k, Seed: 5}, backend.Side{Coding: u8, Data: v}
	if err := s.b.Encode(ctx, []backend.EncodeJob{
		{Src: src, DType: quant.Float32, Index: index, Rows: rows, Dim: dim, Dst: kSide},
		{Src: src, DType: quant.Float32, Rows: rows, Dim: dim, Dst: vSide}}); err != nil {
		return err
	}
	low := k
	low.Len = int64(lm2.PackedBytes(rows, dim))
	if err := s.b.Demote(ctx, []backend.DemoteJob{
		{Src: kSide, To: lm4, Rows: rows, Dim: dim, Dst: spare},
		{Src: backend.Side{Coding: lm4, Data: k}, To: lm2, Rows: rows, Dim: dim, Dst: low}}); err != nil {
		return err
	}
	kSide = backend.Side{Coding: lm2, Data: low, Seed: 5}
	if err := s.b.Decode(ctx, []backend.DecodeJob{{Src: kSide, Rows: rows, Dim: dim,
		Dst: floats}}); err != nil {
		return err
	}
	q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, 3, dim, 9).Data, Group: 3,
		HeadDim: dim, HeadDimV: dim, Scale: 0.125, BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
	blocks := []backend.Block{{Rows: rows, K: kSide, V: vSide}}
	s.out = make([]float32, 3*dim)
	lse := make([]float32, 3)
	if err := backend.AttendBlocks(ctx, s.b, q, nil, blocks,
		backend.Attention{Out: s.out, LSE: lse, Mass: make([]float32, 1)}); err != nil {
		return err
	}
	s.rel = make([]float32, rows)
	if err := backend.RelevanceBlocks(ctx, s.b, q, nil, lse, blocks, &backend.RelevanceOut{Power: 1,
		RowPtr: []int32{0, rows}, Sum: s.rel}); err != nil {
		return err
	}
	if err := s.b.Residuals(ctx, &backend.Residuals{X: q.Q[:3*dim], Dim: dim}, s.left[:]); err != nil {
		return err
	}
	if err := floats.Buf.Download(0, raw); err != nil {
		return err
	}
	return s.bufs[0].Free()
}

// typed fails the test unless the error names the call that failed on demand and has a category.
func typed(t *testing.T, err error, call string) {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e, "error %v", err)
	require.True(t, errors.Is(err, quant.ErrUnavailable) || errors.Is(err, quant.ErrTooLarge), "%v", err)
	require.NotEmpty(t, e.Op)
	require.Contains(t, call, e.Op[:2], "%v", err)
}

// A failure of any driver call, in Open, in a call or in Close, gives a typed error of that call.
// Nothing panics, and nothing is left behind.
func TestFailure_AtEveryDriverCall(t *testing.T) {
	s := newStandIn(t, "")
	attempt := func() (err error) {
		b, err := s.open(Options{NoSelfTest: true})
		if err != nil {
			return err
		}
		sc := scenario{b: b}
		return errors.Join(sc.run(), b.Close())
	}
	require.NoError(t, attempt())
	calls := s.count(countCalls)
	require.Greater(t, calls, 100)
	s.clean()
	full := !testing.Short()
	seen := map[string]bool{}
	for i, code := range []driver.Status{999, driver.StatusOutOfMemory, driver.StatusLaunchFailed} {
		step := 1 // every call once; what the other codes change needs fewer
		if !full {
			step = 7
		} else if i > 0 {
			step = 3
		}
		for n := 1 + i; n <= calls; n += step {
			s.configure("")
			s.fail(n, code)
			err := attempt()
			call := s.failed()
			seen[call] = true
			if call == "" || (call == "cuCtxPushCurrent_v2" && err == nil) {
				continue // an error before left the call out
			}
			require.Error(t, err, "call %d, %s, code %d", n, call, code)
			typed(t, err, call)
			s.clean()
		}
	}
	if full {
		for _, name := range []string{"cuInit", "cuDevicePrimaryCtxRetain", "cuModuleLoadDataEx",
			"cuMemAlloc_v2", "cuMemHostAlloc", "cuLaunchKernel", "cuMemcpyHtoDAsync_v2",
			"cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2", "cuStreamSynchronize", "cuEventRecord",
			"cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuMemFree_v2", "cuModuleUnload"} {
			require.True(t, seen[name], "%s never failed", name)
		}
	}
}

// Every reason why Open fails, with the text that a user needs.
func TestOpen_Reasons(t *testing.T) {
	for _, c := range []struct {
		name, config, library string
		want                  []string
		also                  error
	}{
		{"no library", "", "/nowhere/libcuda.so.1", []string{"/nowhere/libcuda.so.1"}, nil},
		{"library of something else", "", "libm.so.6", []string{"libm.so.6", "no symbol cuInit"}, nil},
		{"too old", "version=11040", "", []string{"the driver supports CUDA 11.4, want 12.0"}, nil},
		{"does not initialise", "init=999", "", []string{"cuInit", "CUDA_ERROR_UNKNOWN (999)"}, nil},
		{"no device by code", "init=100", "", []string{"CUDA_ERROR_NO_DEVICE"}, nil},
		{"no device", "devices=0", "", []string{"no device"}, nil},
		{"old device", "sm=61", "", []string{"sm_61", "sm_75"}, nil},
		{"PTX refused", "ptx=78", "", []string{"cuModuleLoadDataEx(codec)",
			"CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", "Unsupported .version 8.0"}, nil},
		{"no memory at start", "memory=100000", "", []string{"cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY"},
			quant.ErrTooLarge},
		{"no memory for the self-test", "memory=4194304", "", []string{"CUDA_ERROR_OUT_OF_MEMORY"}, nil},
		{"self-test, encode", "skip=kvist_encode", "", []string{"self-test: encode"}, nil},
		{"self-test, decode", "skip=kvist_decode", "", []string{"self-test: decode"}, nil},
		{"self-test, attend", "skip=kvist_combine", "", []string{"self-test: attend"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStandIn(t, c.config)
			library := s.library
			if c.library != "" {
				library = c.library
			}
			o := Options{Library: library, Device: AnyDevice}
			if c.name == "no memory for the self-test" {
				o.Memory = 1 << 30 // more than there is: the device refuses, not the limit
			}
			_, err := Open(o)
			require.ErrorIs(t, err, quant.ErrUnavailable)
			for _, w := range c.want {
				require.ErrorContains(t, err, w)
			}
			if c.also != nil {
				require.ErrorIs(t, err, c.also)
			}
			s.clean()
		})
	}
}

func TestOpen_SelfTestPassesAndProbeDescribes(t *testing.T) {
	s := newStandIn(t, "sm=90,devices=2")
	b, err := s.open(Options{})
	require.NoError(t, err)
	require.Equal(t, "sm_90 int8", b.Caps().ISA)
	require.Empty(t, b.Caps().Reason)
	require.Zero(t, b.LiveBytes(), "the self-test left buffers")
	require.NoError(t, b.Close())
	s.clean()
	info, err := Probe(s.library)
	require.NoError(t, err)
	require.Equal(t, 12020, info.Driver)
	require.Equal(t, "12.2", VersionString(info.Driver))
	require.Len(t, info.Devices, 2)
	_, err = Open(Options{Library: s.library, Device: 2})
	require.ErrorIs(t, err, quant.ErrUnavailable)
	_, err = Open(Options{Library: s.library, Memory: -1})
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestChoose_BestDevice(t *testing.T) {
	info := Info{Devices: []DeviceInfo{{Index: 0, Capability: 75, Memory: 9}, {Index: 1, Capability: 90,
		Memory: 5}, {Index: 2, Capability: 90, Memory: 8}, {Index: 3, Capability: 61, Memory: 99}}}
	d, err := choose(info, AnyDevice)
	require.NoError(t, err)
	require.Equal(t, 2, d.Index)
	d, err = choose(info, 0)
	require.NoError(t, err)
	require.Equal(t, 0, d.Index)
	_, err = choose(info, 3)
	require.ErrorIs(t, err, quant.ErrUnavailable)
}

// The caller can handle an out-of-memory error: it frees something and continues.
func TestAlloc_OutOfMemory(t *testing.T) {
	s := newStandIn(t, "memory=16777216")
	b, err := s.open(Options{Memory: 1 << 40, NoSelfTest: true}) // the device refuses, not the limit
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()); s.clean() }()
	large, err := b.Alloc(11 << 20)
	require.NoError(t, err)
	_, err = b.Alloc(4 << 20)
	require.ErrorIs(t, err, quant.ErrTooLarge)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, driver.StatusOutOfMemory, e.Code)
	require.Contains(t, e.Error(), "cuMemAlloc(4194304 bytes): CUDA_ERROR_OUT_OF_MEMORY (2)")
	require.Equal(t, int64(11<<20), b.LiveBytes())
	require.NoError(t, b.Lost(), "memory that ran out is no loss")

	// Scratch memory of a call beyond what the device has left.
	q := &backend.Queries{Q: make([]float32, 8*(1<<19)), Group: 1 << 13, HeadDim: 8, HeadDimV: 8,
		Scale: 1, BlockPtr: make([]int32, 65)}
	out := make([]float32, len(q.Q))
	require.ErrorIs(t, backend.AttendBlocks(context.Background(), b, q, nil, nil, backend.Attention{Out: out}),
		quant.ErrTooLarge)
	require.NoError(t, large.Free())
	small := &scenario{b: b}
	require.NoError(t, small.run(), "after freeing, work goes on")
}

// A lost device turns the backend off and is named. Close still frees everything.
func TestLost_TurnsTheBackendOff(t *testing.T) {
	s := newStandIn(t, "")
	b, err := s.open(Options{NoSelfTest: true})
	require.NoError(t, err)
	sc := scenario{b: b}
	require.NoError(t, sc.run())
	require.NoError(t, b.Lost())
	want := sc.out
	// Fail in the middle of attention.
	for n := 1; ; n++ {
		s.fail(n, driver.StatusIllegalAddress)
		again := scenario{b: b}
		if err := again.run(); s.failed() == "cuStreamSynchronize" || s.failed() == "cuLaunchKernel" {
			require.ErrorIs(t, err, quant.ErrUnavailable)
			break
		}
		if b.Lost() != nil {
			break
		}
	}
	require.NotEmpty(t, want)
	require.Error(t, b.Lost())
	require.Contains(t, b.Lost().Error(), "CUDA_ERROR_ILLEGAL_ADDRESS (700)")
	require.Contains(t, b.Caps().Reason, "turned off: ")
	_, err = b.Alloc(64)
	require.ErrorIs(t, err, quant.ErrUnavailable)
	require.ErrorContains(t, err, "the device was lost earlier")
	require.ErrorIs(t, b.Encode(context.Background(), nil), quant.ErrUnavailable)
	require.ErrorIs(t, sc.bufs[1].Upload(0, []byte{1}), quant.ErrUnavailable)
	require.ErrorIs(t, sc.bufs[1].Download(0, []byte{1}), quant.ErrUnavailable)
	require.Error(t, b.Close(), "the driver reports the loss again")
	s.clean()
	fresh, err := s.open(Options{})
	require.NoError(t, err, "another process, or a new context, works again")
	require.NoError(t, fresh.Close())
}

// The error that appears later names the kernel that failed.
func TestError_NamesTheKernel(t *testing.T) {
	s := newStandIn(t, "")
	b, err := s.open(Options{NoSelfTest: true})
	require.NoError(t, err)
	l := <-b.lanes
	err = b.dev.do(func() error {
		return errors.Join(start(l, "kvist_decode", [2]int{1, 1}, 32, 64, wildParams()), l.wait())
	})
	b.lanes <- l
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "kvist_decode", e.Kernel)
	require.Equal(t, driver.StatusIllegalAddress, e.Code)
	require.Contains(t, err.Error(), "after launching kvist_decode")
	require.Contains(t, s.why(), "kvist_decode: illegal address")
	require.Error(t, b.Close())
}

func ExampleError() {
	err := error(&Error{Op: "cuMemAlloc(4096 bytes)", Code: 2, Name: "CUDA_ERROR_OUT_OF_MEMORY"})
	fmt.Println(err)
	fmt.Println(errors.Is(err, quant.ErrTooLarge))
	// Output:
	// kvist/cuda: cuMemAlloc(4096 bytes): CUDA_ERROR_OUT_OF_MEMORY (2)
	// true
}
