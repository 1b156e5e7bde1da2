// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"syscall"
	"time"
)

// cpuTime is the processor time of this process. On a shared machine it measures a kernel better
// than the wall clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
