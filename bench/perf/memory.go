// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// ReadName is the name of the bandwidth that reads of memory reach.
func ReadName(threads int) string { return fmt.Sprintf("memory/op=read/threads=%d", threads) }

// memoryCases measure what memory gives, to hold attention against. Bytes of a copy are read and written.
func memoryCases(threads int) (all []Case) {
	for _, n := range slices.Compact([]int{1, threads}) {
		all = append(all, Case{Names: []string{ReadName(n), fmt.Sprintf("memory/op=copy/threads=%d", n)},
			Setup: func(_ context.Context, e *Env) (*Ready, error) {
				return &Ready{Work: []*Work{e.readWork(n), e.copyWork(n)}}, nil
			}})
	}
	return all
}

// transferCases measure the way to a device's memory and back.
func transferCases() []Case {
	return []Case{{Names: []string{"memory/op=upload/threads=1", "memory/op=download/threads=1"},
		Setup: func(_ context.Context, e *Env) (*Ready, error) {
			b := &buffers{be: e.Backend}
			span, err := b.alloc(passBytes)
			if err != nil {
				return nil, err
			}
			host := make([]byte, passBytes)
			work := func(run func() error) *Work {
				return &Work{Unit: "byte", Units: passBytes, Bytes: passBytes, Threads: 1,
					Run: func(context.Context) error { return run() }}
			}
			return &Ready{Close: b.free, Work: []*Work{work(func() error { return span.Buf.Upload(0, host) }),
				work(func() error { return span.Buf.Download(0, host) })}}, nil
		}}}
}

// passBytes is how much of the area a run reads or copies.
const passBytes = 32 << 20

func (e *Env) readWork(threads int) *Work {
	area, at := e.base.area, 0
	n := min(passBytes/4, len(area))
	return &Work{Unit: "byte", Units: float64(4 * n), Bytes: float64(4 * n), Memory: false, Threads: threads,
		Run: func(context.Context) error {
			if at+n > len(area) {
				at = 0
			}
			e.base.pass(area[at:at+n], threads)
			at += n
			return nil
		}}
}

func (e *Env) copyWork(threads int) *Work {
	from, to := e.base.area[:len(e.base.area)/2], e.base.area[len(e.base.area)/2:]
	n, at := min(passBytes/4, len(from)), 0
	return &Work{Unit: "byte", Units: float64(8 * n), Bytes: float64(8 * n), Threads: threads,
		Run: func(context.Context) error {
			if at+n > len(from) {
				at = 0
			}
			var wg sync.WaitGroup
			for w := range threads {
				lo, hi := at+w*n/threads, at+(w+1)*n/threads
				wg.Add(1)
				go func() {
					defer wg.Done()
					copy(to[lo:hi], from[lo:hi])
				}()
			}
			wg.Wait()
			at += n
			return nil
		}}
}
