// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// Status is a CUresult.
type Status int32

// The codes that the package or its users act on.
const (
	StatusSuccess            Status = 0   // CUDA_SUCCESS
	StatusOutOfMemory        Status = 2   // CUDA_ERROR_OUT_OF_MEMORY
	StatusNotInitialized     Status = 3   // CUDA_ERROR_NOT_INITIALIZED
	StatusDeviceUnavailable  Status = 46  // CUDA_ERROR_DEVICE_UNAVAILABLE
	StatusNoDevice           Status = 100 // CUDA_ERROR_NO_DEVICE
	StatusECC                Status = 214 // CUDA_ERROR_ECC_UNCORRECTABLE
	StatusNVLink             Status = 220 // CUDA_ERROR_NVLINK_UNCORRECTABLE
	StatusUnsupportedPTX     Status = 222 // CUDA_ERROR_UNSUPPORTED_PTX_VERSION
	StatusIllegalAddress     Status = 700 // CUDA_ERROR_ILLEGAL_ADDRESS
	StatusLaunchTimeout      Status = 702 // CUDA_ERROR_LAUNCH_TIMEOUT
	StatusContextDestroyed   Status = 709 // CUDA_ERROR_CONTEXT_IS_DESTROYED
	StatusAssert             Status = 710 // CUDA_ERROR_ASSERT
	StatusHardwareStack      Status = 714 // CUDA_ERROR_HARDWARE_STACK_ERROR
	StatusIllegalInstruction Status = 715 // CUDA_ERROR_ILLEGAL_INSTRUCTION
	StatusMisaligned         Status = 716 // CUDA_ERROR_MISALIGNED_ADDRESS
	StatusAddressSpace       Status = 717 // CUDA_ERROR_INVALID_ADDRESS_SPACE
	StatusInvalidPC          Status = 718 // CUDA_ERROR_INVALID_PC
	StatusLaunchFailed       Status = 719 // CUDA_ERROR_LAUNCH_FAILED
)

// DeviceLost reports whether the code means that this process cannot use the context any more.
func (s Status) DeviceLost() bool {
	switch s {
	case StatusDeviceUnavailable, StatusECC, StatusNVLink, StatusIllegalAddress,
		StatusLaunchTimeout, StatusContextDestroyed, StatusAssert, StatusHardwareStack,
		StatusIllegalInstruction, StatusMisaligned, StatusAddressSpace, StatusInvalidPC,
		StatusLaunchFailed:
		return true
	}
	return false
}

// Error is a driver call that failed.
type Error struct {
	Op     string // the call, with an argument if it helps: "cuMemAlloc(4096 bytes)"
	Kernel string // the last kernel launched before the call, or ""
	Code   Status
	Name   string // name of the code: "CUDA_ERROR_OUT_OF_MEMORY"
	Log    string // log of the JIT compiler, if the call loaded a module
}

// Error names the call, the code and the kernel.
func (e *Error) Error() string {
	s := fmt.Sprintf("kvist/cuda: %s: %s (%d)", e.Op, e.Name, int32(e.Code))
	if e.Kernel != "" {
		s += ", after launching " + e.Kernel
	}
	if e.Log != "" {
		s += ": " + e.Log
	}
	return s
}

// Unwrap returns the category: quant.ErrTooLarge if memory ran out, else quant.ErrUnavailable.
func (e *Error) Unwrap() error {
	if e.Code == StatusOutOfMemory {
		return quant.ErrTooLarge
	}
	return quant.ErrUnavailable
}
