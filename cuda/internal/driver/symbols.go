// SPDX-License-Identifier: Apache-2.0

package driver

// API is an opened driver library.
type API struct {
	path   string
	handle uintptr

	cuInit, cuDriverGetVersion, cuDeviceGetCount, cuDeviceGet, cuDeviceGetName,
	cuDeviceTotalMem, cuDeviceGetAttribute, cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRelease,
	cuCtxPushCurrent, cuCtxPopCurrent, cuModuleLoadDataEx, cuModuleUnload, cuModuleGetFunction,
	cuFuncSetAttribute, cuMemAlloc, cuMemFree, cuMemHostAlloc, cuMemFreeHost, cuMemcpyHtoDAsync,
	cuMemcpyDtoHAsync, cuMemcpyDtoDAsync, cuMemsetD8Async, cuMemGetInfo, cuStreamCreate,
	cuStreamDestroy, cuStreamSynchronize, cuEventCreate, cuEventDestroy, cuEventRecord,
	cuEventSynchronize, cuEventElapsedTime, cuLaunchKernel, cuGetErrorName uintptr
}

// symbol binds a field to an exported name, including the version suffix.
type symbol struct {
	name     string
	at       *uintptr
	optional bool
}

// symbols is the whole binding. All names exist since CUDA 7. It avoids functions whose signature
// changed in CUDA 13.
func (a *API) symbols() []symbol {
	return []symbol{
		{"cuInit", &a.cuInit, false},
		{"cuDriverGetVersion", &a.cuDriverGetVersion, false},
		{"cuDeviceGetCount", &a.cuDeviceGetCount, false},
		{"cuDeviceGet", &a.cuDeviceGet, false},
		{"cuDeviceGetName", &a.cuDeviceGetName, false},
		{"cuDeviceTotalMem_v2", &a.cuDeviceTotalMem, false},
		{"cuDeviceGetAttribute", &a.cuDeviceGetAttribute, false},
		{"cuDevicePrimaryCtxRetain", &a.cuDevicePrimaryCtxRetain, false},
		{"cuDevicePrimaryCtxRelease_v2", &a.cuDevicePrimaryCtxRelease, false},
		{"cuCtxPushCurrent_v2", &a.cuCtxPushCurrent, false},
		{"cuCtxPopCurrent_v2", &a.cuCtxPopCurrent, false},
		{"cuModuleLoadDataEx", &a.cuModuleLoadDataEx, false},
		{"cuModuleUnload", &a.cuModuleUnload, false},
		{"cuModuleGetFunction", &a.cuModuleGetFunction, false},
		{"cuFuncSetAttribute", &a.cuFuncSetAttribute, false},
		{"cuMemAlloc_v2", &a.cuMemAlloc, false},
		{"cuMemFree_v2", &a.cuMemFree, false},
		{"cuMemHostAlloc", &a.cuMemHostAlloc, false},
		{"cuMemFreeHost", &a.cuMemFreeHost, false},
		{"cuMemcpyHtoDAsync_v2", &a.cuMemcpyHtoDAsync, false},
		{"cuMemcpyDtoHAsync_v2", &a.cuMemcpyDtoHAsync, false},
		{"cuMemcpyDtoDAsync_v2", &a.cuMemcpyDtoDAsync, false},
		{"cuMemsetD8Async", &a.cuMemsetD8Async, false},
		{"cuMemGetInfo_v2", &a.cuMemGetInfo, false},
		{"cuStreamCreate", &a.cuStreamCreate, false},
		{"cuStreamDestroy_v2", &a.cuStreamDestroy, false},
		{"cuStreamSynchronize", &a.cuStreamSynchronize, false},
		{"cuEventCreate", &a.cuEventCreate, false},
		{"cuEventDestroy_v2", &a.cuEventDestroy, false},
		{"cuEventRecord", &a.cuEventRecord, false},
		{"cuEventSynchronize", &a.cuEventSynchronize, false},
		{"cuEventElapsedTime", &a.cuEventElapsedTime, false},
		{"cuLaunchKernel", &a.cuLaunchKernel, false},
		{"cuGetErrorName", &a.cuGetErrorName, true},
	}
}

// Path returns the name or path that the library was loaded by.
func (a *API) Path() string { return a.path }
