// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
)

// isProfile reports whether a file says that it is a profile; damage is for the reader to find.
func isProfile(in *input) bool {
	b := make([]byte, 12)
	if n, _ := in.ReadAt(b, 0); n < len(b) {
		return false
	}
	return string(b[:len(containerMagic)]) == containerMagic &&
		container.Kind(binary.LittleEndian.Uint16(b[10:])) == container.KindProfile
}

// profileJSON is what inspect --json prints of a profile.
type profileJSON struct {
	File  string `json:"file"`
	Type  string `json:"type"`
	Bytes int64  `json:"bytes"`
	ID    string `json:"id"`
	// ArchiveID is what archives name the profile by, "" where it is of no use to them.
	ArchiveID string            `json:"archive_id"`
	Model     string            `json:"model"`
	Geometry  geometryJSON      `json:"geometry"`
	Params    profile.Params    `json:"params"`
	Sections  []profileSectJSON `json:"sections"`
	// Attention is how layers attend, by kind; left out where all are alike and attend plainly.
	Attention []report.Attention `json:"attention,omitempty"`
}

type geometryJSON struct {
	Layers   int `json:"layers"`
	Heads    int `json:"heads"`
	KVHeads  int `json:"kv_heads"`
	HeadDim  int `json:"head_dim"`
	HeadDimV int `json:"head_dim_v"`
}

type profileSectJSON struct {
	Name    string       `json:"name"`
	Bytes   int64        `json:"bytes"` // of its tensors, before packing
	Meta    profile.Meta `json:"meta"`
	Tensors []tensorJSON `json:"tensors"`
}

func (a *app) inspectProfile(in *input, f *inspectFlags) error {
	if f.records || f.spectrum {
		return usagef("--records and --spectrum are not for profiles")
	}
	if f.bytes {
		r, err := container.OpenProfile(in.name, in, in.size, container.Limits{})
		if err != nil {
			return err
		}
		return container.Dump(a.stdout, r, container.DumpOptions{})
	}
	p, err := profile.Read(in.name, in, in.size, profile.Limits{})
	if err != nil {
		return err
	}
	params, err := p.Params()
	if err != nil {
		return err
	}
	g := p.Geometry()
	res := profileJSON{File: in.name, Type: "profile", Bytes: in.size, ID: p.ID().Full(),
		Model: p.Model(), Params: params, Sections: []profileSectJSON{},
		Attention: report.AttentionOf(g),
		Geometry:  geometryJSON{g.Layers, g.Heads, g.KVHeads, g.HeadDim, g.HeadDimV}}
	if len(p.Tensors(profile.SectionBasis)) > 0 {
		res.ArchiveID = p.ArchiveID().Full()
	}
	for _, s := range p.Sections() {
		x := profileSectJSON{Name: string(s), Meta: p.Meta(s), Tensors: []tensorJSON{}}
		for _, t := range p.Tensors(s) {
			x.Bytes += int64(len(t.Data))
			x.Tensors = append(x.Tensors, tensorJSON{Name: t.Name, DType: t.DType,
				Shape: append([]int64{}, t.Shape...), Bytes: int64(len(t.Data))})
		}
		res.Sections = append(res.Sections, x)
	}
	if f.json {
		return printJSON(a.stdout, res)
	}
	sens, err := p.Sensitivity()
	if err != nil {
		return err
	}
	out := &printer{w: a.stdout}
	res.print(out, p.ID(), sens)
	return out.err
}

func (r *profileJSON) print(p *printer, id profile.ID, sens *profile.Sensitivity) {
	g := r.Geometry
	p.printf("%s: profile %s, %s bytes\n", r.File, id, count(r.Bytes))
	p.printf("model     %s\n", r.Model)
	if r.ArchiveID != "" {
		parts := "basis and tables"
		if slices.ContainsFunc(r.Sections, func(s profileSectJSON) bool { return s.Name == string(profile.SectionPredictors) }) {
			parts = "basis, tables and predictors"
		}
		p.printf("archive   archives name it %.16s: its %s\n", r.ArchiveID, parts)
	}
	p.printf("shape     %d layers, %d heads, %d kv_heads, head_dim %d, head_dim_v %d\n", g.Layers,
		g.Heads, g.KVHeads, g.HeadDim, g.HeadDimV)
	printAttention(p, r.Attention, "          ")
	for _, k := range slices.Sorted(maps.Keys(r.Params)) {
		p.printf("param     %s=%s\n", k, r.Params[k])
	}
	for _, s := range r.Sections {
		p.printf("\nsection %s\n", s.Name)
		t := newTable([]any{"tensor", "dtype", "shape", "bytes"}, 3)
		for _, x := range s.Tensors {
			t.AppendRow([]any{x.Name, x.DType, fmt.Sprint(x.Shape), count(x.Bytes)})
		}
		p.table(t)
		for _, k := range slices.Sorted(maps.Keys(s.Meta)) {
			p.printf("  %s: %s\n", k, s.Meta[k])
		}
	}
	if sens != nil {
		p.printf("\nsensitivity, factors on the damage: geometric mean over heads, and range\n")
		t := newTable([]any{"layer", "K", "V"}, 0)
		for l := range g.Layers {
			t.AppendRow([]any{l, factors(sens.K[l*g.KVHeads : (l+1)*g.KVHeads]),
				factors(sens.V[l*g.KVHeads : (l+1)*g.KVHeads])})
		}
		p.table(t)
	}
}

func factors(x []float32) string {
	var sum float64
	for _, f := range x {
		sum += math.Log(float64(f))
	}
	return fmt.Sprintf("%.3g (%.3g to %.3g)", math.Exp(sum/float64(len(x))), slices.Min(x),
		slices.Max(x))
}

// openProfile reads the profile called name; nil where no name is given.
func (a *app) openProfile(ctx context.Context, name string) (p *profile.Profile, err error) {
	if name == "" {
		return nil, nil
	}
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, err
	}
	defer closing(in, &err)
	return profile.Read(in.name, in, in.size, profile.Limits{})
}
