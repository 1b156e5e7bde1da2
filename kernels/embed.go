// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

//go:embed ptx/*.ptx manifest.json
var files embed.FS

// Manifest records the sources, the compiler and the flags of the PTX.
type Manifest struct {
	Compiler string            `json:"compiler"` // "NVRTC 12.0.140"
	Wheels   map[string]string `json:"wheels"`   // sha256 by file name
	ISA      string            `json:"isa"`      // PTX ISA, "8.0"
	Sources  map[string]string `json:"sources"`  // sha256 by path within this folder
	Modules  []Module          `json:"modules"`
}

// Module is one PTX module.
type Module struct {
	Name   string   `json:"name"`   // "codec"
	Target string   `json:"target"` // "sm_75"
	Flags  []string `json:"flags"`
	SHA256 string   `json:"sha256"` // of the PTX
}

// ReadManifest returns the manifest of the embedded PTX.
//
// Errors: only if the build is broken.
func ReadManifest() (Manifest, error) {
	var m Manifest
	text, err := files.ReadFile("manifest.json")
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return m, fmt.Errorf("kvist/kernels: reading the manifest: %w", err)
	}
	return m, nil
}

// PTX returns the embedded PTX of a module.
//
// Errors: an unknown module.
func PTX(module string) ([]byte, error) {
	text, err := files.ReadFile("ptx/" + module + ".ptx")
	if err != nil {
		return nil, fmt.Errorf("kvist/kernels: module %q: %w", module, err)
	}
	return text, nil
}

// Capability returns the minimum compute capability of a module: 75 for sm_75.
//
// Errors: only if the build is broken.
func (m Module) Capability() (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(m.Target, "sm_"))
	if err != nil {
		return 0, fmt.Errorf("kvist/kernels: module %s: target %q: %w", m.Name, m.Target, err)
	}
	return n, nil
}

// Entry is a kernel.
type Entry struct {
	Name   string
	Module string
	Params any // zero value of its parameter struct
}

// Entries lists every kernel of the embedded PTX.
func Entries() []Entry {
	return []Entry{
		{"kvist_encode", "codec", CodecParams{}},
		{"kvist_scales", "codec", CodecParams{}},
		{"kvist_decode", "codec", CodecParams{}},
		{"kvist_demote", "codec", CodecParams{}},
		{"kvist_gather", "codec", GatherParams{}},
		{"kvist_attend_h1", "attend", AttendParams{}},
		{"kvist_attend_h2", "attend", AttendParams{}},
		{"kvist_attend_h4", "attend", AttendParams{}},
		{"kvist_attend_h8", "attend", AttendParams{}},
		{"kvist_attend_mma", "attend_mma", AttendParams{}},
		{"kvist_attend_int8_d64", "attend_int8", AttendParams{}},
		{"kvist_attend_int8_d128", "attend_int8", AttendParams{}},
		{"kvist_combine", "attend", AttendParams{}},
		{"kvist_relevance", "attend", RelevanceParams{}},
		{"kvist_residual", "surprise", ResidualParams{}},
	}
}
