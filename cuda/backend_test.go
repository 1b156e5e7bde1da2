// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/backendtest"
	"github.com/kvist-project/kvist/engine/backend/selftest"
	"github.com/kvist-project/kvist/kernels/emu"
	"github.com/kvist-project/kvist/quant"
)

func TestBackend_Suite(t *testing.T) { suite(t, Options{Library: emu.Build(t)}) }

// TestTensorCores_Suite compares the attention of tensor cores with the same reference: binary16 within
// the tolerance of float32, integers within what their digits add.
func TestTensorCores_Suite(t *testing.T) {
	for _, kernel := range []string{AttendF16, AttendInt8} {
		t.Run(kernel, func(t *testing.T) {
			s := newStandIn(t, "sm=80")
			attention(t, Options{Library: s.library, Attend: kernel})
		})
	}
}

// TestChooseAttend_ByCapability says which kernel which device gets, and that it can be forced.
func TestChooseAttend_ByCapability(t *testing.T) {
	t.Setenv(EnvAttend, "")
	for capability, want := range map[int]string{75: AttendPlain, 80: AttendInt8, 86: AttendInt8,
		87: AttendInt8, 89: AttendInt8, 90: AttendInt8, 100: AttendInt8, 103: AttendF16, 110: AttendF16,
		120: AttendInt8, 121: AttendF16} {
		c, err := ChooseAttend(capability, "")
		require.NoError(t, err)
		require.Equal(t, want, c.Kernel, capability)
		require.Contains(t, c.Why, "compute capability")
	}
	for _, k := range AttendKernels() {
		t.Setenv(EnvAttend, k)
		c, err := ChooseAttend(90, "")
		require.NoError(t, err)
		require.Equal(t, k+": set by "+EnvAttend, c.String())
		c, err = ChooseAttend(103, AttendPlain) // the option counts more
		require.NoError(t, err)
		require.Equal(t, AttendPlain, c.Kernel)
	}
	_, err := ChooseAttend(75, "") // int8
	require.ErrorIs(t, err, quant.ErrUnavailable)
	_, err = ChooseAttend(90, "int4")
	require.ErrorIs(t, err, quant.ErrUnsupported)
}

// A kernel that was chosen and fails the self-test gives way; one that was asked for does not.
func TestOpen_KernelThatFails(t *testing.T) {
	t.Setenv(EnvAttend, "")
	s := newStandIn(t, "sm=80,skip="+int8Kernel+"64")
	_, err := s.open(Options{Attend: AttendInt8})
	require.ErrorContains(t, err, "self-test: attend lm1+len+s8: ")
	b, err := s.open(Options{})
	require.NoError(t, err)
	require.Equal(t, AttendPlain, b.Attention().Kernel)
	require.Contains(t, b.Attention().Why, "int8 fails the self-test")
	require.NoError(t, b.Close())
	s.configure("sm=80,skip=" + int8Kernel + "128")
	_, err = s.open(Options{Attend: AttendInt8})
	require.ErrorContains(t, err, " at 128: ")
	s.configure("sm=80,skip=" + mmaKernel) // it was this kernel that worked
	_, err = s.open(Options{Attend: AttendF16})
	require.ErrorContains(t, err, "self-test: attend")
	s.clean()
}

// TestBackend_SuiteOnDevice runs the suite on a real device. With KVIST_REQUIRE=cuda it fails on a
// machine without one.
func TestBackend_SuiteOnDevice(t *testing.T) {
	requireDevice(t)
	suite(t, Options{})
}

// TestTensorCores_OnDevice runs the suite with tensor cores.
func TestTensorCores_OnDevice(t *testing.T) {
	requireDevice(t)
	for _, kernel := range []string{AttendF16, AttendInt8} {
		t.Run(kernel, func(t *testing.T) { attention(t, Options{Attend: kernel}) })
	}
}

// attention runs the tests of attention with a kernel.
func attention(t *testing.T, o Options) {
	o.Device, o.NoSelfTest = AnyDevice, true
	var d backendtest.Digits
	if o.Attend == AttendInt8 {
		// Half a step, and what the factors before and after it round.
		const slack = 1 + 1e-3
		d = backendtest.Digits{Query: slack * 0.5 / 32512, Weight: slack * 0.5 / 65535,
			Takes: func(k, v quant.Coding, dim, dimV int) bool {
				return k.Format.Nested() && v.Format.Nested() && int8Works(dim, dimV)
			}}
	}
	backendtest.RunAttention(t, d, func(t *testing.T) backend.Backend {
		b, err := Open(o)
		require.NoError(t, err)
		require.Equal(t, o.Attend, b.Attention().Kernel)
		return b
	})
}

func TestSelfTest_OnDevice(t *testing.T) {
	requireDevice(t)
	b, err := Open(Options{Device: AnyDevice})
	require.NoError(t, err)
	for _, c := range selftest.Run(context.Background(), b) {
		require.True(t, c.OK, "%s: %s", c.Name, c.Detail)
	}
	require.NoError(t, b.Close())
}

func suite(t *testing.T, o Options) {
	o.Device, o.NoSelfTest = AnyDevice, true
	backendtest.RunBackend(t, func(t *testing.T) backend.Backend {
		b, err := Open(o)
		require.NoError(t, err)
		return b
	})
}

// requireDevice skips the test without a device, or fails it if KVIST_REQUIRE names cuda.
func requireDevice(tb testing.TB) {
	tb.Helper()
	info, err := Probe("")
	if err == nil {
		_, err = choose(info, AnyDevice)
	}
	if err == nil {
		return
	}
	for _, w := range strings.Split(os.Getenv("KVIST_REQUIRE"), ",") {
		if w == "cuda" {
			tb.Fatalf("a CUDA device is required: %v", err)
		}
	}
	tb.Skipf("no CUDA device: %v", err)
}

// The time of kernels is the time between the events around them.
func TestDeviceTime_CountsKernels(t *testing.T) {
	s := newStandIn(t, "")
	b, err := s.open(Options{NoSelfTest: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()); s.clean() }()
	sc := scenario{b: b}
	d, err := b.DeviceTime(sc.run)
	require.NoError(t, err)
	require.Positive(t, d)
	d, err = b.DeviceTime(func() error { return nil })
	require.NoError(t, err)
	require.Zero(t, d)
}
