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

// The names that Open takes.
const (
	Auto = "auto" // the best that can be used
	CPU  = "cpu"
	CUDA = "cuda"
)

// How Caps.Reason of the cpu backend begins where Auto took it: there is nothing of CUDA on the
// machine, or there is, and it cannot be used, which its owner will want to know.
const (
	ReasonNone   = "no cuda: "
	ReasonBroken = "cuda cannot be used: "
)

// Names lists the names that Open takes, for help texts.
func Names() []string { return []string{Auto, CPU, CUDA} }

// Options are what Open passes on.
type Options struct {
	// Workers is the number of goroutines of the cpu backend; 0 is one a core.
	Workers int
	// Logger is told once of every Open which backend it is and why. nil: nothing is logged.
	Logger *slog.Logger
}

// Candidate is a backend that kvist knows.
type Candidate struct {
	Name    string
	Usable  bool
	Reason  string // why it can be used, or why it cannot
	Details []Detail
}

// Detail is one thing that probing found.
type Detail struct {
	Name  string
	Value string
}

// Open opens a backend by name: "auto", "cpu" or "cuda".
//
// Errors: quant.ErrUnavailable with the reason, where the backend asked for by name cannot be
// used; quant.ErrUnsupported for an unknown name; those of cpu.Open.
func Open(name string, opts Options) (backend.Backend, error) { return system().open(name, opts) }

// Probe reports on every backend, the best first: what Open("auto") would consider, in its order.
func Probe() []Candidate { return system().probe() }

// machine is where probing looks; tests have machines of their own.
type machine struct {
	root    string // stands for "/"
	goos    string
	isas    []string
	library string // of CUDA, by path; empty: as the loader finds it
}

func system() machine { return machine{root: "/", goos: runtime.GOOS, isas: cpu.ISAs()} }

func (m machine) probe() []Candidate {
	return []Candidate{m.probeCUDA(), {
		Name: CPU, Usable: true, Reason: "runs everywhere",
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
	case CUDA, Auto, "":
		f := m.findCUDA()
		b, info, err := m.openCUDA(f)
		if err == nil {
			announce(opts.Logger, b.Caps())
			return b, nil
		}
		why := m.whyNot(f, info, err)
		if name == CUDA {
			return nil, &openError{why, err}
		}
		reason = ReasonNone + why
		if f.found() || info.Loaded {
			reason = ReasonBroken + why
		}
	case CPU:
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

// openError is the CUDA backend that cannot be opened: the reason in one line, and its cause.
type openError struct {
	reason string
	err    error
}

func (e *openError) Error() string { return "kvist/auto: opening backend cuda: " + e.reason }
func (e *openError) Unwrap() error { return e.err }

// announce tells a logger which backend it is, and why.
func announce(l *slog.Logger, c backend.Caps) {
	if l != nil {
		l.Info("backend chosen", "backend", c.Name, "device", c.Device, "isa", c.ISA, "workers",
			c.Workers, "reason", c.Reason)
	}
}
