// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"fmt"
	"runtime"
	"unsafe"
)

// Handles of the driver.
type (
	Device    int32
	Context   uintptr
	Module    uintptr
	Function  uintptr
	Stream    uintptr
	Event     uintptr
	DevicePtr uint64
)

// Attributes of devices and functions.
const (
	AttrMultiprocessors = 16 // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
	AttrMajor           = 75 // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
	AttrMinor           = 76 // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR

	funcMaxDynamicShared = 8 // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
	streamNonBlocking    = 1 // CU_STREAM_NON_BLOCKING
	jitErrorLogBuffer    = 5 // CU_JIT_ERROR_LOG_BUFFER
	jitErrorLogBytes     = 6 // CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES
	launchParamBuffer    = 1 // CU_LAUNCH_PARAM_BUFFER_POINTER
	launchParamBytes     = 2 // CU_LAUNCH_PARAM_BUFFER_SIZE
	jitLogBytes          = 8 << 10
	deviceNameBytes      = 256
	hostAllocPortable    = 1 // CU_MEMHOSTALLOC_PORTABLE
	longestErrorNameText = 128
)

// check converts a code to an error.
func (a *API) check(code uintptr, op string, args ...any) error {
	s := Status(int32(code))
	if s == StatusSuccess {
		return nil
	}
	return &Error{Op: fmt.Sprintf(op, args...), Code: s, Name: a.name(s)}
}

func (a *API) name(s Status) string {
	var text *byte
	if a.cuGetErrorName != 0 {
		if Call(a.cuGetErrorName, uintptr(s), uintptr(unsafe.Pointer(&text))) != 0 {
			text = nil
		}
	}
	if text == nil {
		return "CUDA_ERROR"
	}
	b := unsafe.Slice(text, longestErrorNameText)
	for i := range b { // the driver's text ends with a zero byte
		if b[i] == 0 {
			return string(b[:i])
		}
	}
	return "CUDA_ERROR"
}

// Init initialises the driver.
func (a *API) Init() error { return a.check(Call(a.cuInit, 0), "cuInit") }

// Version returns the CUDA version that the driver supports: 12020 is 12.2.
func (a *API) Version() (int, error) {
	var v int32
	err := a.check(Call(a.cuDriverGetVersion, uintptr(unsafe.Pointer(&v))), "cuDriverGetVersion")
	return int(v), err
}

// DeviceCount returns the number of devices.
func (a *API) DeviceCount() (int, error) {
	var n int32
	err := a.check(Call(a.cuDeviceGetCount, uintptr(unsafe.Pointer(&n))), "cuDeviceGetCount")
	return int(n), err
}

// Device returns the handle of device i.
func (a *API) Device(i int) (Device, error) {
	var d Device
	err := a.check(Call(a.cuDeviceGet, uintptr(unsafe.Pointer(&d)), uintptr(i)), "cuDeviceGet(%d)", i)
	return d, err
}

// DeviceName returns the name that the device reports.
func (a *API) DeviceName(d Device) (string, error) {
	b := make([]byte, deviceNameBytes)
	err := a.check(Call(a.cuDeviceGetName, uintptr(unsafe.Pointer(&b[0])), deviceNameBytes,
		uintptr(d)), "cuDeviceGetName")
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name), err
}

// DeviceMemory returns the size of the device's memory in bytes.
func (a *API) DeviceMemory(d Device) (int64, error) {
	var n uint64
	err := a.check(Call(a.cuDeviceTotalMem, uintptr(unsafe.Pointer(&n)), uintptr(d)),
		"cuDeviceTotalMem")
	return int64(n), err
}

// Attribute returns an attribute of the device.
func (a *API) Attribute(d Device, attr int) (int, error) {
	var v int32
	err := a.check(Call(a.cuDeviceGetAttribute, uintptr(unsafe.Pointer(&v)), uintptr(attr),
		uintptr(d)), "cuDeviceGetAttribute(%d)", attr)
	return int(v), err
}

// Retain retains the device's primary context; Release releases it.
func (a *API) Retain(d Device) (Context, error) {
	var c Context
	err := a.check(Call(a.cuDevicePrimaryCtxRetain, uintptr(unsafe.Pointer(&c)), uintptr(d)),
		"cuDevicePrimaryCtxRetain")
	return c, err
}

// Release releases the primary context.
func (a *API) Release(d Device) error {
	return a.check(Call(a.cuDevicePrimaryCtxRelease, uintptr(d)), "cuDevicePrimaryCtxRelease")
}

// Push makes a context current on this thread. Pop undoes it.
func (a *API) Push(c Context) error {
	return a.check(Call(a.cuCtxPushCurrent, uintptr(c)), "cuCtxPushCurrent")
}

// Pop makes the previous context current again.
func (a *API) Pop() error {
	var c Context
	return a.check(Call(a.cuCtxPopCurrent, uintptr(unsafe.Pointer(&c))), "cuCtxPopCurrent")
}

// LoadModule compiles PTX for the device. The error carries the compiler's log.
func (a *API) LoadModule(name string, ptx []byte) (Module, error) {
	image := append(append(make([]byte, 0, len(ptx)+1), ptx...), 0)
	log := make([]byte, jitLogBytes)
	options := []int32{jitErrorLogBuffer, jitErrorLogBytes}
	values := []uintptr{uintptr(unsafe.Pointer(&log[0])), uintptr(len(log))}
	var pin runtime.Pinner
	pin.Pin(&log[0])
	defer pin.Unpin()
	var m Module
	err := a.check(Call(a.cuModuleLoadDataEx, uintptr(unsafe.Pointer(&m)),
		uintptr(unsafe.Pointer(&image[0])), uintptr(len(options)),
		uintptr(unsafe.Pointer(&options[0])), uintptr(unsafe.Pointer(&values[0]))),
		"cuModuleLoadDataEx(%s)", name)
	if e, ok := err.(*Error); ok {
		text, _, _ := bytes.Cut(log, []byte{0})
		e.Log = string(bytes.TrimSpace(text))
	}
	return m, err
}

// UnloadModule unloads a module.
func (a *API) UnloadModule(m Module) error {
	return a.check(Call(a.cuModuleUnload, uintptr(m)), "cuModuleUnload")
}

// Function finds an entry of a module.
func (a *API) Function(m Module, name string) (Function, error) {
	text := append([]byte(name), 0)
	var f Function
	err := a.check(Call(a.cuModuleGetFunction, uintptr(unsafe.Pointer(&f)), uintptr(m),
		uintptr(unsafe.Pointer(&text[0]))), "cuModuleGetFunction(%s)", name)
	return f, err
}

// AllowShared lets launches of f use n bytes of dynamic shared memory, beyond the 48 KiB that every
// function may use.
func (a *API) AllowShared(f Function, kernel string, n int) error {
	return a.check(Call(a.cuFuncSetAttribute, uintptr(f), funcMaxDynamicShared, uintptr(n)),
		"cuFuncSetAttribute(%s, %d bytes of shared memory)", kernel, n)
}

// MemAlloc returns n bytes of uninitialised device memory, n > 0, 256-byte aligned.
func (a *API) MemAlloc(n int64) (DevicePtr, error) {
	var p DevicePtr
	err := a.check(Call(a.cuMemAlloc, uintptr(unsafe.Pointer(&p)), uintptr(n)),
		"cuMemAlloc(%d bytes)", n)
	return p, err
}

// MemFree frees device memory.
func (a *API) MemFree(p DevicePtr) error {
	return a.check(Call(a.cuMemFree, uintptr(p)), "cuMemFree")
}

// MemInfo returns the free and the total memory of the current context's device in bytes.
func (a *API) MemInfo() (free, total int64, err error) {
	var f, t uint64
	err = a.check(Call(a.cuMemGetInfo, uintptr(unsafe.Pointer(&f)), uintptr(unsafe.Pointer(&t))),
		"cuMemGetInfo")
	return int64(f), int64(t), err
}

// HostAlloc returns n bytes of pinned memory, n > 0, outside the Go heap.
func (a *API) HostAlloc(n int) ([]byte, error) {
	var p unsafe.Pointer
	err := a.check(Call(a.cuMemHostAlloc, uintptr(unsafe.Pointer(&p)), uintptr(n),
		hostAllocPortable), "cuMemHostAlloc(%d bytes)", n)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), n), nil
}

// HostFree frees pinned memory.
func (a *API) HostFree(b []byte) error {
	return a.check(Call(a.cuMemFreeHost, uintptr(unsafe.Pointer(unsafe.SliceData(b)))),
		"cuMemFreeHost")
}

// CopyToDevice starts a copy from pinned memory.
func (a *API) CopyToDevice(dst DevicePtr, src []byte, s Stream) error {
	return a.check(Call(a.cuMemcpyHtoDAsync, uintptr(dst),
		uintptr(unsafe.Pointer(unsafe.SliceData(src))), uintptr(len(src)), uintptr(s)),
		"cuMemcpyHtoDAsync(%d bytes)", len(src))
}

// CopyToHost starts a copy to pinned memory.
func (a *API) CopyToHost(dst []byte, src DevicePtr, s Stream) error {
	return a.check(Call(a.cuMemcpyDtoHAsync, uintptr(unsafe.Pointer(unsafe.SliceData(dst))),
		uintptr(src), uintptr(len(dst)), uintptr(s)), "cuMemcpyDtoHAsync(%d bytes)", len(dst))
}

// CopyOnDevice starts a copy between device memory.
func (a *API) CopyOnDevice(dst, src DevicePtr, n int64, s Stream) error {
	return a.check(Call(a.cuMemcpyDtoDAsync, uintptr(dst), uintptr(src), uintptr(n), uintptr(s)),
		"cuMemcpyDtoDAsync(%d bytes)", n)
}

// Set starts to fill device memory with a byte value.
func (a *API) Set(dst DevicePtr, value byte, n int64, s Stream) error {
	return a.check(Call(a.cuMemsetD8Async, uintptr(dst), uintptr(value), uintptr(n), uintptr(s)),
		"cuMemsetD8Async(%d bytes)", n)
}

// NewStream returns a stream that does not wait for the default one.
func (a *API) NewStream() (Stream, error) {
	var s Stream
	err := a.check(Call(a.cuStreamCreate, uintptr(unsafe.Pointer(&s)), streamNonBlocking),
		"cuStreamCreate")
	return s, err
}

// DestroyStream gives a stream back.
func (a *API) DestroyStream(s Stream) error {
	return a.check(Call(a.cuStreamDestroy, uintptr(s)), "cuStreamDestroy")
}

// Synchronize waits for all work of a stream.
func (a *API) Synchronize(s Stream) error {
	return a.check(Call(a.cuStreamSynchronize, uintptr(s)), "cuStreamSynchronize")
}

// NewEvent returns an event that takes times.
func (a *API) NewEvent() (Event, error) {
	var e Event
	err := a.check(Call(a.cuEventCreate, uintptr(unsafe.Pointer(&e)), 0), "cuEventCreate")
	return e, err
}

// DestroyEvent gives an event back.
func (a *API) DestroyEvent(e Event) error {
	return a.check(Call(a.cuEventDestroy, uintptr(e)), "cuEventDestroy")
}

// Record puts an event behind the work of a stream.
func (a *API) Record(e Event, s Stream) error {
	return a.check(Call(a.cuEventRecord, uintptr(e), uintptr(s)), "cuEventRecord")
}

// WaitEvent waits for an event.
func (a *API) WaitEvent(e Event) error {
	return a.check(Call(a.cuEventSynchronize, uintptr(e)), "cuEventSynchronize")
}

// Elapsed returns the milliseconds between two events that have passed.
func (a *API) Elapsed(from, to Event) (float32, error) {
	var ms float32
	err := a.check(Call(a.cuEventElapsedTime, uintptr(unsafe.Pointer(&ms)), uintptr(from),
		uintptr(to)), "cuEventElapsedTime")
	return ms, err
}

// Launch is one launch of a kernel that takes one struct by value. It must live on the heap, and
// is used by one launch at a time: the driver copies the parameters before it returns.
type Launch struct {
	Params [256]byte
	size   uintptr
	extra  [5]uintptr
}

// Start launches f on a grid of thread blocks, with n bytes of Params and shared bytes of dynamic
// shared memory.
func (a *API) Start(l *Launch, f Function, kernel string, grid [2]int, threads, shared, n int,
	s Stream) error {
	l.size = uintptr(n)
	l.extra = [5]uintptr{launchParamBuffer, uintptr(unsafe.Pointer(&l.Params)), launchParamBytes,
		uintptr(unsafe.Pointer(&l.size)), 0}
	err := a.check(Call(a.cuLaunchKernel, uintptr(f), uintptr(grid[0]), uintptr(grid[1]), 1,
		uintptr(threads), 1, 1, uintptr(shared), uintptr(s), 0,
		uintptr(unsafe.Pointer(&l.extra))), "cuLaunchKernel(%s)", kernel)
	runtime.KeepAlive(l)
	return err
}
