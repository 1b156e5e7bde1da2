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
)

func TestBackend_Suite(t *testing.T) { suite(t, Options{Library: emu.Build(t)}) }

// TestTensorCores_Suite compares the attention of tensor cores with the same reference.
func TestTensorCores_Suite(t *testing.T) {
	s := newStandIn(t, "sm=80")
	attention(t, Options{Library: s.library, TensorCores: true})
	s.configure("sm=80,skip=" + mmaKernel) // it was this kernel that worked
	_, err := s.open(Options{TensorCores: true})
	require.ErrorContains(t, err, "self-test: attend")
	s.configure("sm=75") // no tensor cores that the kernel could use: the plain one works
	b, err := s.open(Options{TensorCores: true})
	require.NoError(t, err)
	require.False(t, b.mma)
	require.NoError(t, b.Close())
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
	attention(t, Options{TensorCores: true})
}

func attention(t *testing.T, o Options) {
	o.Device, o.NoSelfTest = AnyDevice, true
	backendtest.RunAttention(t, func(t *testing.T) backend.Backend {
		b, err := Open(o)
		require.NoError(t, err)
		require.True(t, b.mma, "the device has no tensor cores for this kernel")
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
