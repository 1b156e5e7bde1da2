// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/cuda"
	"github.com/kvist-project/kvist/engine/auto"
	"github.com/kvist-project/kvist/engine/backend/selftest"
	"github.com/kvist-project/kvist/engine/model"
)

func newDoctor(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show the backends of this machine and test them",
		Long: `doctor lists the backends and why each is or is not usable, the instruction sets of the
processor, how kvist was built, and the environment variables that it reads. It then runs a tiny
example through every usable backend (encode, decode, attend) and compares the results with the
reference. The exit status is 1 if they differ.

Fields of --json: ok, version (as kvist version), cpu (cores, isa, features), build (setting:
value), environment (name, value, meaning), backends (name, usable, reason, details, opened,
self_test with name, ok, detail).`,
		Example: "  kvist doctor\n  kvist doctor --json",
		Args:    cobra.NoArgs,
		RunE: a.verb(func(cmd *cobra.Command, _ []string) error {
			return a.doctor(cmd.Context(), asJSON)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

type doctorJSON struct {
	OK          bool              `json:"ok"`
	Version     versionJSON       `json:"version"`
	CPU         cpuJSON           `json:"cpu"`
	Build       map[string]string `json:"build"`
	Environment []envJSON         `json:"environment"`
	Backends    []candidateJSON   `json:"backends"`
}

type cpuJSON struct {
	Cores    int      `json:"cores"`
	ISA      []string `json:"isa"`      // that this build has kernels for, and this machine runs
	Features []string `json:"features"` // of the processor
}

type envJSON struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Meaning string `json:"meaning"`
}

type candidateJSON struct {
	Name     string            `json:"name"`
	Usable   bool              `json:"usable"`
	Reason   string            `json:"reason"`
	Details  map[string]string `json:"details"`
	Opened   *backendJSON      `json:"opened"`
	SelfTest []selftest.Check  `json:"self_test"`

	err     error
	details []auto.Detail // in order
}

// buildSettings are those of the Go build that change what the program does.
var buildSettings = []string{"CGO_ENABLED", "GOAMD64", "GOARM64", "GOARCH", "GOOS", "-tags",
	"-buildmode", "-compiler"}

func (a *app) doctor(ctx context.Context, asJSON bool) error {
	d := doctorJSON{OK: true, Version: buildVersion(), Build: map[string]string{},
		Environment: []envJSON{
			{cpu.EnvISA, os.Getenv(cpu.EnvISA),
				"instruction set of the cpu backend: " + strings.Join(cpu.ISAs(), ", ")},
			{cuda.EnvAttend, os.Getenv(cuda.EnvAttend),
				"attention kernel of the cuda backend: " + strings.Join(cuda.AttendKernels(), ", ")},
			{model.EnvFile, os.Getenv(model.EnvFile), "file that the model smollm2 is read from"},
			{model.EnvGemma, os.Getenv(model.EnvGemma), "file that the model gemma is read from"},
			{model.EnvCache, os.Getenv(model.EnvCache), "folder of those files, where they are not named"}},
		CPU: cpuJSON{Cores: runtime.NumCPU(), ISA: cpu.ISAs(), Features: cpuFeatures()}}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			for _, want := range buildSettings {
				if s.Key == want {
					d.Build[s.Key] = s.Value
				}
			}
		}
	}
	for _, c := range auto.Probe() {
		b := a.examine(ctx, c)
		d.OK = d.OK && b.err == nil
		d.Backends = append(d.Backends, b)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if asJSON {
		if err := printJSON(a.stdout, d); err != nil {
			return err
		}
	} else {
		p := &printer{w: a.stdout}
		d.print(p)
		if p.err != nil {
			return p.err
		}
	}
	if !d.OK {
		return errors.New("the self-test failed")
	}
	return nil
}

// examine opens a candidate and runs the self-test on it.
func (a *app) examine(ctx context.Context, c auto.Candidate) candidateJSON {
	b := candidateJSON{Name: c.Name, Usable: c.Usable, Reason: c.Reason,
		Details:  map[string]string{},
		SelfTest: []selftest.Check{}, details: c.Details}
	for _, x := range c.Details {
		b.Details[x.Name] = x.Value
	}
	if !c.Usable {
		return b
	}
	be, err := auto.Open(c.Name, auto.Options{})
	if err != nil {
		b.err = err
		b.SelfTest = append(b.SelfTest, selftest.Check{Name: "open", Detail: oneLine(err)})
		return b
	}
	caps := describe(be.Caps())
	b.Opened = &caps
	b.SelfTest = selftest.Run(ctx, be)
	if err := be.Close(); err != nil {
		b.SelfTest = append(b.SelfTest, selftest.Check{Name: "close", Detail: oneLine(err)})
	}
	for _, x := range b.SelfTest {
		if !x.OK {
			b.err = errors.New(x.Name)
		}
	}
	return b
}

func (d *doctorJSON) print(p *printer) {
	p.printf("%s\n\n", d.Version)
	p.printf("processor    %d cores, %s\n", d.CPU.Cores, strings.Join(d.CPU.Features, " "))
	p.printf("kernels for  %s\n", strings.Join(d.CPU.ISA, ", "))
	for _, k := range buildSettings {
		if v := d.Build[k]; v != "" {
			p.printf("build        %s=%s\n", k, v)
		}
	}
	for _, e := range d.Environment {
		value := e.Value
		if value == "" {
			value = "(not set)"
		}
		p.printf("environment  %s=%s  %s\n", e.Name, value, e.Meaning)
	}
	for _, b := range d.Backends {
		word := "usable"
		if !b.Usable {
			word = "not usable"
		}
		p.printf("\nbackend %s: %s: %s\n", b.Name, word, b.Reason)
		for _, x := range b.details {
			p.printf("  %s: %s\n", x.Name, x.Value)
		}
		failed := 0
		for _, c := range b.SelfTest {
			if !c.OK {
				failed++
				p.printf("  FAILED %s: %s\n", c.Name, c.Detail)
			}
		}
		if b.Usable {
			if b.Opened != nil {
				p.printf("  opened: %s\n", b.Opened)
			}
			p.printf("  self-test: %d of %d checks pass\n", len(b.SelfTest)-failed, len(b.SelfTest))
		}
	}
}
