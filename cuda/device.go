// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// The minimum requirements of the committed PTX.
const (
	MinDriver     = 12000 // CUDA version of the driver: 12.0, NVIDIA driver 525
	MinCapability = 75
)

// Built reports whether this build can open a driver: on Linux, on amd64 and arm64, without the tag nocuda.
const Built = driver.Built

// DeviceInfo describes a device.
type DeviceInfo struct {
	Index      int
	Name       string
	Capability int   // 75 is 7.5
	Units      int   // multiprocessors
	Memory     int64 // bytes
}

// ISA returns the name of the compute capability: "sm_75".
func (d DeviceInfo) ISA() string { return fmt.Sprintf("sm_%d", d.Capability) }

// Info is the result of Probe.
type Info struct {
	Library string // the name or path by which it was opened
	Loaded  bool   // the library was loaded and has all needed symbols
	Driver  int    // the CUDA version it supports: 12020 is 12.2
	Devices []DeviceInfo
}

// VersionString formats a CUDA version: 12020 is "12.2".
func VersionString(v int) string { return fmt.Sprintf("%d.%d", v/1000, v%1000/10) }

// Probe opens the driver and lists its devices. library is Options.Library.
//
// Errors: quant.ErrUnavailable: no library, a missing symbol, a driver that does not initialise or
// is too old. The Info then holds what was found before the error.
func Probe(library string) (Info, error) {
	_, info, err := open(library)
	return info, err
}

// open loads and initialises the driver.
func open(library string) (*driver.API, Info, error) {
	info := Info{Library: library}
	if library == "" {
		info.Library = driver.Library
	}
	api, err := driver.Load(library)
	if err != nil {
		return nil, info, err
	}
	info.Loaded = true
	if err := api.Init(); err != nil {
		return nil, info, err
	}
	if info.Driver, err = api.Version(); err != nil {
		return nil, info, err
	}
	if info.Driver < MinDriver {
		return nil, info, fmt.Errorf("kvist/cuda: the driver supports CUDA %s, want %s or later: %w",
			VersionString(info.Driver), VersionString(MinDriver), quant.ErrUnavailable)
	}
	n, err := api.DeviceCount()
	if err != nil {
		return nil, info, err
	}
	for i := range n {
		d, err := describe(api, i)
		if err != nil {
			return nil, info, err
		}
		info.Devices = append(info.Devices, d)
	}
	return api, info, nil
}

func describe(api *driver.API, i int) (DeviceInfo, error) {
	info := DeviceInfo{Index: i}
	d, err := api.Device(i)
	if err != nil {
		return info, err
	}
	if info.Name, err = api.DeviceName(d); err != nil {
		return info, err
	}
	if info.Memory, err = api.DeviceMemory(d); err != nil {
		return info, err
	}
	if info.Units, err = api.Attribute(d, driver.AttrMultiprocessors); err != nil {
		return info, err
	}
	major, err := api.Attribute(d, driver.AttrMajor)
	if err != nil {
		return info, err
	}
	minor, err := api.Attribute(d, driver.AttrMinor)
	info.Capability = 10*major + minor
	return info, err
}

// choose returns the requested device, or the device with the highest capability and, among those,
// the most memory.
//
// Errors: quant.ErrUnavailable.
func choose(info Info, want int) (DeviceInfo, error) {
	if len(info.Devices) == 0 {
		return DeviceInfo{}, fmt.Errorf("kvist/cuda: the driver (CUDA %s) has no device: %w",
			VersionString(info.Driver), quant.ErrUnavailable)
	}
	if want != AnyDevice && (want < 0 || want >= len(info.Devices)) {
		return DeviceInfo{}, fmt.Errorf("kvist/cuda: device %d of %d: %w", want, len(info.Devices),
			quant.ErrUnavailable)
	}
	var best DeviceInfo
	for i, d := range info.Devices {
		better := d.Capability > best.Capability ||
			(d.Capability == best.Capability && d.Memory > best.Memory)
		if i == want || (want == AnyDevice && better) {
			best = d
		}
	}
	if best.Capability < MinCapability {
		return best, fmt.Errorf("kvist/cuda: device %d, %s, has compute capability %s, want sm_%d or"+
			" later: %w", best.Index, best.Name, best.ISA(), MinCapability, quant.ErrUnavailable)
	}
	return best, nil
}

// Kernels describes the kernels of this build: "PTX ISA 8.0 for sm_75 and later, by NVRTC 12.0.140".
func Kernels() string {
	m, err := kernels.ReadManifest()
	if err != nil || len(m.Modules) == 0 {
		return fmt.Sprint("no kernels: ", err)
	}
	return fmt.Sprintf("PTX ISA %s for %s and later, by %s", m.ISA, m.Modules[0].Target, m.Compiler)
}

// device is an opened device: its context and the kernels.
type device struct {
	api       *driver.API
	info      DeviceInfo
	handle    driver.Device
	context   driver.Context
	modules   []driver.Module
	functions map[string]driver.Function
}

// do calls f on a dedicated thread with the context current.
func (d *device) do(f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := d.api.Push(d.context); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.api.Pop()) }()
	return f()
}

// openDevice retains the context and compiles the kernels. On failure it leaves nothing behind.
func openDevice(api *driver.API, info DeviceInfo) (d *device, err error) {
	d = &device{api: api, info: info, functions: map[string]driver.Function{}}
	if d.handle, err = api.Device(info.Index); err != nil {
		return nil, err
	}
	if d.context, err = api.Retain(d.handle); err != nil {
		return nil, err
	}
	if err := d.do(d.load); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *device) load() error {
	m, err := kernels.ReadManifest()
	if err != nil {
		return err
	}
	byName := map[string]driver.Module{}
	for _, mod := range m.Modules {
		least, err := mod.Capability()
		if err != nil {
			return err
		}
		if d.info.Capability < least {
			continue // its kernels are faster variants of others
		}
		ptx, err := kernels.PTX(mod.Name)
		if err != nil {
			return err
		}
		h, err := d.api.LoadModule(mod.Name, ptx)
		if err != nil {
			return err
		}
		d.modules = append(d.modules, h)
		byName[mod.Name] = h
	}
	for _, e := range kernels.Entries() {
		module, ok := byName[e.Module]
		if !ok {
			continue
		}
		f, err := d.api.Function(module, e.Name)
		if err != nil {
			return err
		}
		d.functions[e.Name] = f
	}
	for name, shared := range map[string]int{mmaKernel: mmaShared,
		int8Kernel + "64": kernels.Int8Shared(64), int8Kernel + "128": kernels.Int8Shared(128)} {
		if f, ok := d.functions[name]; ok {
			if err := d.api.AllowShared(f, name, shared); err != nil {
				return err
			}
		}
	}
	return nil
}

// giveBack calls f with the context current. If the context could not be made current, it tries
// once more: an error of earlier work must not prevent the release.
func (d *device) giveBack(f func() error) error {
	ran := false
	once := func() error { ran = true; return f() }
	err := d.do(once)
	if !ran {
		err = errors.Join(err, d.do(once))
	}
	return err
}

// close unloads the kernels and releases the context.
func (d *device) close() error {
	err := d.giveBack(func() error {
		var err error
		for _, m := range d.modules {
			err = errors.Join(err, d.api.UnloadModule(m))
		}
		return err
	})
	d.modules = nil
	return errors.Join(err, d.api.Release(d.handle))
}
