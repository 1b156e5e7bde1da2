// SPDX-License-Identifier: Apache-2.0

package profile_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

var update = flag.Bool("update", false, "write a golden that is missing")

func geometry() quant.Geometry {
	return quant.Geometry{Layers: 3, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4}}
}

func sensitivity() *profile.Sensitivity {
	return &profile.Sensitivity{K: []float32{4, 2, 1, 1, 0.5, 0.25}, V: []float32{1, 1, 1, 2, 3, 1}}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		require.NoError(t, err)
		return v
	}
}

func tensor(name, dtype string, data []byte, shape ...int64) profile.Tensor {
	return profile.Tensor{Name: name, DType: dtype, Shape: shape, Data: data}
}

// whole has a section of every kind.
func whole(t testing.TB) *profile.Profile {
	ok := must[*profile.Profile](t)
	p := ok(profile.New("golden", geometry()))
	p = ok(p.WithParams(profile.Params{"importance": "relevance=0.5,window=64", "sinks": "8"},
		profile.Meta{"made-by": "test", "seed": "7", "texts": "a.txt:0123456789abcdef"}))
	p = ok(p.WithSensitivity(sensitivity(), profile.Meta{"noise": "lm3"}))
	p = ok(p.With(profile.SectionBasis, nil,
		tensor("k", "I8", []byte{0xfd, 0, 127, 128}, 2, 2),
		tensor("mean", "F16", []byte{0, 0x38, 0, 0xc0}, 2),
		tensor("empty", "U8", nil, 0, 4)))
	return ok(p.With(profile.SectionTables, profile.Meta{"made-by": "test"},
		tensor("cdf", "U16", []byte{0, 0, 1, 0, 0xff, 0xff}, 3)))
}

func encode(t testing.TB, p *profile.Profile) []byte {
	var b bytes.Buffer
	n, err := p.WriteTo(&b)
	require.NoError(t, err)
	require.EqualValues(t, b.Len(), n)
	return b.Bytes()
}

func read(b []byte, lim profile.Limits) (*profile.Profile, error) {
	return profile.Read("test.kvprofile", bytes.NewReader(b), int64(len(b)), lim)
}

func TestProfile_RoundTrip(t *testing.T) {
	p := whole(t)
	q := must[*profile.Profile](t)(read(encode(t, p), profile.Limits{}))
	require.Equal(t, p.ID(), q.ID())
	require.Equal(t, "golden", q.Model())
	require.Equal(t, geometry(), q.Geometry())
	require.Equal(t, []profile.Section{"basis", "params", "sensitivity", "tables"}, q.Sections())
	require.Equal(t, "7", q.Meta(profile.SectionParams)["seed"])
	params, err := q.Params()
	require.NoError(t, err)
	require.Equal(t, "importance=relevance=0.5,window=64 sinks=8", params.String())
	s, err := q.Sensitivity()
	require.NoError(t, err)
	require.Equal(t, sensitivity(), s)
	k, v := s.At(1, 1, 2)
	require.Equal(t, []float64{1, 2}, []float64{k, v})

	basis, ok := q.Tensor(profile.SectionBasis, "k")
	require.True(t, ok)
	require.Equal(t, profile.Tensor{Name: "k", DType: "I8", Shape: []int64{2, 2},
		Data: []byte{0xfd, 0, 127, 128}}, basis)
	mean, _ := q.Tensor(profile.SectionBasis, "mean")
	require.Equal(t, []byte{0, 0x38, 0, 0xc0}, mean.Data)
	cdf, _ := q.Tensor(profile.SectionTables, "cdf")
	require.Equal(t, []byte{0, 0, 1, 0, 0xff, 0xff}, cdf.Data)
	_, ok = q.Tensor(profile.SectionTables, "none")
	require.False(t, ok)
	require.Equal(t, encode(t, p), encode(t, q))
}

// Each tool replaces its own sections; identity follows what acts and nothing else.
func TestProfile_SectionsAndIdentity(t *testing.T) {
	ok := must[*profile.Profile](t)
	p := whole(t)
	archive := []profile.Section{profile.SectionTables, profile.SectionBasis}
	q := ok(p.WithParams(profile.Params{"sinks": "4"}, nil))
	require.NotEqual(t, p.ID(), q.ID())
	require.Equal(t, p.Digest(archive...), q.Digest(archive...), "tuning leaves the archive's identity")
	require.Equal(t, p.Tensors(profile.SectionBasis), q.Tensors(profile.SectionBasis))
	require.Nil(t, q.Meta(profile.SectionParams))
	require.Equal(t, "test", p.Meta(profile.SectionParams)["made-by"], "the old one is as it was")

	same := ok(p.WithSensitivity(sensitivity(), profile.Meta{"noise": "other words"}))
	require.Equal(t, p.ID(), same.ID(), "meta does not act")
	gone := ok(p.With(profile.SectionBasis, nil))
	require.NotContains(t, gone.Sections(), profile.SectionBasis)
	gone = ok(gone.WithSensitivity(nil, nil))
	s, err := gone.Sensitivity()
	require.NoError(t, err)
	require.Nil(t, s)
	gone = ok(gone.WithParams(nil, profile.Meta{"a": "b"}))
	params, err := gone.Params()
	require.NoError(t, err)
	require.Empty(t, params)

	ids := map[profile.ID]bool{}
	for _, change := range []func() *profile.Profile{
		func() *profile.Profile { return p },
		func() *profile.Profile { return ok(profile.New("golden", geometry())) },
		func() *profile.Profile { return ok(profile.New("other", geometry())) },
		func() *profile.Profile { return ok(p.With("basis", nil, tensor("k", "U8", []byte{1}, 1))) },
		func() *profile.Profile { return ok(p.With("basis", nil, tensor("k", "U8", []byte{1}, 1, 1))) },
		func() *profile.Profile { return ok(p.With("basis", nil, tensor("j", "U8", []byte{1}, 1))) },
		func() *profile.Profile { return ok(p.With("basi", nil, tensor("k", "U8", []byte{1}, 1))) },
		func() *profile.Profile { return ok(p.With("basis", nil, tensor("k", "I8", []byte{1}, 1))) },
	} {
		id := change().ID()
		require.False(t, ids[id])
		ids[id] = true
	}
	require.Equal(t, "none", profile.ID{}.String())
	require.Len(t, p.ID().String(), 16)
	require.True(t, strings.HasPrefix(p.ID().Full(), p.ID().String()))
}

func TestProfile_OtherModel(t *testing.T) {
	p := whole(t)
	require.NoError(t, p.Check("golden", geometry()))
	require.NoError(t, p.Check("", geometry()))
	two := must[*profile.Profile](t)(profile.New("golden 7B | golden-7b", geometry()))
	require.NoError(t, two.Check("golden-7b", geometry()))
	require.Error(t, two.Check("golden", geometry()))
	for what, change := range map[string]func(g *quant.Geometry){
		"layers":     func(g *quant.Geometry) { g.Layers++ },
		"heads":      func(g *quant.Geometry) { g.Heads *= 2 },
		"kv_heads":   func(g *quant.Geometry) { g.KVHeads = 1 },
		"head_dim":   func(g *quant.Geometry) { g.HeadDim = 24 },
		"head_dim_v": func(g *quant.Geometry) { g.HeadDimV = 24 },
		"rope":       func(g *quant.Geometry) { g.Rope.Theta = 5e5 },
	} {
		g := geometry()
		change(&g)
		err := p.Check("golden", g)
		require.ErrorIs(t, err, quant.ErrShape)
		var m *profile.MismatchError
		require.ErrorAs(t, err, &m)
		require.Equal(t, what, m.What)
		require.ErrorContains(t, err, p.ID().String())
	}
	err := p.Check("llama", geometry())
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorContains(t, err, "llama")
}

func TestProfile_Refusals(t *testing.T) {
	p := whole(t)
	one := func(name, dtype string, shape []int64, data []byte) []profile.Tensor {
		return []profile.Tensor{{Name: name, DType: dtype, Shape: shape, Data: data}}
	}
	for name, c := range map[string]struct {
		section profile.Section
		meta    profile.Meta
		tensors []profile.Tensor
	}{
		"section":          {"Basis", nil, one("k", "U8", nil, []byte{1})},
		"no section":       {"", nil, one("k", "U8", nil, []byte{1})},
		"slash in section": {"a/b", nil, one("k", "U8", nil, []byte{1})},
		"name":             {"basis", nil, one("K", "U8", nil, []byte{1})},
		"no name":          {"basis", nil, one("", "U8", nil, []byte{1})},
		"long name":        {"basis", nil, one(strings.Repeat("a", 201), "U8", nil, []byte{1})},
		"shape":            {"basis", nil, one("k", "F32", []int64{2}, []byte{1})},
		"twice":            {"basis", nil, append(one("k", "U8", nil, []byte{1}), one("k", "I8", nil, []byte{1})...)},
		"meta key":         {"basis", profile.Meta{"A": ""}, one("k", "U8", nil, []byte{1})},
		"meta value":       {"basis", profile.Meta{"a": "\x00"}, one("k", "U8", nil, []byte{1})},
		"params":           {"params", nil, one("other", "U8", nil, []byte{1})},
		"params text":      {"params", nil, one("text", "U8", []int64{1}, []byte{'a'})},
		"one sensitivity":  {"sensitivity", nil, []profile.Tensor{tensor("k", "F32", make([]byte, 24), 3, 2)}},
	} {
		_, err := p.With(c.section, c.meta, c.tensors...)
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
	_, err := p.With("basis", nil, one("k", "F33", nil, []byte{1})...)
	require.ErrorIs(t, err, quant.ErrUnsupported)
	for _, bad := range []float32{0, -1, float32(math.NaN()), float32(math.Inf(1)), 1 << 21} {
		s := sensitivity()
		s.V[3] = bad
		_, err := p.WithSensitivity(s, nil)
		require.ErrorIs(t, err, quant.ErrShape)
		require.ErrorContains(t, err, "of v, layer 1 head 1")
	}
	_, err = p.WithSensitivity(&profile.Sensitivity{K: []float32{1}, V: []float32{1}}, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = profile.New("\xff", geometry())
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = profile.New("m", quant.Geometry{})
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestParams_Text(t *testing.T) {
	for _, bad := range []string{"a", "a=", "=1", "a=1 ", " a=1", "a=1  b=2", "b=1 a=2", "a=1 a=2",
		"A=1", "a=\x01", "a=\xff", strings.Repeat("x", 65) + "=1", "a=" + strings.Repeat("x", 4097)} {
		_, err := profile.ParseParams(bad)
		require.ErrorIs(t, err, quant.ErrShape, "%.20q", bad)
	}
	p, err := profile.ParseParams("a-1=x=y,z b=é")
	require.NoError(t, err)
	require.Equal(t, profile.Params{"a-1": "x=y,z", "b": "é"}, p)
	require.Equal(t, "a-1=x=y,z b=é", p.String())
	many := profile.Params{}
	for i := range 257 {
		many[fmt.Sprint("k", i)] = "1"
	}
	require.ErrorIs(t, many.Validate(), quant.ErrShape)
	_, err = profile.ParseParams(many.String())
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestProfile_Files(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.kvprofile")
	p := whole(t)
	require.NoError(t, p.Write(path, false))
	require.ErrorIs(t, p.Write(path, false), fs.ErrExist)
	require.NoError(t, p.Write(path, true))
	q, err := profile.Open(path, profile.Limits{})
	require.NoError(t, err)
	require.Equal(t, p.ID(), q.ID())
	_, err = profile.Open(dir, profile.Limits{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = profile.Open(filepath.Join(dir, "none"), profile.Limits{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, lim := range []profile.Limits{{MaxFileBytes: 100}, {MaxBytes: 50}, {MaxTensors: 3}} {
		_, err = profile.Open(path, lim)
		require.ErrorIs(t, err, quant.ErrTooLarge)
	}
}

// A small file does not stand for any number of bytes.
func TestRead_Expansion(t *testing.T) {
	var b bytes.Buffer
	w, err := container.NewWriter(&b, &container.Header{Kind: container.KindProfile,
		Geometry: quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8}})
	require.NoError(t, err)
	data := make([]byte, 40<<20)
	for _, name := range []string{"basis/a", "basis/b"} {
		require.NoError(t, w.WriteAux(&container.Aux{Name: name, DType: "U8", Shape: []int64{int64(len(data))}, Data: data}))
	}
	require.NoError(t, w.Close())
	require.Less(t, b.Len(), 1<<20)
	_, err = profile.Read("zeros.kvprofile", bytes.NewReader(b.Bytes()), int64(b.Len()), profile.Limits{})
	require.ErrorIs(t, err, quant.ErrTooLarge)
	require.ErrorContains(t, err, "bytes of all side tensors together")
	require.ErrorContains(t, err, "zeros.kvprofile")
}

const goldenPath = "../../testdata/golden/v1/pass-profile.kvprofile"

// TestProfile_Golden: a profile once written opens for ever, and keeps its identity.
func TestProfile_Golden(t *testing.T) {
	if _, err := os.Stat(goldenPath); *update && os.IsNotExist(err) {
		require.NoError(t, whole(t).Write(goldenPath, false))
	}
	p, err := profile.Open(goldenPath, profile.Limits{})
	require.NoError(t, err)
	require.Equal(t, whole(t).ID(), p.ID())
	require.Equal(t, "574e51439e95ad248ec882d25ddf9f375cbed618da11d61e4007a97a9603c6a7",
		p.ID().Full())
	require.Equal(t, "test", p.Meta(profile.SectionTables)["made-by"])
}

func TestProfile_EveryByteFlippedAndEveryTruncation(t *testing.T) {
	b, err := os.ReadFile(goldenPath)
	require.NoError(t, err)
	for i := range b {
		_, err := read(b[:i], profile.Limits{})
		require.ErrorIs(t, err, quant.ErrCorrupt, "cut at %d", i)
		for _, x := range []byte{1, 0x80, 0xff} {
			b[i] ^= x
			_, err := read(b, profile.Limits{})
			requireTyped(t, err)
			b[i] ^= x
		}
	}
	_, err = read(append(bytes.Clone(b), 0), profile.Limits{})
	require.ErrorIs(t, err, quant.ErrCorrupt)
}

func requireTyped(t testing.TB, err error) {
	t.Helper()
	require.Error(t, err)
	n := 0
	for _, e := range []error{quant.ErrCorrupt, quant.ErrVersion, quant.ErrUnsupported,
		quant.ErrTooLarge} {
		if _, ok := err.(*container.RefusedError); ok {
			require.NotErrorIs(t, err, quant.ErrCorrupt)
		}
		if is(err, e) {
			n++
		}
	}
	require.Equal(t, 1, n, "%v", err)
}

func TestSensitivity_Power(t *testing.T) {
	s := sensitivity()
	for _, f := range s.Power(0).K {
		require.EqualValues(t, 1, f)
	}
	require.Equal(t, s, s.Power(1))
	require.InDelta(t, 2, s.Power(0.5).K[0], 1e-6)
	require.EqualValues(t, 1<<20, s.Power(1000).K[0], "held within the range")
	_, err := whole(t).WithSensitivity(s.Power(-1000), nil)
	require.NoError(t, err)
}

// A profile takes other names of its model; files made before still find it.
func TestNamed(t *testing.T) {
	p, err := profile.New("a", quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8})
	require.NoError(t, err)
	q, err := p.Named("b", "a", "b")
	require.NoError(t, err)
	require.Equal(t, "a | b", q.Model())
	require.Equal(t, "a", p.Model())
	for _, n := range []string{"a", "b", ""} {
		require.NoError(t, q.Check(n, p.Geometry()))
	}
	var mismatch *profile.MismatchError
	require.ErrorAs(t, q.Check("a | b", p.Geometry()), &mismatch)
	require.ErrorContains(t, mismatch, "--also-named")
	require.Equal(t, []profile.ID{q.Digest(), p.Digest()}, q.Digests())
	for _, n := range []string{"", " b", "b | c"} {
		_, err := p.Named(n)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	none, err := profile.New("", p.Geometry())
	require.NoError(t, err)
	q, err = none.Named("b")
	require.NoError(t, err)
	require.Equal(t, "b", q.Model())
}

func TestProfile_DerivedConcurrently(t *testing.T) {
	p, err := profile.New("m", geometry())
	require.NoError(t, err)
	type key struct{}
	type other struct{}
	made := 0
	fail := errors.New("not yet")
	_, err = p.Derived(key{}, func() (any, error) { return nil, fail })
	require.ErrorIs(t, err, fail)
	var wg sync.WaitGroup
	var got [8]any
	for i := range got {
		wg.Go(func() { got[i], _ = p.Derived(key{}, func() (any, error) { made++; return "v", nil }) })
	}
	wg.Wait()
	for _, v := range got {
		require.Equal(t, "v", v)
	}
	require.Equal(t, 1, made)
	v, err := p.Derived(other{}, func() (any, error) { return 2, nil })
	require.NoError(t, err)
	require.Equal(t, 2, v)
	q, err := p.Named("n")
	require.NoError(t, err)
	v, err = q.Derived(key{}, func() (any, error) { return "q", nil })
	require.NoError(t, err)
	require.Equal(t, "q", v, "what is derived belongs to one profile")
}
