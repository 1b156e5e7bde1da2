// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"sync"
	"time"

	"github.com/kvist-project/kvist/cpu/matmul"
)

// The baselines, by their names in a Result.
const (
	baseLoop = "loop" // arithmetic on one core
	baseRead = "read" // memory in order, with as many threads as the work
	baseNone = "none" // a device's own clock
)

const (
	loopTurns = 400_000      // of the loop: some 0.4 ms
	readBytes = 8 << 20      // that a read of the baseline takes, a thread
	readChunk = 64 << 10 / 4 // values of an inner product
)

// baselines time what every sample is held against.
type baselines struct {
	dot   *matmul.Engine
	area  []float32 // larger than the caches
	at    int       // where the next read begins
	sink  uint64
	loops []took // of all loops: what the noise of the machine is told from
}

func newBaselines(bytes int64) (*baselines, error) {
	e, err := matmul.Open(matmul.Options{Workers: 1})
	if err != nil {
		return nil, err
	}
	b := &baselines{dot: e, area: make([]float32, max(bytes, 4*readBytes)/4)}
	for i := range b.area { // pages that were never written are all one page
		b.area[i] = 1
	}
	return b, nil
}

// loop times a fixed amount of arithmetic.
func (b *baselines) loop() took {
	begin := now()
	x, f := b.sink|1, 1.0
	for range loopTurns {
		x = x*6364136223846793005 + 1442695040888963407
		f = f*0.999 + float64(x>>60)
	}
	t := begin.since()
	b.sink = x ^ uint64(f)
	b.loops = append(b.loops, t)
	return t
}

// read times a read of the next part of the area, divided among threads. It returns the time for readBytes.
func (b *baselines) read(threads int) took {
	per := readBytes / 4
	n := min(per*threads, len(b.area)/2)
	if b.at+n > len(b.area) {
		b.at = 0
	}
	part := b.area[b.at : b.at+n]
	b.at += n
	begin := now()
	b.pass(part, threads)
	t := begin.since()
	share := time.Duration(n / per)
	return took{t.wall, t.cpu / max(1, share)}
}

// pass reads values with a number of threads.
func (b *baselines) pass(x []float32, threads int) {
	if threads < 2 {
		b.sum(x)
		return
	}
	var wg sync.WaitGroup
	for w := range threads {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b.sum(x[w*len(x)/threads : (w+1)*len(x)/threads])
		}()
	}
	wg.Wait()
}

func (b *baselines) sum(x []float32) {
	for len(x) >= 2*readChunk {
		_ = b.dot.Dot(x[:readChunk], x[readChunk:2*readChunk])
		x = x[2*readChunk:]
	}
}

// take times a baseline by name.
func (b *baselines) take(name string, threads int) took {
	loop := b.loop() // always: what the noise of the machine is told from
	if name == baseRead {
		return b.read(threads)
	}
	return loop
}

// Noise says how steady the machine was while it measured, from a fixed loop that ran beside every sample.
type Noise struct {
	// Spread is the difference of the quartiles of the loop's processor time over its median.
	Spread float64 `json:"spread"`
	// Waiting is the share of the loop's wall time in which it had no processor.
	Waiting float64 `json:"waiting"`
}

// noisy is the spread, or the share of waiting, from which on figures of a machine deserve a warning.
const noisy = 0.05

// Warning says what is wrong with the machine as a place to measure; "" if nothing is.
func (n Noise) Warning() string {
	if n.Spread < noisy && n.Waiting < noisy {
		return ""
	}
	return fmt.Sprintf("the machine is noisy: a fixed loop takes times that differ by %.0f %%, and waits %.0f %% of "+
		"the time for a processor; wall times and small differences mean little", 100*n.Spread, 100*n.Waiting)
}

func (b *baselines) noise() Noise {
	var times []float64
	var wall, cpu time.Duration
	for _, t := range b.loops {
		times = append(times, float64(t.busy()))
		wall, cpu = wall+t.wall, cpu+t.cpu
	}
	s := spreadOf(times)
	n := Noise{}
	if s.Median > 0 {
		n.Spread = digits4((s.High - s.Low) / s.Median)
	}
	if cpu > 0 && wall > cpu {
		n.Waiting = digits4(1 - float64(cpu)/float64(wall))
	}
	return n
}
