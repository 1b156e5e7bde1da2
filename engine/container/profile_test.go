// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func profileFile() *file {
	return &file{
		h: &Header{Kind: KindProfile, Model: "golden",
			Metadata: map[string]string{"params.seed": "1"},
			Geometry: quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8,
				Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4,
					InvFreq: []float32{1, 0.5, 0.25, 0.125}}}},
		aux: []*Aux{
			{Name: "params/text", DType: "U8", Shape: []int64{5}, Data: []byte("a=1.5")},
			{Name: "sensitivity/k", DType: "F32", Shape: []int64{2, 2}, Data: make([]byte, 16)},
		},
	}
}

func openProfileBytes(b []byte, lim Limits) (*Reader, error) {
	return OpenProfile("test.kvprofile", bytes.NewReader(b), int64(len(b)), lim)
}

func TestProfile_RoundTrip(t *testing.T) {
	f := profileFile()
	profileRoundTrip(t, f)
	f.h.Geometry.PerLayer = []quant.LayerAttention{{Rope: f.h.Geometry.Rope, Window: 9}, {Scale: 0.5}}
	profileRoundTrip(t, f)
}

func profileRoundTrip(t *testing.T, f *file) {
	b := f.write(t)
	r, err := openProfileBytes(b, Limits{})
	require.NoError(t, err)
	require.NoError(t, r.Verify(nil))
	require.Empty(t, r.Records())
	aux, err := r.ReadAllAux(0)
	require.NoError(t, err)
	requireSame(t, f, &file{h: r.Header(), aux: aux})
	require.NoError(t, Dump(io.Discard, r, DumpOptions{}))
	size, err := HeaderSize(f.h)
	require.NoError(t, err)
	require.Equal(t, size, r.hdrLen)

	_, err = r.ReadAllAux(20)
	require.ErrorIs(t, err, quant.ErrTooLarge, "5 + 16 bytes")
	_, err = r.ReadAllAux(21)
	require.NoError(t, err)
}

// Readers of caches refuse profiles, and the reader of profiles refuses everything else, with clear
// messages.
func TestProfile_KindsDoNotMix(t *testing.T) {
	b := profileFile().write(t)
	_, err := openBytes(b, Limits{})
	requireTyped(t, err)
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, "the file is a profile")
	_, _, err = salvage(t, b, Limits{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	for _, name := range []string{"pass-cache", "pass-rows"} {
		_, err := openProfileBytes(readGolden(t, name), Limits{})
		requireTyped(t, err)
		require.ErrorIs(t, err, quant.ErrUnsupported)
		require.ErrorContains(t, err, "want a profile")
	}
}

func TestProfile_HeaderRefusals(t *testing.T) {
	for name, change := range map[string]func(h *Header){
		"layers":   func(h *Header) { h.Layers = []int{0} },
		"tokens":   func(h *Header) { h.Tokens = 1 },
		"seed":     func(h *Header) { h.Seed = 1 },
		"config":   func(h *Header) { h.Config = "bits=3" },
		"profile":  func(h *Header) { h.Profile[0] = 1 },
		"geometry": func(h *Header) { h.Geometry.KVHeads = 0 },
		"inv_freq": func(h *Header) { h.Geometry.Rope.InvFreq = []float32{1} },
		"utf-8":    func(h *Header) { h.Model = "\xff" },
	} {
		h := profileFile().h
		change(h)
		_, err := HeaderSize(h)
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
	// A record in the index of a profile, and a field that no profile has.
	f := profileFile()
	b := f.write(t)
	r, err := openProfileBytes(b, Limits{})
	require.NoError(t, err)
	binary.LittleEndian.PutUint16(b[r.index+indexSize(0)+14:], entryRecord)
	repair(b)
	_, err = openProfileBytes(b, Limits{})
	requireTyped(t, err)
	require.ErrorIs(t, err, quant.ErrCorrupt)

	b = f.write(t)
	at := bytes.Index(b, []byte("golden")) - fieldHeaderBytes
	binary.LittleEndian.PutUint16(b[at:], tagConfig)
	repair(b)
	_, err = openProfileBytes(b, Limits{})
	requireTyped(t, err)
	require.ErrorIs(t, err, quant.ErrCorrupt)
	require.ErrorContains(t, err, "kind profile")
}
