// SPDX-License-Identifier: Apache-2.0

package auto

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/kernels/emu"
	"github.com/kvist-project/kvist/quant"
)

const (
	openVersion = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build" +
		"  (dvs-builder)  Fri Jan 24 2025\nGCC version: gcc version 12.3.0\n"
	oldVersion = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56" +
		" UTC 2024\n"
	library = "usr/lib/x86_64-linux-gnu/libcuda.so.1"
)

// fake is a linux machine with the given files.
func fake(t *testing.T, files map[string]string) machine {
	root := t.TempDir()
	for p, text := range files {
		full := filepath.Join(root, filepath.FromSlash(p))
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		require.NoError(t, os.WriteFile(full, []byte(text), 0o644))
	}
	return machine{root: root, goos: "linux", isas: cpu.ISAs(), library: "/nowhere/libcuda.so.1"}
}

func TestProbeCUDA_Reasons(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nothing", nil, "no libcuda.so.1 found (looked in /usr/lib/x86_64-linux-gnu, "},
		{"library and driver", map[string]string{library: "elf", driverVersion: oldVersion},
			"found driver 550.54.15, but: opening /nowhere/libcuda.so.1"},
		{"open driver", map[string]string{"usr/lib64/libcuda.so.1": "elf", driverVersion: openVersion},
			"found driver 570.86.15, but: opening /nowhere/libcuda.so.1"},
		{"driver without library", map[string]string{driverVersion: oldVersion},
			"found driver 550.54.15, but no libcuda.so.1 (looked in "},
		{"toolkit stub only", map[string]string{"usr/lib64/libcuda.so": "elf"},
			"no libcuda.so.1 found"},
		{"library without driver", map[string]string{library: "elf"}, "but no driver is loaded"},
		{"known to the loader", map[string]string{driverVersion: oldVersion,
			loaderCache: "glibc-ld.so.cache\x00/opt/odd/libcuda.so.1\x00"},
			"found driver 550.54.15, but: opening"},
		{"loader knows another", map[string]string{
			loaderCache: "glibc-ld.so.cache\x00/opt/odd/libcuda.so.12\x00"}, "no libcuda.so.1 found"},
		{"WSL", map[string]string{"usr/lib/wsl/lib/libcuda.so.1": "elf", "dev/dxg": ""},
			"found a driver of unknown version, but: opening"},
		{"version file that says nothing", map[string]string{library: "elf",
			driverVersion: "NVRM version: what\n"}, "found driver of unknown version"},
		{"version file of noise", map[string]string{library: "elf", driverVersion: "\x00\xff 1.2"},
			"but no driver is loaded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := fake(t, c.files).probeCUDA()
			require.Equal(t, nameCUDA, got.Name)
			require.False(t, got.Usable)
			require.Contains(t, got.Reason, c.want)
		})
	}
}

func TestProbeCUDA_Details(t *testing.T) {
	m := fake(t, map[string]string{library: "elf", driverVersion: oldVersion, "dev/nvidia0": "",
		"dev/nvidia1": "", "dev/nvidiactl": "",
		"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ: 12\n",
		"proc/driver/nvidia/gpus/0000:02:00.0/information": "IRQ: 13\n"})
	got := map[string]string{}
	for _, d := range m.probeCUDA().Details {
		got[d.Name] = d.Value
	}
	require.Equal(t, filepath.Join(m.root, library), got["library"])
	require.Equal(t, "550.54.15", got["driver"])
	require.Equal(t, "NVIDIA L4", got["GPUs"])
	require.Equal(t, 1, strings.Count(got["device files"], ","), "two devices, not the control file")
}

func TestProbeCUDA_OtherSystems(t *testing.T) {
	m := fake(t, map[string]string{library: "elf", driverVersion: oldVersion})
	m.goos = "plan9"
	require.Equal(t, "this build has no CUDA backend for plan9", m.probeCUDA().Reason)
}

func TestOpen_CUDAIsRefusedWithTheReason(t *testing.T) {
	m := fake(t, map[string]string{library: "elf", driverVersion: oldVersion})
	_, err := m.open(nameCUDA, Options{})
	require.ErrorIs(t, err, quant.ErrUnavailable)
	require.ErrorContains(t, err, "found driver 550.54.15, but: opening /nowhere/libcuda.so.1")
}

// The stand-in driver replaces a GPU: Open and Probe with each of its faults.
func TestOpen_CUDA(t *testing.T) {
	m := machine{root: t.TempDir(), goos: "linux", isas: cpu.ISAs(), library: emu.Build(t)}
	for _, c := range []struct{ name, config, reason string }{
		{"good", "sm=90", ""},
		{"old driver", "version=11080", "the driver supports CUDA 11.8, want 12.0"},
		{"no device", "devices=0", "has no device"},
		{"driver broken", "init=999", "CUDA_ERROR_UNKNOWN (999)"},
		{"PTX refused", "ptx=71", "Unsupported .version 8.0"},
		{"no memory", "memory=5000", "CUDA_ERROR_OUT_OF_MEMORY"},
		{"wrong results", "skip=kvist_attend_h4", "self-test: attend"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KVIST_EMU", c.config)
			var log bytes.Buffer
			opts := Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}
			b, err := m.open(nameAuto, opts)
			require.NoError(t, err)
			caps := b.Caps()
			require.NoError(t, b.Close())
			require.Equal(t, 1, strings.Count(log.String(), "\n"), "logged once")
			probe := m.probeCUDA()
			require.Equal(t, c.reason == "", probe.Usable, probe.Reason)
			named, err := m.open(nameCUDA, Options{})
			if c.reason == "" {
				require.Equal(t, "cuda", caps.Name)
				require.Equal(t, "sm_90 int8", caps.ISA)
				require.Empty(t, caps.Reason)
				require.NoError(t, err)
				require.NoError(t, named.Close())
				require.Contains(t, probe.Reason, "passes the self-test")
				return
			}
			require.Equal(t, "cpu", caps.Name)
			require.Contains(t, caps.Reason, ReasonBroken+"opened ")
			require.Contains(t, caps.Reason, "libcuda.so.1, but: ")
			require.Contains(t, caps.Reason, c.reason)
			require.NotContains(t, caps.Reason, "\n")
			require.Contains(t, log.String(), ReasonBroken)
			require.ErrorIs(t, err, quant.ErrUnavailable)
			require.ErrorContains(t, err, c.reason)
			require.Contains(t, probe.Reason, c.reason)
		})
	}
}

func TestOpen_AutoFallsBackAndSaysWhyOnce(t *testing.T) {
	m := fake(t, map[string]string{library: "elf", driverVersion: oldVersion})
	for _, name := range []string{nameAuto, ""} {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		b, err := m.open(name, Options{Workers: 2, Logger: logger})
		require.NoError(t, err)
		require.Equal(t, "cpu", b.Caps().Name)
		require.Equal(t, 2, b.Caps().Workers)
		require.Contains(t, b.Caps().Reason, "found driver 550.54.15, but: opening")
		require.Equal(t, 1, strings.Count(log.String(), "\n"))
		require.Contains(t, log.String(), "found driver 550.54.15")
		require.NoError(t, b.Close())
	}
}

func TestOpen_Names(t *testing.T) {
	b, err := Open(nameCPU, Options{})
	require.NoError(t, err)
	require.Equal(t, "asked for by name", b.Caps().Reason)
	require.NoError(t, b.Close())
	_, err = Open("tpu", Options{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, "auto, cpu, cuda")
	_, err = Open(nameCPU, Options{Workers: -1})
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestOpen_BadISAIsNotHidden(t *testing.T) {
	t.Setenv(cpu.EnvISA, "abacus")
	_, err := Open(nameAuto, Options{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
}

func TestProbe_ThisMachine(t *testing.T) {
	got := Probe()
	require.Len(t, got, 2)
	require.Equal(t, nameCUDA, got[0].Name)
	require.NotEmpty(t, got[0].Reason)
	require.Equal(t, nameCPU, got[1].Name)
	require.True(t, got[1].Usable)
}
