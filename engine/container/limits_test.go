// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// cacheOf is a header of one layer.
func cacheOf(kvHeads, headDim, tokens, segment int) *Header {
	return &Header{Kind: KindCache, Layers: []int{0}, Tokens: int64(tokens), SegmentTokens: segment,
		KType: quant.Float32, VType: quant.Float16,
		Geometry: quant.Geometry{Layers: 1, Heads: kvHeads, KVHeads: kvHeads, HeadDim: headDim, HeadDimV: headDim}}
}

func TestHeader_ExpandedBytes(t *testing.T) {
	h := cacheOf(8, 128, 5000, 4096)
	require.EqualValues(t, 8*4096*128*(4+2), h.expandedBytes(0, 0))
	require.EqualValues(t, 8*904*128*(4+2), h.expandedBytes(0, 1))
	require.Equal(t, h.expandedBytes(0, 0), h.LargestRecord())
	rows := &Header{Kind: KindRows, SegmentTokens: 100, Tensors: []Tensor{
		{Name: "a", DType: "BF16", Shape: []int64{3, 20, 7}}, {Name: "none", DType: "F32", Shape: []int64{0, 7}},
		{Name: "b", DType: "F32", Shape: []int64{250, 9}}}}
	require.EqualValues(t, 60*7*2, rows.expandedBytes(0, 0))
	require.EqualValues(t, 100*9*4, rows.LargestRecord())
}

// Records of large models pass: 8 KV heads with rows of 256 float32, in 4096 tokens; 128 heads in 512.
func TestLimits_LargeModels(t *testing.T) {
	for _, h := range []*Header{cacheOf(8, 256, 4096, 4096), cacheOf(128, 192, 512, 512)} {
		h.VType = quant.Float32
		_, err := NewWriter(&bytes.Buffer{}, h)
		require.NoError(t, err)
	}
}

// A file is refused whose record stands for more than the limit, by Open and by Salvage, with all that
// tells which one it is.
func TestLimits_Expansion(t *testing.T) {
	f := goldenCache()
	good := f.write(t)
	most := f.h.LargestRecord()
	_, err := openBytes(good, Limits{MaxExpandedBytes: most})
	require.NoError(t, err)
	limits := Limits{MaxExpandedBytes: most - 1}
	_, err = openBytes(good, limits)
	check := func(err error) {
		t.Helper()
		require.ErrorIs(t, err, quant.ErrTooLarge)
		var r *RefusedError
		require.True(t, errors.As(err, &r))
		require.Equal(t, []any{"test.kvist", "record", 0, 0, int64(-1)},
			[]any{r.File, r.Section, r.Layer, r.Segment, r.Offset})
		require.ErrorContains(t, err, "reading test.kvist: record layer 0 segment 0: size of the expanded record is "+
			strconv.FormatInt(most, 10)+" bytes, the limit is "+strconv.FormatInt(most-1, 10)+" bytes")
	}
	check(err)
	_, _, err = Salvage("test.kvist", bytes.NewReader(good), int64(len(good)), limits)
	check(err)
}

// What a writer writes, a reader reads with the limits that it has by default.
func TestWriter_KeepsLimitsOfReaders(t *testing.T) {
	refused := func(h *Header, what string) {
		t.Helper()
		var b bytes.Buffer
		_, err := NewWriter(&b, h)
		require.ErrorIs(t, err, quant.ErrTooLarge)
		require.ErrorContains(t, err, what)
		require.Zero(t, b.Len())
	}
	h := cacheOf(1, 16384, 32768, 32768)
	refused(h, "expands to 3221225472 bytes, readers accept 117440512")
	h.SegmentTokens = 1024
	_, err := NewWriter(&bytes.Buffer{}, h)
	require.NoError(t, err)
	h = cacheOf(640, 1, 32768, 32768)
	h.KType = quant.Float16
	refused(h, "20971520 kv_heads * tokens")
	refused(cacheOf(1, 1, 1<<20+1, 1), "1048577 records")
	h = cacheOf(1, 8, 8, 8)
	h.Metadata = map[string]string{"text": strings.Repeat("x", defaultHeaderBytes)}
	refused(h, "config, metadata and names")

	w, err := NewWriter(&bytes.Buffer{}, cacheOf(1, 8, 8, 8))
	require.NoError(t, err)
	for i := range defaultSides {
		w.names[strconv.Itoa(i)] = true
	}
	require.ErrorIs(t, w.WriteAux(&Aux{Name: "one more", DType: "U8"}), quant.ErrTooLarge)
}

// A header of some bytes may promise a million records: a salvage does not name them all.
func TestSalvage_NamesSoManyLosses(t *testing.T) {
	b := (&file{h: cacheOf(1, 8, 0, 1)}).write(t)
	at := bytes.Index(b[fileHeaderBytes:], binary.LittleEndian.AppendUint32(nil, 1<<16|tagSpan))
	require.Positive(t, at)
	binary.LittleEndian.PutUint64(b[fileHeaderBytes+at+fieldHeaderBytes:], defaultRecords)
	repair(b)
	_, lost, err := Salvage("test.kvist", bytes.NewReader(b), int64(len(b)), Limits{})
	require.NoError(t, err)
	require.Len(t, lost, maxLost+1)
	require.ErrorContains(t, lost[maxLost], "losses more")
}

// A side tensor of some bytes may not stand for any number of them; a large one is stored as it is.
func TestLimits_SideTensors(t *testing.T) {
	const n = DefaultExpandedBytes
	for _, size := range []int{n, n + 1} {
		a := &Aux{Name: "zeros", DType: "U8", Shape: []int64{int64(size)}, Data: make([]byte, size)}
		b := (&file{h: cacheOf(1, 8, 0, 1), aux: []*Aux{a}}).write(t)
		require.Equal(t, size > n, len(b) > n, "%d bytes are stored as they are", size)
		r, err := openBytes(b, Limits{})
		require.NoError(t, err)
		require.NoError(t, r.Verify(nil))
		if size == n {
			r, err = openBytes(b, Limits{MaxExpandedBytes: n - 1})
			require.NoError(t, err)
			require.ErrorIs(t, r.Verify(nil), quant.ErrTooLarge)
		}
	}
}
