// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kvist-project/kvist/cmd/kvist/internal/attack"
)

// attackVariable makes of the test binary a process that attacks: its value says folder, where forged files
// end, first, last and step.
const attackVariable = "KVIST_ATTACK"

// checkTerminals says whether output is held to what terminals show.
const checkTerminals = true

// attackChild tries files until the last one and prints results, a line each.
func attackChild(work string) error {
	c := &attacker{out: json.NewEncoder(os.Stdout)}
	var forged, first, last, step int
	if _, err := fmt.Sscanf(work, "%s %d %d %d %d", &c.dir, &forged, &first, &last, &step); err != nil {
		return err
	}
	limit := syscall.Rlimit{Cur: attackMemory, Max: attackMemory}
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &limit); err != nil {
		return fmt.Errorf("limit memory: %w", err)
	}
	c.work = filepath.Join(c.dir, fmt.Sprintf("work-%d", os.Getpid()))
	if err := os.Mkdir(c.work, 0o755); err != nil {
		return err
	}
	forge, damage, err := attackSeeds(c.dir)
	if err != nil {
		return err
	}
	for n := first; n < last; n += step {
		list, make := forge, attack.Forge
		if n >= forged {
			list, make = damage, attack.Damage
		}
		seed := list[n%len(list)]
		b, err := os.ReadFile(filepath.Join(c.dir, seed))
		if err != nil {
			return err
		}
		if err := c.try(n, seed, make(b, uint64(n))); err != nil {
			return err
		}
	}
	return os.RemoveAll(c.work)
}

type attacker struct {
	dir, work string
	out       *json.Encoder
}

// try gives a file to all that reads files of its kind.
func (c *attacker) try(n int, seed string, b []byte) error {
	res := attackResult{File: n, Seed: seed}
	path := filepath.Join(c.work, "file"+filepath.Ext(seed))
	for _, line := range readings(seed) {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
		args := placed(line, c.dir, c.work, path, seed)
		fmt.Fprintf(os.Stdout, "at %s: %s\n", seed, strings.Join(line, " "))
		res.Runs++
		bad := c.once(args, path)
		if strings.HasPrefix(bad, "slow") {
			bad = c.once(args, path) // the machine may have been busy
		}
		if bad != "" {
			res.Bad = append(res.Bad, strings.Join(line, " ")+": "+bad)
		}
	}
	peak, err := peakMemory()
	if err != nil {
		return err
	}
	if peak > attackMemory {
		res.Bad = append(res.Bad, fmt.Sprintf("%d MiB of memory", peak>>20))
	}
	return c.out.Encode(res)
}

// once runs one command line that reads a file and says what was wrong, or "".
func (c *attacker) once(args []string, file string) (bad string) {
	defer func() {
		if v := recover(); v != nil {
			bad = fmt.Sprintf("panic: %v\n%s", v, debug.Stack())
		}
		for _, name := range []string{"out", "out.kvprofile"} {
			if err := os.RemoveAll(filepath.Join(c.work, name)); err != nil {
				bad += err.Error()
			}
		}
		liftMemory()
		trim()
	}()
	var stdout, stderr limited
	start := time.Now()
	code := run(context.Background(), args, strings.NewReader(typed(args, file)), &stdout, &stderr)
	took := time.Since(start)
	switch {
	case took > attackTime:
		return fmt.Sprintf("slow: %v", took)
	case code < 0 || code > exitDamaged:
		return fmt.Sprintf("exit status %d", code)
	case code != exitOK && stderr.Len() == 0 && !slices.Contains(args, "--json"):
		return fmt.Sprintf("exit status %d without a word", code)
	}
	if checkTerminals {
		for _, b := range [][]byte{stdout.Bytes(), stderr.Bytes()} {
			if s := notForTerminals(b); s != "" {
				return "for a terminal: " + s
			}
		}
	}
	return ""
}

// trim gives memory back where a run left much.
func trim() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapSys-m.HeapReleased > 96<<20 {
		debug.FreeOSMemory()
	}
}

// peakMemory is the most resident memory that the process has had, in bytes.
func peakMemory() (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kb); n == 1 {
			return kb << 10, nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}
