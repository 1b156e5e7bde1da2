// SPDX-License-Identifier: Apache-2.0

package auto

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kvist-project/kvist/cuda"
	"github.com/kvist-project/kvist/quant"
)

// cudaLibrary is the library name that the dynamic loader resolves. libcuda.so without a version
// belongs to toolkits and may be a stub.
const cudaLibrary = "libcuda.so.1"

// libraryFolders are the folders where drivers install their library: those of distributions, of
// containers with the NVIDIA runtime, of WSL and of NixOS.
var libraryFolders = []string{
	"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "lib64",
	"usr/local/nvidia/lib64", "usr/local/nvidia/lib", "usr/local/cuda/compat", "usr/lib/wsl/lib",
	"run/opengl-driver/lib",
}

const (
	loaderCache   = "etc/ld.so.cache"
	driverVersion = "proc/driver/nvidia/version"
	maxFile       = 16 << 20 // bytes to read; a loader cache has some hundred KB
)

var versionWord = regexp.MustCompile(`^\d+\.\d+(\.\d+)*$`)

// cudaFindings are the signs of a CUDA driver on a machine.
type cudaFindings struct {
	library string   // path of the library, or of the loader cache that lists it
	driver  string   // version of the kernel driver, "" if none is loaded
	devices []string // device files
	gpus    []string // model names
}

// found reports whether there is a driver or a device.
func (f *cudaFindings) found() bool { return f.driver != "" || len(f.devices) > 0 }

func (m machine) path(p string) string { return filepath.Join(m.root, filepath.FromSlash(p)) }

// read returns at most maxFile bytes of a file, or nothing if there is no such file.
func (m machine) read(p string) []byte {
	f, err := os.Open(m.path(p))
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	return data
}

func (m machine) glob(pattern string) []string {
	found, err := filepath.Glob(m.path(pattern))
	if err != nil {
		return nil // the patterns are constants; an invalid root matches nothing
	}
	return found
}

func (m machine) findCUDA() cudaFindings {
	var f cudaFindings
	for _, dir := range libraryFolders {
		p := m.path(dir + "/" + cudaLibrary)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			f.library = p
			break
		}
	}
	if f.library == "" && bytes.Contains(m.read(loaderCache), []byte("/"+cudaLibrary+"\x00")) {
		f.library = m.path(loaderCache)
	}
	f.driver = parseDriverVersion(m.read(driverVersion))
	f.devices = append(m.glob("dev/nvidia[0-9]*"), m.glob("dev/dxg")...)
	for _, p := range m.glob("proc/driver/nvidia/gpus/*/information") {
		rel, err := filepath.Rel(m.root, p)
		if err != nil {
			continue
		}
		if model := parseModel(m.read(filepath.ToSlash(rel))); model != "" {
			f.gpus = append(f.gpus, model)
		}
	}
	return f
}

// parseDriverVersion finds the version in a text like "NVRM version: NVIDIA UNIX x86_64 Kernel
// Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", the first line of the file.
func parseDriverVersion(text []byte) string {
	line, _, _ := strings.Cut(string(text), "\n")
	if !strings.HasPrefix(line, "NVRM version:") {
		return ""
	}
	for _, w := range strings.Fields(line) {
		if versionWord.MatchString(w) {
			return w
		}
	}
	return "of unknown version"
}

// parseModel finds the line "Model: 		 NVIDIA L4".
func parseModel(text []byte) string {
	for line := range strings.Lines(string(text)) {
		if model, ok := strings.CutPrefix(line, "Model:"); ok {
			return strings.TrimSpace(model)
		}
	}
	return ""
}

// probeCUDA opens the CUDA backend, describes it, and closes it again.
func (m machine) probeCUDA() Candidate {
	c := Candidate{Name: nameCUDA}
	f := m.findCUDA()
	for _, d := range []Detail{{"library", f.library}, {"driver", f.driver},
		{"device files", strings.Join(f.devices, ", ")}, {"GPUs", strings.Join(f.gpus, ", ")},
		{"kernels", cuda.Kernels()}} {
		if d.Value != "" {
			c.Details = append(c.Details, d)
		}
	}
	b, info, err := m.openCUDA(f)
	if info.Driver > 0 {
		c.Details = append(c.Details, Detail{"driver supports CUDA", cuda.VersionString(info.Driver)})
	}
	for _, d := range info.Devices {
		c.Details = append(c.Details, Detail{fmt.Sprintf("device %d", d.Index),
			fmt.Sprintf("%s, %s, %d multiprocessors, %.1f GiB", d.Name, d.ISA(), d.Units,
				float64(d.Memory)/(1<<30))})
	}
	if err != nil {
		c.Reason = m.whyNot(f, info, err)
		return c
	}
	caps := b.Caps()
	c.Details = append(c.Details, Detail{"attention", b.Attention().String()})
	if err := b.Close(); err != nil {
		c.Reason = m.whyNot(f, info, err)
		return c
	}
	c.Usable = true
	c.Reason = fmt.Sprintf("%s (%s) passes the self-test", caps.Device, caps.ISA)
	return c
}

// openCUDA opens the backend with the library that the loader finds, or else with a library in a
// folder that the loader does not search.
func (m machine) openCUDA(f cudaFindings) (*cuda.Backend, cuda.Info, error) {
	switch {
	case m.goos != "linux":
		return nil, cuda.Info{}, fmt.Errorf("kvist/auto: this build has no CUDA backend for %s: %w",
			m.goos, quant.ErrUnavailable)
	case !cuda.Built:
		return nil, cuda.Info{}, fmt.Errorf("kvist/auto: this build has no CUDA backend (tag nocuda): %w", quant.ErrUnavailable)
	}
	library := m.library
	info, err := cuda.Probe(library)
	if err != nil && !info.Loaded && library == "" && filepath.Base(f.library) == cudaLibrary {
		library = f.library
		info, err = cuda.Probe(library)
	}
	if err != nil {
		return nil, info, err
	}
	b, err := cuda.Open(cuda.Options{Library: library, Device: cuda.AnyDevice})
	return b, info, err
}

// whyNot says in one line why this machine cannot use the CUDA backend.
func (m machine) whyNot(f cudaFindings, info cuda.Info, err error) string {
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "kvist/cuda: "), "kvist/auto: ")
	text = strings.Join(strings.Fields(text), " ")
	text = strings.TrimSuffix(text, ": "+quant.ErrUnavailable.Error())
	looked := "/" + strings.Join(libraryFolders, ", /") + ", /" + loaderCache
	switch {
	case m.goos != "linux", !cuda.Built:
		return text
	case info.Loaded:
		return "opened " + info.Library + ", but: " + text
	case f.library == "" && f.driver != "":
		return "found driver " + f.driver + ", but no " + cudaLibrary + " (looked in " + looked + ")"
	case f.library == "":
		return "no " + cudaLibrary + " found (looked in " + looked + ")"
	case f.driver == "" && len(f.devices) == 0:
		return "found " + f.library + ", but no driver is loaded (no /" + driverVersion +
			", no device file)"
	case f.driver == "":
		return "found a driver of unknown version, but: " + text
	}
	return "found driver " + f.driver + ", but: " + text
}
