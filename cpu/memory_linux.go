// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"math"
	"syscall"
)

// physicalMemory returns the size of the machine's memory, or 0 if it is unknown.
func physicalMemory() int64 {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) != nil {
		return 0
	}
	total := uint64(info.Totalram) * uint64(info.Unit)
	return int64(min(total, math.MaxInt64))
}
