// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

var update = flag.Bool("update", false, "rewrite the golden payload")

// goldenRows is the SHA-256 of the rows that testdata/golden.bin decodes to.
const goldenRows = "e380493875eb64b4728345566848e24974b49f89a9542df6738c0d72144b90a3"

const (
	goldenFile   = "testdata/golden.bin"
	goldenParams = "testdata/golden-params.bin"
)

// goldenCache returns the codec of the golden payload, from its own parameters.
func goldenCache(t testing.TB) (*Codec, *Segment) {
	made, seg := cache(t, 33, 2)
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(goldenFile), 0o755))
		require.NoError(t, os.WriteFile(goldenParams, made.Params.Append(nil), 0o644))
		require.NoError(t, os.WriteFile(goldenFile, encode(t, made, seg), 0o644))
	}
	b, err := os.ReadFile(goldenParams)
	require.NoError(t, err)
	p, err := ParseParams(b)
	require.NoError(t, err)
	c, err := NewCodec(p, false)
	require.NoError(t, err)
	return c, seg
}

func goldenPayload(t testing.TB) []byte {
	b, err := os.ReadFile(goldenFile)
	require.NoError(t, err)
	return b
}

func isTyped(err error) bool {
	return errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrShape) || errors.Is(err, quant.ErrVersion)
}

func FuzzDecode(f *testing.F) {
	c, seg := cache(f, 9, 2)
	f.Add(encode(f, c, seg))
	several := clone(seg)
	several.Chunks, several.Parts = 4, 2
	f.Add(encode(f, c, several))
	withOne, far := cache(f, fewestRows, 1)
	withConstant(far, 1e4)
	f.Add(encode(f, withOne, far))
	told, near := alike(f, 9)
	f.Add(encode(f, told, near))
	l := EncodeLossless(nil, []LosslessLane{{16, make([]byte, 64)}, {16, make([]byte, 64)},
		{16, make([]byte, 64)}, {16, make([]byte, 64)}}, 2)
	f.Add(l)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range []*Codec{c, told} {
			if err := c.Decode(emptyLike(seg), b, nil); err != nil && !isTyped(err) {
				t.Fatalf("%v", err)
			}
		}
		lanes := make([]LosslessLane, 4)
		for i := range lanes {
			lanes[i] = LosslessLane{16, make([]byte, 9*32)}
		}
		if err := DecodeLossless(lanes, b, 2); err != nil && !isTyped(err) {
			t.Fatalf("%v", err)
		}
		for _, keep := range []*Keep{
			{Lanes: []bool{true, true, true, true}, Refined: []int{1, 0, 2}},
			{Lanes: []bool{true, true, true, true}, Refined: []int{1, 0, 2, 0, 3, 9}},
			{Lanes: []bool{true, false, true, true}},
		} {
			s, err := Truncate(nil, b, keep)
			if err != nil {
				if !isTyped(err) {
					t.Fatalf("%v", err)
				}
				continue
			}
			if err := c.Decode(emptyLike(seg), s, nil); err != nil && !isTyped(err) {
				t.Fatalf("%v", err)
			}
		}
	})
}

func FuzzParams(f *testing.F) {
	c, seg := cache(f, 3, 1)
	f.Add(c.Params.Append(nil))
	differ := *c.Params
	differ.Ropes = NewRopes(layered())
	f.Add(differ.Append(nil))
	x := encode(f, c, seg)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseParams(b)
		if err != nil {
			if !isTyped(err) {
				t.Fatalf("%v", err)
			}
			return
		}
		if p.Set == nil {
			return
		}
		d, err := NewCodec(p, false)
		if err != nil {
			return
		}
		if err := d.Decode(emptyLike(seg), x, nil); err != nil && !isTyped(err) {
			t.Fatalf("%v", err)
		}
	})
}
