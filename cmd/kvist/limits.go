// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime/debug"

	"github.com/kvist-project/kvist/engine/container"
)

// What a verb that reads a .kvist file takes: 64 MiB, and four times what its largest record stands for
// (container.Limits.MaxExpandedBytes bounds that). outsideHeap of it is the program itself, and what
// the collector does not count.
const (
	readingBytes = 64 << 20
	outsideHeap  = 36 << 20
)

// openKvist opens a .kvist file for reading from end to end.
func openKvist(in *input) (*container.Reader, error) {
	r, err := container.Open(in.name, in, in.size, container.Limits{})
	if err != nil {
		return nil, err
	}
	boundMemory(r)
	return r, nil
}

// boundMemory lets the collector run before garbage takes as much again as what is in use. It does not
// raise the limit that the process was started with.
func boundMemory(r *container.Reader) {
	debug.SetMemoryLimit(min(memoryLimit, readingBytes-outsideHeap+4*r.Largest()))
}

// memoryLimit is what GOMEMLIMIT set, or none.
var memoryLimit = debug.SetMemoryLimit(-1)

// liftMemory takes the bound away again: what measures a file against its original, and what
// compresses, holds more than a record.
func liftMemory() { debug.SetMemoryLimit(memoryLimit) }
