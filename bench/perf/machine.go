// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Machine describes the machine without naming it.
type Machine struct {
	Processor string `json:"processor"`   // as the system calls it; "" if it does not
	Cores     int    `json:"cores"`       // that this process may use
	Cache     int64  `json:"cache_bytes"` // of the last level; 0 if unknown
	Memory    int64  `json:"memory_bytes"`
	OS        string `json:"os"`
	Arch      string `json:"arch"`
}

// String describes it in a line.
func (m Machine) String() string {
	s := m.Processor
	if s == "" {
		s = "unknown processor"
	}
	s += fmt.Sprintf(", %d cores", m.Cores)
	if m.Cores == 1 {
		s = strings.TrimSuffix(s, "s")
	}
	if m.Cache > 0 {
		s += fmt.Sprintf(", last-level cache of %d MiB", m.Cache>>20)
	}
	if m.Memory > 0 {
		s += fmt.Sprintf(", %.0f GiB of memory", float64(m.Memory)/(1<<30))
	}
	return s + fmt.Sprintf(", %s/%s", m.OS, m.Arch)
}

// DescribeMachine asks the system.
func DescribeMachine() Machine {
	m := Machine{Cores: runtime.GOMAXPROCS(0), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if m.OS == "linux" {
		m.fillLinux("/")
	}
	return m
}

// fillLinux reads what the kernel tells of itself under root. What is missing stays unknown.
func (m *Machine) fillLinux(root string) {
	m.Processor = value(filepath.Join(root, "proc/cpuinfo"), "model name")
	if kb, err := strconv.ParseInt(strings.TrimSuffix(value(filepath.Join(root, "proc/meminfo"), "MemTotal"), " kB"), 10, 64); err == nil &&
		kb > 0 && kb < 1<<50 {
		m.Memory = kb << 10
	}
	sizes, err := filepath.Glob(filepath.Join(root, "sys/devices/system/cpu/cpu0/cache/index*/size"))
	if err != nil {
		return
	}
	for _, f := range sizes {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(text)), "K"), 10, 64); err == nil && kb < 1<<40 {
			m.Cache = max(m.Cache, kb<<10)
		}
	}
}

// value returns what stands behind the first "key :" of a file.
func value(path, key string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		k, v, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// What the working set is where the system tells nothing, and its bounds.
const (
	assumedCache  = 64 << 20
	assumedMemory = 4 << 30
	leastSet      = 64 << 20
)

// workingSet is how much memory is read in turns so that caches cannot hold it.
func (m Machine) workingSet(quick bool) int64 {
	cache, memory := m.Cache, m.Memory
	if cache == 0 {
		cache = assumedCache
	}
	if memory == 0 {
		memory = assumedMemory
	}
	want, most := 4*cache, memory/8
	if quick {
		want = cache + cache/2
	}
	return max(leastSet, min(want, most))
}
