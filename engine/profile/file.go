// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// ID identifies the content of a profile. The zero ID stands for no profile.
type ID [32]byte

// String returns the first 16 hex digits, enough to tell profiles apart; "none" for no profile.
func (id ID) String() string {
	if id == (ID{}) {
		return "none"
	}
	return hex.EncodeToString(id[:8])
}

// Full returns all 64 hex digits.
func (id ID) Full() string { return hex.EncodeToString(id[:]) }

// ID returns the identity of the profile: of model, geometry and every section, without meta.
func (p *Profile) ID() ID { return p.Digest(p.Sections()...) }

// ArchiveSections are the sections whose digest names a profile in an archive: those that decoding takes, which are
// one more where it predicts.
func ArchiveSections(predicts bool) []Section {
	if predicts {
		return []Section{SectionBasis, SectionTables, SectionPredictors}
	}
	return []Section{SectionBasis, SectionTables}
}

// ArchiveID returns what an archive that is made with the profile names it by. It names one with predictors without
// them where it has stages, which are not predicted.
func (p *Profile) ArchiveID() ID {
	return p.Digest(ArchiveSections(len(p.sections[SectionPredictors]) > 0)...)
}

// Digest returns the identity of model, geometry and these sections only, in any order; a section
// that the profile lacks counts as absent. A file that cannot be decoded without a profile names
// the digest of the sections that decoding takes.
func (p *Profile) Digest(sections ...Section) ID {
	h := sha256.New()
	g := p.geo
	if g.PerLayer == nil {
		text(h, "kvist profile 1")
	} else {
		text(h, "kvist profile 2")
	}
	text(h, p.model)
	for _, n := range []int{g.Layers, g.Heads, g.KVHeads, g.HeadDim, g.HeadDimV,
		int(g.Rope.Layout), g.Rope.RotaryDim} {
		number(h, uint64(n))
	}
	ropeBase(h, &g.Rope)
	if g.PerLayer != nil {
		attention(h, &g)
	}
	for _, s := range slices.Compact(slices.Sorted(slices.Values(sections))) {
		for i := range p.sections[s] {
			t := &p.sections[s][i]
			text(h, string(s))
			text(h, t.Name)
			text(h, t.DType)
			number(h, uint64(len(t.Shape)))
			for _, d := range t.Shape {
				number(h, uint64(d))
			}
			number(h, uint64(len(t.Data)))
			_, _ = h.Write(t.Data) // never fails
		}
	}
	return ID(h.Sum(nil))
}

// Digests returns the Digest of the profile, and those it had before Named gave it its later names:
// files that were made then name one of them.
func (p *Profile) Digests(sections ...Section) []ID {
	names := strings.Split(p.model, nameSeparator)
	var ids []ID
	for n := len(names); n > 0; n-- {
		q := &Profile{model: strings.Join(names[:n], nameSeparator), geo: p.geo, sections: p.sections, meta: p.meta}
		ids = append(ids, q.Digest(sections...))
	}
	return ids
}

// attention adds how layers attend, kind by kind: layers of a kind may share long frequencies.
func attention(h hash.Hash, g *quant.Geometry) {
	kinds, of := g.Kinds()
	number(h, uint64(len(kinds)))
	for i := range kinds {
		a := &kinds[i]
		number(h, uint64(a.Rope.Layout))
		number(h, uint64(a.Rope.RotaryDim))
		number(h, uint64(a.Window))
		number(h, math.Float64bits(a.Scale))
		number(h, math.Float64bits(a.Softcap))
		ropeBase(h, &a.Rope)
	}
	for _, k := range of {
		number(h, uint64(k))
	}
}

func ropeBase(h hash.Hash, r *quant.Rope) {
	number(h, math.Float64bits(r.Theta))
	number(h, uint64(len(r.InvFreq)))
	for _, f := range r.InvFreq {
		number(h, uint64(math.Float32bits(f)))
	}
}

func number(h hash.Hash, v uint64) {
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, v))
}

func text(h hash.Hash, s string) {
	number(h, uint64(len(s)))
	_, _ = h.Write([]byte(s))
}

// Limits bound what a reader takes on behalf of a file; a field that is zero has its default.
type Limits struct {
	MaxFileBytes int64 // the file; default 1 GiB
	MaxBytes     int64 // all tensors together, decoded; default 64 MiB and 16 times the file, up to 1 GiB
	MaxTensors   int64 // default 4096
}

// withDefaults returns the limits for a file of size bytes: all of a profile is held, so what it takes
// must be backed by the file.
func (l Limits) withDefaults(size int64) Limits {
	all := min(64<<20+16*min(max(size, 0), 1<<30), 1<<30)
	for _, f := range []struct {
		p   *int64
		def int64
	}{{&l.MaxFileBytes, 1 << 30}, {&l.MaxBytes, all}, {&l.MaxTensors, 4096}} {
		if *f.p <= 0 {
			*f.p = f.def
		}
	}
	return l
}

// Open reads the profile in the file called path.
//
// Errors: those of Read and of the file system.
func Open(path string, lim Limits) (p *Profile, err error) {
	f, st, err := atomicfile.OpenRegular(path)
	if errors.Is(err, atomicfile.ErrNotRegular) {
		return nil, fmt.Errorf("kvist/profile: %w: %w", err, quant.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("kvist/profile: %w", err)
	}
	defer func() {
		if e := f.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("kvist/profile: %w", e))
		}
	}()
	return Read(path, f, st.Size(), lim)
}

// Read reads the profile of size bytes that r gives access to, and checks all of it. name is for
// messages.
//
// Errors: *container.CorruptError (quant.ErrCorrupt), *container.RefusedError (quant.ErrVersion,
// quant.ErrUnsupported where it is no profile, quant.ErrTooLarge), those of r. What is well formed
// and cannot be, as a sensitivity that is NaN, is quant.ErrCorrupt too.
func Read(name string, r io.ReaderAt, size int64, lim Limits) (*Profile, error) {
	lim = lim.withDefaults(size)
	c, err := container.OpenProfile(name, r, size, container.Limits{
		MaxTotalBytes: lim.MaxFileBytes, MaxSideBytes: lim.MaxBytes, MaxSides: lim.MaxTensors})
	if err != nil {
		return nil, err
	}
	tensors, err := c.ReadAllAux(lim.MaxBytes)
	if err != nil {
		return nil, err
	}
	p, err := fromContainer(c.Header(), tensors)
	if err != nil {
		category := quant.ErrCorrupt
		if errors.Is(err, quant.ErrUnsupported) {
			category = quant.ErrUnsupported
		}
		return nil, &contentError{File: name, Category: category, Err: err}
	}
	return p, nil
}

// contentError reports a file whose checksums hold and whose content is no valid profile. It matches
// quant.ErrCorrupt or quant.ErrUnsupported.
type contentError struct {
	File     string
	Category error
	Err      error
}

// Error names the file and the fault.
func (e *contentError) Error() string {
	return fmt.Sprintf("kvist/profile: reading %s: %v: %v", e.File, e.Category, e.Err)
}

// Unwrap returns the category.
func (e *contentError) Unwrap() error { return e.Category }

func fromContainer(h *container.Header, tensors []*container.Aux) (*Profile, error) {
	p, err := New(h.Model, h.Geometry)
	if err != nil {
		return nil, err
	}
	sections, meta := map[Section][]Tensor{}, map[Section]Meta{}
	var last, lastName string
	for _, a := range tensors {
		s, name, ok := strings.Cut(a.Name, "/")
		if !ok {
			return nil, shapef("tensor %q is in no section", short(a.Name))
		}
		if cmp.Or(strings.Compare(last, s), strings.Compare(lastName, name)) >= 0 {
			return nil, shapef("tensor %q stands after %q", short(a.Name), short(last+"/"+lastName))
		}
		last, lastName = s, name
		sections[Section(s)] = append(sections[Section(s)],
			Tensor{Name: name, DType: a.DType, Shape: a.Shape, Data: a.Data})
	}
	for k, v := range h.Metadata {
		s, key, ok := strings.Cut(k, ".")
		if !ok || sections[Section(s)] == nil {
			return nil, shapef("metadata %q is of no section", short(k))
		}
		if meta[Section(s)] == nil {
			meta[Section(s)] = Meta{}
		}
		meta[Section(s)][key] = v
	}
	for _, s := range slices.Sorted(maps.Keys(sections)) {
		if p, err = p.With(s, meta[s], sections[s]...); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// WriteTo writes the file.
//
// Errors: quant.ErrTooLarge, those of w.
func (p *Profile) WriteTo(w io.Writer) (int64, error) {
	h := &container.Header{Kind: container.KindProfile, Geometry: p.geo, Model: p.model}
	for _, s := range p.Sections() {
		for k, v := range p.meta[s] {
			if h.Metadata == nil {
				h.Metadata = map[string]string{}
			}
			h.Metadata[string(s)+"."+k] = v
		}
	}
	cw, err := container.NewWriter(w, h)
	if err != nil {
		return 0, err
	}
	for _, s := range p.Sections() {
		for i := range p.sections[s] {
			if err := cw.WriteAux(p.sections[s][i].aux(s)); err != nil {
				return cw.Size(), err
			}
		}
	}
	err = cw.Close()
	return cw.Size(), err
}

// Write writes the file called path, whole or not at all. Without force a file that exists is
// refused.
//
// Errors: those of WriteTo and of atomicfile.
func (p *Profile) Write(path string, force bool) (err error) {
	f, err := atomicfile.Create(path, force)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Abort()) }()
	if _, err := p.WriteTo(f); err != nil {
		return err
	}
	return f.Commit()
}
