// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/auto"
	"github.com/kvist-project/kvist/engine/backend"
)

// backendFlags choose the backend of a verb that computes.
type backendFlags struct {
	name    string
	threads int
}

func (b *backendFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.name, "backend", "auto", "`NAME` of the backend: auto, cpu or cuda")
	cmd.Flags().IntVar(&b.threads, "threads", 0, "CPU `threads` to use; 0: all")
}

// check refuses values that no backend has.
func (b *backendFlags) check() error {
	if err := oneOf("backend", b.name, auto.Names()); err != nil {
		return err
	}
	if b.threads < 0 || b.threads > cpu.MaxWorkers {
		return usagef("--threads %d: want 0 to %d", b.threads, cpu.MaxWorkers)
	}
	return nil
}

// openBackend opens the backend. With --verbose it says once, on standard error, which one it is and
// why; without, only that there is a better one that cannot be used.
func (a *app) openBackend(f backendFlags) (backend.Backend, error) {
	be, err := auto.Open(f.name, auto.Options{Workers: f.threads})
	if err != nil {
		return nil, err
	}
	c := be.Caps()
	switch broken := strings.HasPrefix(c.Reason, auto.ReasonBroken); {
	case c.Reason == "":
		if a.verbose {
			a.complain("backend %s: %s", c.Name, c.Device)
		}
	case broken, a.verbose:
		// What was looked at in vain is for doctor to tell.
		reason, _, _ := strings.Cut(c.Reason, " (")
		a.complain("backend %s: %s (kvist doctor says more)", c.Name, reason)
	}
	return be, nil
}

// backendJSON describes a backend in the output of --json.
type backendJSON struct {
	Name    string `json:"name"`
	Device  string `json:"device"`
	ISA     string `json:"isa"`
	Workers int    `json:"workers"`
	Memory  int64  `json:"memory"`
	Reason  string `json:"reason"`
}

func describe(c backend.Caps) backendJSON {
	return backendJSON{Name: c.Name, Device: c.Device, ISA: c.ISA, Workers: c.Workers,
		Memory: c.Memory,
		Reason: c.Reason}
}

func (b backendJSON) String() string {
	s := fmt.Sprintf("%s, %s, %s", b.Name, b.ISA, b.Device)
	if b.Workers > 0 {
		s += fmt.Sprintf(", %d threads", b.Workers)
	}
	return s
}
