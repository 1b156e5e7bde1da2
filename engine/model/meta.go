// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/gguf"
)

// metaReader reads typed metadata of an architecture and keeps the first error. Keys are given without
// the prefix, "llama.".
type metaReader struct {
	f      *gguf.File
	prefix string
	err    error
}

func (m *metaReader) meta(key string) (gguf.Value, bool) { return m.f.Meta(m.prefix + key) }

// wrong says that a key is at fault.
func (m *metaReader) wrong(key string, err error) error { return m.f.KeyError(m.prefix+key, err) }

func (m *metaReader) fail(key string, v gguf.Value, want string) {
	if m.err == nil && v.Type == gguf.TypeArray {
		m.err = m.wrong(key, unsupportedf("%s: a value for each layer; "+
			"this version runs models whose layers are alike", v))
	}
	if m.err == nil {
		m.err = m.wrong(key, corruptf("%s of type %s, want %s", v, v.Type, want))
	}
}

func (m *metaReader) float(key string, def float64) float64 {
	v, ok := m.meta(key)
	if !ok {
		return def
	}
	x, ok := v.Float()
	if !ok || math.IsNaN(x) || math.IsInf(x, 0) {
		m.fail(key, v, "a number")
	}
	return x
}

// factor reads a factor, 1 if it is missing or 0.
func (m *metaReader) factor(key string) float64 {
	x := m.float(key, 1)
	if x == 0 {
		return 1
	}
	if m.err == nil && !(math.Abs(x) > 1e-6 && math.Abs(x) < 1e6) {
		m.err = m.wrong(key, unsupportedf("%v, want a factor of 1e-6 to 1e6", x))
	}
	return x
}

// softcap reads the cap of scores or logits; 0 is none.
func (m *metaReader) softcap(key string, def float64) float64 {
	x := m.float(key, def)
	if m.err == nil && !(x >= 0) {
		m.err = m.wrong(key, corruptf("%v, want 0 or more", x))
	}
	if m.err == nil && x != 0 && !(x > 1e-3 && x < 1e6) {
		m.err = m.wrong(key, unsupportedf("%v, want a cap of 1e-3 to 1e6", x))
	}
	return x
}

// base reads the base of a RoPE.
func (m *metaReader) base(key string, def float64) float64 {
	x := m.float(key, def)
	if m.err == nil && !(x > 0) {
		m.err = m.wrong(key, corruptf("%v, want a positive number", x))
	}
	if m.err == nil && !(x > 1 && x < 1e15) {
		m.err = m.wrong(key, unsupportedf("%v, want more than 1 and less than 1e15", x))
	}
	return x
}

func (m *metaReader) str(key, def string) string {
	v, ok := m.meta(key)
	if !ok {
		return def
	}
	s, ok := v.Str()
	if !ok {
		m.fail(key, v, "a string")
	}
	return s
}

// name returns the name of the model, def if it has none.
func (m *metaReader) name(def string) string {
	const key = "general.name"
	v, ok := m.f.Meta(key)
	if !ok {
		return def
	}
	s, ok := v.Str()
	if !ok && m.err == nil {
		m.err = m.f.KeyError(key, corruptf("%s of type %s, want a string", v, v.Type))
	}
	return s
}

// int reads an integer within [lo, hi]. It returns def if the key is missing; a negative def makes
// that an error.
func (m *metaReader) int(key string, def, lo, hi int) int {
	v, ok := m.meta(key)
	if !ok {
		if def < 0 && m.err == nil {
			m.err = m.wrong(key, corruptf("the key is missing"))
		}
		return max(def, lo)
	}
	n, ok := v.Int()
	if ok && n > int64(hi) && m.err == nil {
		m.err = m.wrong(key, unsupportedf("%d, want at most %d", n, hi))
	}
	if !ok || n < int64(lo) || n > int64(hi) {
		m.fail(key, v, fmt.Sprintf("an integer of [%d, %d]", lo, hi))
		return lo
	}
	return int(n)
}
