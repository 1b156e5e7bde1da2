// SPDX-License-Identifier: Apache-2.0

package auto

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// The names that Open accepts.
const (
	nameAuto = "auto" // the best usable backend
	nameCPU  = "cpu"
	nameCUDA = "cuda"
)

// Caps.Reason of the cpu backend starts with one of these if Auto chose it: there is no CUDA on the
// machine, or there is, but it is not usable.
const (
	reasonNone   = "no cuda: "
	ReasonBroken = "cuda cannot be used: "
)

// Names lists the names that Open accepts, for help texts.
func Names() []string { return []string{nameAuto, nameCPU, nameCUDA} }

// Options are the options of Open.
type Options struct {
	// Workers is the number of goroutines of the cpu backend; 0 means one per core.
	Workers int
	// Logger receives one line per Open: the backend and the reason. nil logs nothing.
	Logger *slog.Logger
}

// Candidate is a backend that kvist has.
type Candidate struct {
	Name    string
	Usable  bool
	Reason  string // why it is usable, or why not
	Details []Detail
}

// Detail is one result of probing.
type Detail struct {
	Name  string
	Value string
}

// Open opens a backend by name: "auto", "cpu" or "cuda".
//
// Errors: quant.ErrUnavailable, with the reason, if the named backend is not usable;
// quant.ErrUnsupported for an unknown name; those of cpu.Open.
func Open(name string, opts Options) (backend.Backend, error) { return system().open(name, opts) }

// Probe reports on every backend in the order in which Open("auto") tries them, the best first.
func Probe() []Candidate { return system().probe() }

// machine is the machine to probe. Tests use their own.
type machine struct {
	root    string // used instead of "/"
	goos    string
	isas    []string
	library string // path of the CUDA library; empty: let the loader find it
}

func system() machine { return machine{root: "/", goos: runtime.GOOS, isas: cpu.ISAs()} }

func (m machine) probe() []Candidate {
	return []Candidate{m.probeCUDA(), {
		Name: nameCPU, Usable: true, Reason: "runs everywhere",
		Details: []Detail{
			{"platform", runtime.GOOS + "/" + runtime.GOARCH},
			{"instruction sets of this build", strings.Join(m.isas, ", ")},
			{"cores", fmt.Sprint(runtime.NumCPU())},
		},
	}}
}

func (m machine) open(name string, opts Options) (backend.Backend, error) {
	reason := "asked for by name"
	switch name {
	case nameCUDA, nameAuto, "":
		f := m.findCUDA()
		b, info, err := m.openCUDA(f)
		if err == nil {
			announce(opts.Logger, b.Caps())
			return b, nil
		}
		why := m.whyNot(f, info, err)
		if name == nameCUDA {
			return nil, &openError{why, err}
		}
		reason = reasonNone + why
		if f.found() || info.Loaded {
			reason = ReasonBroken + why
		}
	case nameCPU:
	default:
		return nil, fmt.Errorf("kvist/auto: opening backend %q: want one of %s: %w", name,
			strings.Join(Names(), ", "), quant.ErrUnsupported)
	}
	b, err := cpu.Open(cpu.Options{Workers: opts.Workers, Reason: reason})
	if err != nil {
		return nil, fmt.Errorf("kvist/auto: opening backend cpu: %w", err)
	}
	announce(opts.Logger, b.Caps())
	return b, nil
}

// openError says why the CUDA backend cannot be opened: the reason in one line, and its cause.
type openError struct {
	reason string
	err    error
}

func (e *openError) Error() string { return "kvist/auto: opening backend cuda: " + e.reason }
func (e *openError) Unwrap() error { return e.err }

// announce logs the backend and the reason.
func announce(l *slog.Logger, c backend.Caps) {
	if l != nil {
		l.Info("backend chosen", "backend", c.Name, "device", c.Device, "isa", c.ISA, "workers",
			c.Workers, "reason", c.Reason)
	}
}
