// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64) && !nocuda

package driver

import (
	"fmt"

	"github.com/ebitengine/purego"

	"github.com/kvist-project/kvist/quant"
)

// Library is the library name that the loader resolves. libcuda.so without a version belongs to
// toolkits and may be a stub.
const Library = "libcuda.so.1"

// Built reports whether this build can open a driver at all.
const Built = true

// Load opens a driver library: path, or Library if path is empty. It calls no function of it.
//
// Errors: quant.ErrUnavailable, with the library or the missing symbol.
func Load(path string) (*API, error) {
	if path == "" {
		path = Library
	}
	h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("kvist/cuda: opening %s: %w: %w", path, err, quant.ErrUnavailable)
	}
	a := &API{path: path, handle: h}
	for _, s := range a.symbols() {
		at, err := purego.Dlsym(h, s.name)
		if err != nil && !s.optional {
			return nil, fmt.Errorf("kvist/cuda: %s has no symbol %s, the driver is too old: %w: %w",
				path, s.name, err, quant.ErrUnavailable)
		}
		*s.at = at
	}
	return a, nil
}

// Symbol finds another exported name, for tests that control the stand-in.
//
// Errors: quant.ErrUnavailable.
func (a *API) Symbol(name string) (uintptr, error) {
	at, err := purego.Dlsym(a.handle, name)
	if err != nil {
		return 0, fmt.Errorf("kvist/cuda: %s: symbol %s: %w: %w", a.path, name, err,
			quant.ErrUnavailable)
	}
	return at, nil
}

// Call calls a C function. A pointer that is converted to uintptr in the call expression stays
// alive and in place. Go stacks move, so such variables must be on the heap.
//
//go:uintptrescapes
func Call(fn uintptr, args ...uintptr) uintptr {
	r, _, _ := purego.SyscallN(fn, args...)
	return r
}
