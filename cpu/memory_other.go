// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cpu

// physicalMemory returns the size of the machine's memory, or 0 if it is unknown.
func physicalMemory() int64 { return 0 }
