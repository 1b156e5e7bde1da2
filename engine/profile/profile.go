// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/kvist-project/kvist/quant"
)

// Section names a part of a profile that one tool makes and replaces. Names are 1 to 32 of a-z,
// 0-9 and "-".
type Section string

// The sections that have a meaning.
const (
	SectionParams      Section = "params"
	SectionSensitivity Section = "sensitivity"
	SectionBasis       Section = "basis"
	SectionTables      Section = "tables"
	SectionQueries     Section = "queries"
	SectionPredictors  Section = "predictors"
)

// Profile is a set of sections about one model. It never changes. The zero Profile is not valid;
// New makes an empty one.
type Profile struct {
	model    string
	geo      quant.Geometry
	sections map[Section][]Tensor // each sorted by name, none empty
	meta     map[Section]Meta

	mu      sync.Mutex
	derived map[any]any
}

// Derived returns the value that make returns for a key. It calls make once for each key, so that a
// program that compresses many contexts with a profile parses it once. An error is not kept. The
// value is shared, and kept as long as the profile. A key of a type that a package does not export
// belongs to that package alone.
func (p *Profile) Derived(key any, make func() (any, error)) (any, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v, ok := p.derived[key]; ok {
		return v, nil
	}
	v, err := make()
	if err != nil {
		return nil, err
	}
	if p.derived == nil {
		p.derived = map[any]any{}
	}
	p.derived[key] = v
	return v, nil
}

// Meta tells people how a section was made. Keys are 1 to 64 of a-z, 0-9, "-" and "."; values
// are UTF-8 without NUL of at most 64 KiB. Common keys: made-by (tool and version), texts (names
// and hashes), seed, objective, before, after, holdout-before, holdout-after.
type Meta map[string]string

// Limits of what a profile may hold.
const (
	maxModel       = 1 << 12
	maxSections    = 64
	maxSectionName = 32
	maxMetaKey     = 64
	maxMetaValue   = 1 << 16
	maxTensorName  = 200
)

// New returns an empty profile of a model. Files name the same model in different ways, so model may
// hold several names joined by " | "; Check accepts any of them. Without a name Check compares
// geometries only.
//
// Errors: quant.ErrShape.
func New(model string, geo quant.Geometry) (*Profile, error) {
	if !utf8.ValidString(model) || strings.ContainsRune(model, 0) || len(model) > maxModel {
		return nil, shapef("model name of %d bytes, want UTF-8 without NUL of at most %d", len(model),
			maxModel)
	}
	if err := geo.Validate(); err != nil {
		return nil, fmt.Errorf("kvist/profile: %w", err)
	}
	return &Profile{model: model, geo: geo.Canonical().Clone(), sections: map[Section][]Tensor{},
		meta: map[Section]Meta{}}, nil
}

// Model returns the name of the model.
func (p *Profile) Model() string { return p.model }

// nameSeparator stands between the names of a model.
const nameSeparator = " | "

// Named returns a profile with further names of the same model. Nothing else changes.
//
// Errors: quant.ErrShape for a name that cannot be one.
func (p *Profile) Named(names ...string) (*Profile, error) {
	all := []string{}
	if p.model != "" {
		all = strings.Split(p.model, nameSeparator)
	}
	for _, n := range names {
		if n == "" || n != strings.TrimSpace(n) || strings.Contains(n, nameSeparator) {
			return nil, shapef("model name %q, want some text without %q", short(n), nameSeparator)
		}
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	q, err := New(strings.Join(all, nameSeparator), p.geo)
	if err != nil {
		return nil, err
	}
	q.sections, q.meta = maps.Clone(p.sections), maps.Clone(p.meta)
	return q, nil
}

// Geometry returns the shape of the model's cache.
func (p *Profile) Geometry() quant.Geometry {
	return p.geo.Clone()
}

// Sections returns the names of the sections that the profile has, sorted.
func (p *Profile) Sections() []Section { return slices.Sorted(maps.Keys(p.sections)) }

// Tensors returns the tensors of a section, sorted by name; none where it has no such section.
func (p *Profile) Tensors(s Section) []Tensor { return p.sections[s] }

// Tensor returns one tensor of a section.
func (p *Profile) Tensor(s Section, name string) (Tensor, bool) {
	i, ok := slices.BinarySearchFunc(p.sections[s], name,
		func(t Tensor, name string) int { return cmp.Compare(t.Name, name) })
	if !ok {
		return Tensor{}, false
	}
	return p.sections[s][i], true
}

// Meta returns how a section was made. It must not be changed.
func (p *Profile) Meta(s Section) Meta { return p.meta[s] }

// With returns a profile in which tensors and meta take the place of section s; without tensors
// the section is removed. Names are unique within the section. The data is not copied.
//
// Errors: quant.ErrShape, quant.ErrUnsupported for an element type that is not known; for the
// sections params, sensitivity and queries also those of their own rules (WithParams, WithSensitivity, WithQueries).
func (p *Profile) With(s Section, meta Meta, tensors ...Tensor) (*Profile, error) {
	if !validName(string(s), maxSectionName, "-") {
		return nil, shapef("section name %q, want 1 to %d of a-z, 0-9 and -", short(string(s)),
			maxSectionName)
	}
	if err := meta.check(s); err != nil {
		return nil, err
	}
	tensors = slices.Clone(tensors)
	slices.SortStableFunc(tensors, func(a, b Tensor) int { return cmp.Compare(a.Name, b.Name) })
	for i := range tensors {
		if err := tensors[i].check(s); err != nil {
			return nil, err
		}
		if i > 0 && tensors[i].Name == tensors[i-1].Name {
			return nil, shapef("section %s: tensor %q given twice", s, tensors[i].Name)
		}
		tensors[i].Shape = slices.Clone(tensors[i].Shape)
	}
	q := &Profile{model: p.model, geo: p.geo, sections: maps.Clone(p.sections),
		meta: maps.Clone(p.meta)}
	delete(q.sections, s)
	delete(q.meta, s)
	if len(tensors) > 0 {
		q.sections[s] = tensors
		if len(meta) > 0 {
			q.meta[s] = maps.Clone(meta)
		}
	}
	if len(q.sections) > maxSections {
		return nil, shapef("%d sections, want at most %d", len(q.sections), maxSections)
	}
	return q, q.check(s)
}

// check applies the rules of the sections that this package understands.
func (p *Profile) check(s Section) error {
	var err error
	switch {
	case len(p.sections[s]) == 0:
	case s == SectionParams:
		_, err = p.Params()
	case s == SectionSensitivity:
		_, err = p.Sensitivity()
	case s == SectionQueries:
		_, err = p.Queries()
	}
	return err
}

func (m Meta) check(s Section) error {
	for k, v := range m {
		if !validName(k, maxMetaKey, "-.") {
			return shapef("section %s: meta key %q, want 1 to %d of a-z, 0-9, - and .", s, short(k),
				maxMetaKey)
		}
		if !utf8.ValidString(v) || strings.ContainsRune(v, 0) || len(v) > maxMetaValue {
			return shapef("section %s: meta %s of %d bytes, want UTF-8 without NUL of at most %d", s, k,
				len(v), maxMetaValue)
		}
	}
	return nil
}

// validName reports whether s has 1 to most of a-z, 0-9 and the bytes of extra.
func validName(s string, most int, extra string) bool {
	if len(s) < 1 || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte(extra, c) >= 0) {
			return false
		}
	}
	return true
}

// Check reports whether the profile is of this model: it has the same geometry and, where both have a
// name, the name is one of the profile's.
//
// Errors: *MismatchError, which matches quant.ErrShape.
func (p *Profile) Check(model string, geo quant.Geometry) error {
	if model != "" && p.model != "" && !slices.Contains(strings.Split(p.model, nameSeparator), model) {
		return &MismatchError{Profile: p.ID(), What: "model", Want: p.model, Got: model}
	}
	a, b := p.geo, geo
	for _, d := range []struct {
		what      string
		want, got any
	}{
		{"layers", a.Layers, b.Layers}, {"heads", a.Heads, b.Heads}, {"kv_heads", a.KVHeads, b.KVHeads},
		{"head_dim", a.HeadDim, b.HeadDim}, {"head_dim_v", a.HeadDimV, b.HeadDimV},
	} {
		if d.want != d.got {
			return &MismatchError{Profile: p.ID(), What: d.what, Want: fmt.Sprint(d.want),
				Got: fmt.Sprint(d.got)}
		}
	}
	return p.checkAttention(geo)
}

// checkAttention compares how the layers of two geometries of as many layers attend.
func (p *Profile) checkAttention(geo quant.Geometry) error {
	if p.geo.PerLayer == nil && geo.PerLayer == nil {
		if a, b := ropeText(p.geo.Rope), ropeText(geo.Rope); a != b {
			return &MismatchError{Profile: p.ID(), What: "rope", Want: a, Got: b}
		}
		return nil
	}
	ours, of := p.geo.Kinds()
	theirs, ofTheirs := geo.Kinds()
	met := map[[2]int]bool{}
	for l := range of {
		pair := [2]int{of[l], ofTheirs[l]}
		if met[pair] {
			continue
		}
		met[pair] = true
		if a, b := attentionText(ours[pair[0]]), attentionText(theirs[pair[1]]); a != b {
			return &MismatchError{Profile: p.ID(), What: fmt.Sprintf("layer %d", l), Want: a, Got: b}
		}
	}
	return nil
}

func ropeText(r quant.Rope) string {
	if r.Layout == quant.RopeNone {
		return r.Layout.String()
	}
	if r.InvFreq != nil {
		return fmt.Sprintf("%s of %d with frequencies %v", r.Layout, r.RotaryDim, r.InvFreq)
	}
	return fmt.Sprintf("%s of %d with theta %v", r.Layout, r.RotaryDim, r.Theta)
}

// attentionText names what sets layers apart.
func attentionText(a quant.LayerAttention) string {
	return fmt.Sprintf("window %d, scale %v, soft cap %v, rope %s", a.Window, a.Scale, a.Softcap,
		ropeText(a.Rope))
}

// MismatchError reports a profile that is of another model than the one it was used with. It matches
// quant.ErrShape.
type MismatchError struct {
	Profile   ID
	What      string // "model", "layers", "rope", ...
	Want, Got string // of the profile; of the model or file it was used with
}

// Error names the profile, and what differs.
func (e *MismatchError) Error() string {
	hint := ""
	if e.What == "model" {
		hint = " (if that is the same model, kvist calibrate --also-named adds its name)"
	}
	return fmt.Sprintf("kvist/profile: profile %s: it is of %s %s, used with %s %s%s: %v", e.Profile,
		e.What, short(e.Want), e.What, short(e.Got), hint, quant.ErrShape)
}

// Unwrap returns quant.ErrShape.
func (e *MismatchError) Unwrap() error { return quant.ErrShape }

// MissingError says that a file needs a profile that was not given. It matches
// quant.ErrUnavailable.
type MissingError struct {
	ID    ID  // digest of the sections that decoding takes (ArchiveSections)
	Given int // profiles that were given, all others
}

// Error names the profile.
func (e *MissingError) Error() string {
	what := "none was given"
	if e.Given > 0 {
		what = "another was given"
	}
	return fmt.Sprintf("kvist/profile: the file needs the profile that archives name %s, and %s", e.ID, what)
}

// Unwrap returns quant.ErrUnavailable.
func (e *MissingError) Unwrap() error { return quant.ErrUnavailable }

func shapef(format string, args ...any) error {
	return fmt.Errorf("kvist/profile: "+format+": %w", append(args, quant.ErrShape)...)
}

// short keeps hostile text out of messages.
func short(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}
