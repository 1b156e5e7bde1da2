// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"syscall"
	"testing"
	"unsafe"
)

// guarded returns n elements whose last one ends a page (or whose first one begins a page,
// front) next to a page that faults on any access.
func guarded[T any](t testing.TB, n int, front bool) []T {
	t.Helper()
	var zero T
	size, page := n*int(unsafe.Sizeof(zero)), syscall.Getpagesize()
	body := (size + page - 1) / page * page
	mem, err := syscall.Mmap(-1, 0, body+2*page, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatalf("mmap of %d bytes: %v", body+2*page, err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(mem) })
	for _, fence := range [][]byte{mem[:page], mem[page+body:]} {
		if err := syscall.Mprotect(fence, syscall.PROT_NONE); err != nil {
			t.Fatalf("mprotect: %v", err)
		}
	}
	if n == 0 {
		return nil
	}
	at := page
	if !front {
		at += body - size
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&mem[at])), n)
}
