// SPDX-License-Identifier: Apache-2.0

package auto

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// cudaLibrary is the driver's library by the name that the dynamic loader resolves. libcuda.so
// without a version belongs to toolkits and may be a stub.
const cudaLibrary = "libcuda.so.1"

// libraryFolders are where drivers put their library: the distributions' folders, containers
// with the NVIDIA runtime, WSL, and NixOS.
var libraryFolders = []string{
	"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "lib64",
	"usr/local/nvidia/lib64", "usr/local/nvidia/lib", "usr/local/cuda/compat", "usr/lib/wsl/lib",
	"run/opengl-driver/lib",
}

const (
	loaderCache   = "etc/ld.so.cache"
	driverVersion = "proc/driver/nvidia/version"
	maxFile       = 16 << 20 // of what is read; a loader cache has some hundred KB
)

var versionWord = regexp.MustCompile(`^\d+\.\d+(\.\d+)*$`)

// cudaFindings is what there is of a CUDA driver.
type cudaFindings struct {
	library string   // path of the library, or the loader cache that knows it
	driver  string   // version of the kernel driver, "" when none is loaded
	devices []string // device files
	gpus    []string // model names
}

func (m machine) path(p string) string { return filepath.Join(m.root, filepath.FromSlash(p)) }

// read returns at most maxFile bytes, nothing where there is no such file.
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
		return nil // the patterns are constants; a root that is no pattern finds nothing
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

// probeCUDA says what stands between this machine and a CUDA backend.
func (m machine) probeCUDA() Candidate {
	c := Candidate{Name: CUDA}
	if m.goos != "linux" {
		c.Reason = "this build has no CUDA backend for " + m.goos
		return c
	}
	f := m.findCUDA()
	for _, d := range []Detail{{"library", f.library}, {"driver", f.driver},
		{"devices", strings.Join(f.devices, ", ")}, {"GPUs", strings.Join(f.gpus, ", ")}} {
		if d.Value != "" {
			c.Details = append(c.Details, d)
		}
	}
	looked := "/" + strings.Join(libraryFolders, ", /") + ", /" + loaderCache
	switch {
	case f.library == "" && f.driver != "":
		c.Reason = "found driver " + f.driver + ", but no " + cudaLibrary + " (looked in " + looked + ")"
	case f.library == "":
		c.Reason = "no " + cudaLibrary + " found (looked in " + looked + ")"
	case f.driver == "" && len(f.devices) == 0:
		c.Reason = "found " + f.library + ", but no driver is loaded (no /" + driverVersion +
			", no device file)"
	case f.driver == "":
		c.Reason = "found a driver of unknown version, but this build has no CUDA backend yet"
	default:
		c.Reason = "found driver " + f.driver + ", but this build has no CUDA backend yet"
	}
	return c
}
