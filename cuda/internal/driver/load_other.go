// SPDX-License-Identifier: Apache-2.0

//go:build !linux || (!amd64 && !arm64)

package driver

import (
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/quant"
)

// Library is the driver's library.
const Library = "libcuda.so.1"

// Load returns an error: this build has no CUDA backend for its platform.
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
