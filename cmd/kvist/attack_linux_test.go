// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	attackForged  = flag.Int("forged", 440, "forged files that TestAttack tries")
	attackDamaged = flag.Int("damaged", 60, "damaged files that TestAttack tries")
	attackFrom    = flag.Int("attack-from", 0, "number of the first file, to try one again with -forged 1 "+
		"-damaged 0, or the other way round")
)

// Bounds on the memory and time of an attack.
const (
	attackMemory = 512 << 20
	attackTime   = 5 * time.Second
	attackHang   = 60 * time.Second // after which the process is ended
	attackFiles  = 50               // of one process: cobra keeps the flags of every command line
)

// TestAttack feeds forged and damaged files to every verb that reads. Runs share processes, which have a
// limit on memory: runs are too short to start one for each. A process that dies, hangs or panics
// names the run that it was at.
//
// Memory is limited by RLIMIT_DATA, which counts private pages that can be written: all of Go's heap as
// it is mapped. RLIMIT_AS cannot be used, because Go reserves more addresses than that at its start.
// The peak of resident memory is read after each file as well.
func TestAttack(t *testing.T) {
	dir := attackDir(t)
	makeSeeds(t, dir)
	total := *attackForged + *attackDamaged
	workers := max(1, min(runtime.GOMAXPROCS(0), total/50))
	var wg sync.WaitGroup
	var mu sync.Mutex
	tried, runs := 0, 0
	for w := range workers {
		wg.Go(func() {
			p := attackWork{dir: dir, forged: *attackForged, damaged: *attackDamaged, step: workers}
			for p.next = *attackFrom + w; p.next < *attackFrom+total; {
				results, err := p.run()
				mu.Lock()
				for _, r := range results {
					tried++
					runs += r.Runs
					for _, bad := range r.Bad {
						t.Errorf("file %d (%s; -attack-from %[1]d): %[3]s", r.File, r.Seed, bad)
					}
				}
				mu.Unlock()
				if err != nil {
					t.Errorf("file %d: %v", p.next, err)
					p.next += workers
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d files, %d runs", tried, runs)
	if !t.Failed() {
		require.Equal(t, total, tried)
	}
}

// attackDir is a folder in memory where there is one: every output is synced.
func attackDir(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "kvist-attack-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a folder of this test alone
		return dir
	}
	return t.TempDir()
}

// attackWork is what a process is to do: files next, next+step, and so on.
type attackWork struct {
	dir             string
	forged, damaged int
	next, step      int
}

// attackResult is what a process says of a file.
type attackResult struct {
	File int
	Seed string
	Runs int
	Bad  []string
}

// run starts a process and takes its results until it is done or dies; next is then the file it was at.
func (p *attackWork) run() (results []attackResult, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	last := min(*attackFrom+p.forged+p.damaged, p.next+attackFiles*p.step)
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d %d %d", attackVariable, p.dir,
		*attackFrom+p.forged, p.next, last, p.step), "TMPDIR="+p.dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	at := "start"
	watch := time.AfterFunc(attackHang, func() { _ = cmd.Process.Kill() }) // Wait tells
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		watch.Reset(attackHang)
		line := lines.Bytes()
		if run, ok := bytes.CutPrefix(line, []byte("at ")); ok {
			at = string(run)
			continue
		}
		var r attackResult
		if err := json.Unmarshal(line, &r); err != nil {
			return results, errors.Join(fmt.Errorf("%w: %.200s", err, line), cmd.Wait())
		}
		results = append(results, r)
		p.next = r.File + p.step
	}
	alive := watch.Stop()
	err = errors.Join(lines.Err(), cmd.Wait())
	if err == nil {
		return results, nil
	}
	why := stderr.String()
	if len(why) > 3000 {
		why = why[:3000]
	}
	if !alive {
		why = "hung"
	}
	return results, fmt.Errorf("%s: %w: %s", at, err, why)
}

// attackSeeds lists the seeds in a folder: those that can be forged, and all.
func attackSeeds(dir string) (forged, all []string, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range list {
		switch name := e.Name(); {
		case e.IsDir():
		case strings.HasPrefix(filepath.Ext(name), ".kv"):
			forged = append(forged, name)
			all = append(all, name)
		case slices.Contains([]string{".fvecs", ".gguf", ".npy", ".safetensors", ".txt"}, filepath.Ext(name)):
			all = append(all, name)
		}
	}
	return forged, all, nil
}

// notForTerminals returns what a text has that a terminal would act on, or "".
func notForTerminals(b []byte) string {
	for i, r := range string(b) {
		switch {
		case r == '\n' || r == '\t':
		case r < ' ' || r >= 0x7f && r < 0xa0, r == '\u061c' || r == '\u200e' || r == '\u200f',
			r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069':
			return fmt.Sprintf("%q at %d: %.80q", r, i, b[max(0, i-20):min(len(b), i+20)])
		}
	}
	return ""
}

// limited keeps what is written, up to a bound that no output may pass.
type limited struct{ bytes.Buffer }

var errOutput = errors.New("more output than a file of that size can call for")

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > 64<<20 {
		return 0, errOutput
	}
	return l.Buffer.Write(p)
}

var _ io.Writer = (*limited)(nil)
