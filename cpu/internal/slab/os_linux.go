// SPDX-License-Identifier: Apache-2.0

package slab

import "syscall"

// canMap reports whether memory is mapped on this system.
const canMap = true

// mapMemory maps zeroed memory. Pages become resident when they are first written.
func mapMemory(size int) ([]byte, error) {
	return syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
}

// unmapMemory gives back what mapMemory returned. If the system has no room to split its list of
// mappings, the address space stays and the memory goes.
func unmapMemory(mem []byte) {
	if syscall.Munmap(mem) != nil {
		releaseMemory(mem)
	}
}

// smallPages keeps huge pages away from a mapping. A kernel without huge pages refuses, and needs
// no advice.
func smallPages(mem []byte) { _ = syscall.Madvise(mem, syscall.MADV_NOHUGEPAGE) }

// releaseMemory gives whole pages back to the system and reports whether they now read as zero.
// Locked pages are refused.
func releaseMemory(mem []byte) bool { return syscall.Madvise(mem, syscall.MADV_DONTNEED) == nil }
