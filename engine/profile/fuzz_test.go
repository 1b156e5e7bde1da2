// SPDX-License-Identifier: Apache-2.0

package profile_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

func is(err, target error) bool { return errors.Is(err, target) }

// fuzzLimits keep one run cheap.
var fuzzLimits = profile.Limits{MaxFileBytes: 1 << 16, MaxBytes: 1 << 16, MaxTensors: 32}

// repair makes checksums right as far as lengths lead, so that what lies behind is tested.
func repair(b []byte) {
	le := binary.LittleEndian
	table := crc32.MakeTable(crc32.Castagnoli)
	put := func(s []byte, at int) {
		c := crc32.Update(crc32.Checksum(s[:at], table), table, s[at+4:])
		le.PutUint32(s[at:], c)
	}
	const trailerSize = 32
	if len(b) < 24+trailerSize {
		return
	}
	pos := int64(le.Uint32(b[12:]))
	if pos < 24 || pos > int64(len(b)) {
		return
	}
	put(b[:pos], 16)
	put(b[len(b)-trailerSize:], 12)
	for pos+24 <= int64(len(b)) {
		n := int64(min(le.Uint64(b[pos+8:]), 1<<40))
		if string(b[pos:pos+4]) == "KIDX" {
			n = 16 * (1 + int64(le.Uint32(b[pos+8:])))
		}
		if n < 16 || n > int64(len(b))-pos {
			return
		}
		put(b[pos:pos+n], 4)
		pos += n
	}
}

// raw writes a profile's file without asking what makes sense.
func raw(t testing.TB, meta map[string]string, tensors ...*container.Aux) []byte {
	var b bytes.Buffer
	w, err := container.NewWriter(&b, &container.Header{Kind: container.KindProfile,
		Geometry: geometry(), Metadata: meta})
	require.NoError(t, err)
	for _, a := range tensors {
		require.NoError(t, w.WriteAux(a))
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func aux(name, text string) *container.Aux {
	return &container.Aux{Name: name, DType: "U8", Shape: []int64{int64(len(text))}, Data: []byte(text)}
}

// Files whose checksums hold and whose content cannot be.
func TestProfile_ImpossibleContent(t *testing.T) {
	factors := func(name string, first float32) *container.Aux {
		s := sensitivity()
		s.K[0] = first
		var data []byte
		for _, v := range s.K {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
		return &container.Aux{Name: "sensitivity/" + name, DType: "F32", Shape: []int64{3, 2}, Data: data}
	}
	for name, b := range map[string][]byte{
		"no section":          raw(t, nil, aux("basis-k", "")),
		"sections not sorted": raw(t, nil, aux("tables/k", ""), aux("basis/k", "")),
		"tensors not sorted":  raw(t, nil, aux("basis/k", ""), aux("basis/j", "")),
		"section torn":        raw(t, nil, aux("basis/j", ""), aux("params/text", ""), aux("basis/k", "")),
		"name":                raw(t, nil, aux("basis/K", "")),
		"section name":        raw(t, nil, aux("Basis/k", "")),
		"metadata":            raw(t, map[string]string{"tables.seed": "1"}, aux("basis/k", "")),
		"metadata key":        raw(t, map[string]string{"seed": "1"}, aux("basis/k", "")),
		"params":              raw(t, nil, aux("params/text", "sinks 8")),
		"params not sorted":   raw(t, nil, aux("params/text", "b=1 a=1")),
		"sensitivity of K":    raw(t, nil, factors("k", 1)),
		"factor":              raw(t, nil, factors("k", -1), factors("v", 1)),
	} {
		_, err := read(b, profile.Limits{})
		require.ErrorIs(t, err, quant.ErrCorrupt, name)
		require.ErrorContains(t, err, "test.kvprofile")
	}
	// What a later version may add is kept.
	p := must[*profile.Profile](t)(read(raw(t, nil, aux("later/x", "y")), profile.Limits{}))
	q := must[*profile.Profile](t)(p.WithParams(profile.Params{"sinks": "4"}, nil))
	require.Equal(t, []profile.Section{"later", "params"}, q.Sections())
}

func FuzzProfile(f *testing.F) {
	b, err := os.ReadFile(goldenPath)
	require.NoError(f, err)
	f.Add(b)
	f.Add(encode(f, whole(f)))
	f.Add(encode(f, must[*profile.Profile](f)(profile.New("golden", layered()))))
	f.Add([]byte{})
	f.Add(raw(f, nil, aux("basis/k", ""), aux("basis/j", "")))
	f.Add(raw(f, nil, aux("params/text", "a=1 b=2")))
	f.Fuzz(func(t *testing.T, b []byte) {
		for range 2 {
			p, err := read(b, fuzzLimits)
			if err != nil {
				requireTyped(t, err)
			} else {
				q, err := read(encode(t, p), profile.Limits{})
				require.NoError(t, err)
				require.Equal(t, p.ID(), q.ID())
				for _, s := range p.Sections() {
					require.Equal(t, p.Meta(s), q.Meta(s))
				}
			}
			b = bytes.Clone(b)
			repair(b)
		}
	})
}

func FuzzParams(f *testing.F) {
	for _, s := range []string{"", "a=1", "a=1 b=x,y=2", "a==", " ", "a=1 a=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := profile.ParseParams(s)
		if err != nil {
			require.ErrorIs(t, err, quant.ErrShape)
			return
		}
		require.Equal(t, s, p.String())
	})
}
