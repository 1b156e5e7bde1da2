// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/kernels/emu"
)

// standIn controls the stand-in driver, whose state is global to the process.
type standIn struct {
	t                                   *testing.T
	library                             string
	reset, failAt, seed, counter, texts uintptr
}

// The counters of standIn.count.
const (
	countCalls = iota
	countLaunches
	countDevice
	countPinned
	countStreams
	countEvents
	countModules
	countContexts
	countLeaked
	countBytes
)

// newStandIn builds and resets the stand-in. config is a value of the variable KVIST_EMU.
func newStandIn(t *testing.T, config string) *standIn {
	t.Helper()
	s := &standIn{t: t, library: emu.Build(t)}
	api, err := driver.Load(s.library)
	require.NoError(t, err)
	for name, at := range map[string]*uintptr{"cuEmuReset": &s.reset, "cuEmuFailAt": &s.failAt,
		"cuEmuSeed": &s.seed, "cuEmuCount": &s.counter, "cuEmuText": &s.texts} {
		*at, err = api.Symbol(name)
		require.NoError(t, err)
	}
	s.configure(config)
	t.Cleanup(func() { s.configure("") })
	return s
}

func (s *standIn) configure(config string) {
	text := append([]byte(config), 0)
	driver.Call(s.reset, uintptr(unsafe.Pointer(&text[0])))
}

// fail makes the n-th call from now fail.
func (s *standIn) fail(n int, code driver.Status) { driver.Call(s.failAt, uintptr(n), uintptr(code)) }

func (s *standIn) count(what int) int { return int(driver.Call(s.counter, uintptr(what))) }

// failed returns the name of the call that failed on demand, or "" if none has yet.
func (s *standIn) failed() string { return s.text(1) }

// why returns the reason for which the last kernel failed.
func (s *standIn) why() string { return s.text(0) }

func (s *standIn) text(what int) string { return cString(driver.Call(s.texts, uintptr(what))) }

// cString copies a text of the library.
func cString(at uintptr) string {
	p := *(**byte)(unsafe.Pointer(&at)) // memory of the library
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return string(unsafe.Slice(p, n))
}

// clean fails the test if anything is left behind.
func (s *standIn) clean() {
	s.t.Helper()
	for what, name := range map[int]string{countDevice: "device allocations", countPinned: "pinned",
		countStreams: "streams", countEvents: "events", countModules: "modules",
		countContexts: "users of the context", countLeaked: "things left to the context",
		countBytes: "device bytes"} {
		require.Zero(s.t, s.count(what), name)
	}
}

func (s *standIn) open(o Options) (*Backend, error) {
	o.Library, o.Device = s.library, AnyDevice
	return Open(o)
}

// setSeed shuffles the order in which threads run; 0 keeps the order.
func (s *standIn) setSeed(seed uint32) { driver.Call(s.seed, uintptr(seed)) }
