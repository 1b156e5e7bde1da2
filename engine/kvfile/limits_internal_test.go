// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/quant"
)

// zeroFile is a file that holds what was written to it first, and zeros behind that.
type zeroFile struct{ head []byte }

func (z *zeroFile) WriteAt(b []byte, _ int64) (int, error) {
	z.head = append(z.head, b...)
	return len(b), nil
}

func (z *zeroFile) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(z.head)) {
		copy(b, z.head[off:])
	}
	return len(b), nil
}

var _ io.ReaderAt = (*zeroFile)(nil)

// emptyCapture is a capture of one layer, all zeros, of any size.
func emptyCapture(t *testing.T, kvHeads, dim, tokens int64) *capture.Source {
	g := quant.Geometry{Layers: 1, Heads: int(kvHeads), KVHeads: int(kvHeads), HeadDim: int(dim), HeadDimV: int(dim)}
	meta := capture.KVMetadata(g, "", 0)
	meta["rope_applied"] = "true"
	var f zeroFile
	w, err := capture.NewWriter(&f, []capture.Decl{
		{Name: "layers.0.k", DTypeName: "F16", Shape: []int64{kvHeads, tokens, dim}},
		{Name: "layers.0.v", DTypeName: "F16", Shape: []int64{kvHeads, tokens, dim}}}, meta)
	require.NoError(t, err)
	src, err := capture.New("zeros", &f, w.Size(), capture.Limits{})
	require.NoError(t, err)
	return src
}

// Segments of lossless mode are as long as readers take; ones that were asked for and are too long
// are refused before any work.
func TestCompress_SegmentsThatReadersTake(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Form, cfg.Lossless, cfg.Bits = FormArchive, true, 0
	small, large := emptyCapture(t, 8, 128, 100_000), emptyCapture(t, 128, 128, 100_000)
	require.Equal(t, losslessSegment, segmentOf(small, &cfg))
	n := segmentOf(large, &cfg)
	require.Equal(t, container.DefaultExpandedBytes/(128*128*2*2), n)
	in, err := captured.Of(large, n)
	require.NoError(t, err)
	require.NoError(t, checkRecords(in))

	cfg = DefaultConfig()
	cfg.Bits, cfg.Segment = 3, 4096
	_, err = Compress(t.Context(), large, io.Discard, Options{Config: &cfg})
	require.ErrorIs(t, err, quant.ErrTooLarge)
	require.ErrorContains(t, err, "layer 0 of zeros in segments of 4096 tokens: a record stands for 268435456 bytes")
	require.ErrorContains(t, err, "segments of 1792 tokens or fewer fit")
}

// How many records are expanded at a time goes down as they grow.
func TestRecordWorkers(t *testing.T) {
	h := &container.Header{Kind: container.KindCache, Layers: []int{0}, Tokens: 1 << 20, SegmentTokens: 4096,
		KType: quant.Float16, VType: quant.Float16,
		Geometry: quant.Geometry{Layers: 1, Heads: 8, KVHeads: 8, HeadDim: 256, HeadDimV: 256}}
	require.Equal(t, 1, recordWorkers(h))
	h.SegmentTokens = 1
	require.GreaterOrEqual(t, recordWorkers(h), 1)
}

// A file whose side tensors are named as layers that it does not store has no weights for them.
func TestArchiveWeights_LayerThatIsNotThere(t *testing.T) {
	f := func(layer, head int) error {
		w := weightsOf(map[int][][]float32{3: {{1, 2}}})
		_, err := w(layer, head)
		return err
	}
	require.NoError(t, f(3, 0))
	require.ErrorIs(t, f(3, 1), quant.ErrCorrupt)
	require.ErrorIs(t, f(5, 0), quant.ErrCorrupt)
}
