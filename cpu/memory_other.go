// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cpu

// physicalMemory returns the bytes of memory of the machine, 0 when not known.
func physicalMemory() int64 { return 0 }
