// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// failingWriter accepts n bytes, then fails with err or writes short.
type failingWriter struct {
	n   int
	err error
}

func (f *failingWriter) Write(p []byte) (int, error) {
	n := min(f.n, len(p))
	f.n -= n
	if n < len(p) {
		return n, f.err
	}
	return n, nil
}

func TestWriter_PassesErrorsOfTheDiskOn(t *testing.T) {
	f := goldenCache()
	size := len(f.write(t))
	for _, c := range []struct{ fail, want error }{{syscall.ENOSPC, syscall.ENOSPC},
		{nil, io.ErrShortWrite}} {
		for n := range size {
			w, err := NewWriter(&failingWriter{n: n, err: c.fail}, f.h)
			for _, r := range f.recs {
				if err == nil {
					err = w.WriteRecord(r)
				}
			}
			for _, a := range f.aux {
				if err == nil {
					err = w.WriteAux(a)
				}
			}
			if err == nil {
				err = w.Close()
			}
			require.ErrorIs(t, err, c.want, "after %d bytes", n)
		}
	}
}

func TestWriter_FailureSticks(t *testing.T) {
	f := goldenCache()
	n, err := HeaderSize(f.h)
	require.NoError(t, err)
	w, err := NewWriter(&failingWriter{n: int(n), err: syscall.ENOSPC}, f.h)
	require.NoError(t, err)
	require.ErrorIs(t, w.WriteRecord(f.recs[0]), syscall.ENOSPC)
	require.ErrorIs(t, w.WriteRecord(f.recs[1]), syscall.ENOSPC)
	require.ErrorIs(t, w.Close(), syscall.ENOSPC)
}

func TestWriter_RefusesWhatDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(r *Record)
		want   error
	}{
		{"layer", func(r *Record) { r.Layer = 2 }, quant.ErrShape},
		{"segment", func(r *Record) { r.Segment = 2 }, quant.ErrShape},
		{"heads", func(r *Record) { r.Heads = r.Heads[:1] }, quant.ErrShape},
		{"no blocks", func(r *Record) { r.Heads[0].Blocks = nil }, quant.ErrShape},
		{"token missing", func(r *Record) { b := &r.Heads[0].Blocks[0]; b.Tokens = b.Tokens[1:] },
			quant.ErrShape},
		{"token twice", func(r *Record) { b := r.Heads[1].Blocks; b[0].Tokens[0] = b[1].Tokens[0] },
			quant.ErrShape},
		{"token too far", func(r *Record) { b := r.Heads[0].Blocks[0].Tokens; b[len(b)-1] = 99 },
			quant.ErrShape},
		{"descending", func(r *Record) { b := r.Heads[0].Blocks[0].Tokens; b[0], b[1] = b[1], b[0] },
			quant.ErrShape},
		{"counts of FULL", func(r *Record) { r.Heads[0].Blocks[0].Counts = []uint16{1} }, quant.ErrShape},
		{"counts", func(r *Record) { r.Heads[1].Blocks[2].Counts[0]++ }, quant.ErrShape},
		{"count 0", func(r *Record) { r.Heads[1].Blocks[2].Counts[0] = 0 }, quant.ErrShape},
		{"payload", func(r *Record) { b := &r.Heads[0].Blocks[0]; b.KData = b.KData[1:] },
			quant.ErrShape},
		{"level", func(r *Record) { r.Heads[0].Blocks[0].Level = 4 }, quant.ErrUnsupported},
		{"coding", func(r *Record) { r.Heads[0].Blocks[0].K = quant.Coding{Format: 99} },
			quant.ErrUnsupported},
		{"dim", func(r *Record) { r.Heads[0].Blocks[0].K = quant.Coding{Format: quant.GGMLQ8_0} },
			quant.ErrUnsupported},
		{"two dropped", func(r *Record) {
			for i := range 2 {
				b := &r.Heads[1].Blocks[i]
				*b = Block{Level: quant.Dropped, Tokens: b.Tokens}
			}
		}, quant.ErrShape},
		{"coding of DROPPED", func(r *Record) { r.Heads[1].Blocks[0].Level = quant.Dropped },
			quant.ErrShape},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := goldenCache()
			var out bytes.Buffer
			w, err := NewWriter(&out, f.h)
			require.NoError(t, err)
			rec := f.recs[0]
			c.change(rec)
			require.ErrorIs(t, w.WriteRecord(rec), c.want)
			if c.name != "payload" {
				_, err = RecordSize(f.h, rec)
				require.ErrorIs(t, err, c.want)
			}
			// The writer is unchanged after it refused a record.
			require.EqualValues(t, out.Len(), w.Size())
			g := goldenCache()
			for _, r := range g.recs {
				require.NoError(t, w.WriteRecord(r))
			}
			for _, a := range g.aux {
				require.NoError(t, w.WriteAux(a))
			}
			require.NoError(t, w.Close())
			require.True(t, bytes.Equal(readGolden(t, "pass-cache"), out.Bytes()))
		})
	}
}

func TestWriter_WantsEveryRecordOnce(t *testing.T) {
	f := goldenCache()
	w, err := NewWriter(io.Discard, f.h)
	require.NoError(t, err)
	require.NoError(t, w.WriteRecord(f.recs[0]))
	require.ErrorIs(t, w.WriteRecord(f.recs[0]), quant.ErrShape)
	require.NoError(t, w.WriteAux(f.aux[0]))
	require.ErrorIs(t, w.WriteAux(f.aux[0]), quant.ErrShape)
	require.ErrorIs(t, w.Close(), quant.ErrShape)
	for _, r := range f.recs[1:] {
		require.NoError(t, w.WriteRecord(r))
	}
	require.NoError(t, w.Close())
	require.ErrorIs(t, w.Close(), quant.ErrClosed)
	require.ErrorIs(t, w.WriteRecord(f.recs[0]), quant.ErrClosed)
}

func TestHeader_RefusesWhatDoesNotFit(t *testing.T) {
	for name, change := range map[string]func(h *Header){
		"kind":            func(h *Header) { h.Kind = kindInvalid },
		"segment":         func(h *Header) { h.SegmentTokens = 0 },
		"long segment":    func(h *Header) { h.SegmentTokens = maxSegmentTokens + 1 },
		"tokens":          func(h *Header) { h.Tokens = -1 },
		"first":           func(h *Header) { h.First = -1 },
		"layers":          func(h *Header) { h.Layers = []int{3, 0} },
		"layer too high":  func(h *Header) { h.Layers = []int{4} },
		"no layers":       func(h *Header) { h.Layers = nil },
		"geometry":        func(h *Header) { h.Geometry.Heads = 3 },
		"inv_freq":        func(h *Header) { h.Geometry.Rope.InvFreq = []float32{1} },
		"rope none":       func(h *Header) { h.Geometry.Rope.Layout = quant.RopeNone },
		"types":           func(h *Header) { h.KType = 0 },
		"energy":          func(h *Header) { h.QueryEnergy = []float32{1} },
		"energy negative": func(h *Header) { h.QueryEnergy[0] = -1 },
		"tensors":         func(h *Header) { h.Origin = "npy" },
		"utf-8":           func(h *Header) { h.Config = "\xff" },
		"metadata":        func(h *Header) { h.Metadata = map[string]string{"\xff": ""} },
	} {
		h := goldenCache().h
		change(h)
		_, err := NewWriter(io.Discard, h)
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
	h := goldenCache().h
	h.Kind = KindProfile
	_, err := HeaderSize(h)
	require.ErrorIs(t, err, quant.ErrShape, "a profile has no layers")
	for name, change := range map[string]func(h *Header){
		"rows":     func(h *Header) { h.Tokens++ },
		"geometry": func(h *Header) { h.Geometry.Heads = 1 },
		"origin":   func(h *Header) { h.Origin = "" },
		"twice":    func(h *Header) { h.Tensors[1].Name = "emb" },
		"dims":     func(h *Header) { h.Tensors[1].Shape = nil },
		"dim 0":    func(h *Header) { h.Tensors[1].Shape = []int64{0} },
		"overflow": func(h *Header) { h.Tensors[1].Shape = []int64{1 << 62, 1 << 62, 8} },
	} {
		h := goldenRows().h
		change(h)
		_, err := HeaderSize(h)
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
}
