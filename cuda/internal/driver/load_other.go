// SPDX-License-Identifier: Apache-2.0

//go:build !linux || (!amd64 && !arm64) || nocuda

package driver

import (
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/quant"
)

// Library is the driver's library.
const Library = "libcuda.so.1"

// Built reports whether this build can open a driver at all.
const Built = false

// Load returns an error: this build has no CUDA backend, as its platform has none or as it was built with the tag
// nocuda, which makes a binary that is linked statically.
func Load(string) (*API, error) {
	return nil, fmt.Errorf("kvist/cuda: this build has no CUDA backend for %s/%s: %w", runtime.GOOS,
		runtime.GOARCH, quant.ErrUnavailable)
}

// Symbol returns the same error as Load.
func (a *API) Symbol(string) (uintptr, error) {
	_, err := Load("")
	return 0, err
}

// Call is never reached: there is no API.
func Call(uintptr, ...uintptr) uintptr { return uintptr(StatusNotInitialized) }
