// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// processor returns the processor time of the process.
func processor() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return time.Since(start)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
