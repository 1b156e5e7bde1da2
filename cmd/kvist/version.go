// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/container"
)

func newVersion(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `version prints the module's version, the commit it was built from, the Go version,
and the versions of the .kvist format that this build reads.

Fields of --json: version, revision, modified, go, os, arch, format_min, format_max.`,
		Example: "  kvist version\n  kvist version --json",
		Args:    cobra.NoArgs,
		RunE: a.verb(func(_ *cobra.Command, _ []string) error {
			v := buildVersion()
			if asJSON {
				return printJSON(a.stdout, v)
			}
			p := &printer{w: a.stdout}
			p.printf("%s\n", v)
			return p.err
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

type versionJSON struct {
	Version   string `json:"version"`
	Revision  string `json:"revision"`
	Modified  bool   `json:"modified"`
	Go        string `json:"go"`
	OS        string `json:"os"`
	Arch      string `json:"arch"`
	FormatMin string `json:"format_min"`
	FormatMax string `json:"format_max"`
}

func buildVersion() versionJSON {
	v := versionJSON{Version: "(devel)", Go: runtime.Version(), OS: runtime.GOOS,
		Arch:      runtime.GOARCH,
		FormatMin: fmt.Sprintf("v%d", container.MinSupported), FormatMax: fmt.Sprintf("v%d", container.MaxSupported)}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func (v versionJSON) String() string {
	s := "kvist " + v.Version
	if v.Revision != "" {
		s += " (" + v.Revision[:min(12, len(v.Revision))]
		if v.Modified {
			s += ", modified"
		}
		s += ")"
	}
	formats := v.FormatMin
	if v.FormatMax != v.FormatMin {
		formats += " to " + v.FormatMax
	}
	return s + fmt.Sprintf(", %s %s/%s, file format %s", v.Go, v.OS, v.Arch, formats)
}

// versionText is the version of the program for what it writes.
func versionText() string { return buildVersion().Version }
