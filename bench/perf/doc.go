// SPDX-License-Identifier: Apache-2.0

// Package perf measures what kvist costs on a machine: the harness of kvist bench, its records, and the
// comparison of two of them.
//
// # Concepts
//
// A Case prepares work and names what is measured on it. Cases lists all of them. Measure runs the chosen ones
// and returns a Record: the machine, the settings, and a Result for every name. Records are JSON; tables, pages,
// the format of Go's benchmarks and comparisons are made from them and measure nothing.
//
// Names are of the form group/key=value/..., so that benchstat can sort by a key.
//
// # Timing
//
// A sample runs the work as often as it takes some milliseconds. Samples of one name come from several rounds,
// each with memory of its own, because where memory lies changes the speed from run to run. A Result holds the
// median and the quartiles of its samples, in wall time and in processor time of the process, for one unit of
// the work. The first runs warm up and do not count.
//
// Beside every sample a baseline is timed: a loop of arithmetic, or a read of memory for work that is bound by
// memory. Relative is the processor time of a sample over that of its baseline. A clock that changes, or a
// neighbour that takes memory bandwidth, moves both, so records are compared by Relative.
//
// # Units
//
// Bytes per second of attention are of stored bytes. A row pair is a row of K and a row of V of one KV head.
//
// # Errors
//
// quant.ErrCorrupt and quant.ErrVersion for files that are no records, quant.ErrUnsupported for records that
// cannot be compared, quant.ErrShape for filters that match nothing; those of the backend.
package perf
