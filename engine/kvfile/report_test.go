// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

// checkReport checks what holds for every report: each byte is counted once, codings and layers
// agree with the sections, the map covers every token, and JSON can hold it.
func checkReport(t *testing.T, r *container.Reader, rep *report.Report) {
	t.Helper()
	sections := map[string]int64{}
	var sum, coded, layers int64
	for _, s := range rep.Sections {
		sections[s.Name] = s.Bytes
		sum += s.Bytes
		require.Positive(t, s.Bytes, s.Name)
	}
	require.Equal(t, r.Size(), sum, "sections")
	require.Equal(t, r.Size(), rep.Bytes)
	var values int64
	for _, c := range rep.Codings {
		coded += c.Bytes
		values += c.Values
	}
	require.Equal(t, rep.Values, values)
	codes := sections["K codes"] + sections["V codes"] + sections["codes"] + sections["scales"]
	require.GreaterOrEqual(t, coded, codes)
	require.LessOrEqual(t, coded, codes+sections["padding"])
	for _, l := range rep.Layers {
		layers += l.Bytes
	}
	require.Equal(t, layers, codes+sections["tables"]+sections["padding"])

	per := rep.Map.TokensPerColumn
	for _, row := range rep.Map.Rows {
		l := rep.Layers[row.Layer]
		columns := int((l.Tokens + per - 1) / per)
		require.LessOrEqual(t, columns, 2000)
		require.Len(t, row.Kind, columns)
		require.Len(t, row.KBits, columns)
		for c, k := range row.Kind {
			require.Less(t, k, len(rep.Map.Kinds))
			require.False(t, math.IsNaN(float64(row.KBits[c])))
		}
	}
	b, err := json.Marshal(rep)
	require.NoError(t, err)
	var back report.Report
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, *rep, back)
}

func TestBuildReport_Cache(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	b, res := compress(t, src, be, config(t, "bits=3"))
	r := reader(t, b)
	cmp, err := report.Compare(context.Background(), r, src, report.Options{Backend: be})
	require.NoError(t, err)
	rep, err := report.Build(context.Background(), r, cmp)
	require.NoError(t, err)
	checkReport(t, r, rep)
	require.Equal(t, res.BitsPerValue, rep.BitsPerValue)
	require.Equal(t, res.Ratio, rep.Ratio)
	require.Equal(t, res.Sections.Header, rep.Sections[5].Bytes, rep.Sections[5].Name)
	require.Len(t, rep.Map.Rows, 12)
	require.Equal(t, int64(1), rep.Map.TokensPerColumn)
	require.Equal(t, *rep.Errors.FutureError, cmp.FutureError)
	require.Len(t, rep.Errors.Layers, 4)
	// The sinks are sharper than what follows.
	for _, row := range rep.Map.Rows {
		require.Greater(t, row.KBits[0], float32(7.9))
	}
	// Codings agree with what Compress counted.
	got := map[string]int64{}
	for _, c := range rep.Codings {
		if c.Level == quant.Dropped.String() {
			c.Coding = "dropped"
		}
		got[c.Coding] += c.Values
	}
	require.Equal(t, res.Codings, got)

	_, err = report.Build(context.Background(), r, &report.Comparison{})
	require.ErrorIs(t, err, quant.ErrShape)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = report.Build(ctx, r, nil)
	require.ErrorIs(t, err, context.Canceled)
}

func TestBuildReport_NaNBecomesNil(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	b, _ := compress(t, src, be, config(t, "bits=3"))
	cmp := &report.Comparison{FutureError: math.NaN(), KError: math.Inf(1), VError: 0.5,
		Layers: make([]report.LayerError, 4)}
	cmp.Layers[2].FutureError = math.NaN()
	rep, err := report.Build(context.Background(), reader(t, b), cmp)
	require.NoError(t, err)
	require.Nil(t, rep.Errors.FutureError)
	require.Nil(t, rep.Errors.KError)
	require.Equal(t, 0.5, *rep.Errors.VError)
	require.Nil(t, rep.Errors.Layers[2].FutureError)
}

func TestBuildReport_Rows(t *testing.T) {
	src, be := open(t, "../../testdata/minilm-base-4096x384.npy"), openCPU(t)
	b, _ := compress(t, src, be, config(t, "bits=3"))
	rep, err := report.Build(context.Background(), reader(t, b), nil)
	require.NoError(t, err)
	checkReport(t, reader(t, b), rep)
	require.Equal(t, "rows", rep.Kind)
	require.Equal(t, int64(3), rep.Map.TokensPerColumn, "4096 rows in at most 2000 columns")
	require.Len(t, rep.Map.Rows, 1)
	require.Empty(t, rep.Map.Rows[0].VBits)
	require.Nil(t, rep.Errors)
}

// levels writes a cache of layers x 2 heads whose tokens 0-9 of every segment are dropped, 10-19
// merged by fives, and the rest full.
func levels(t *testing.T, layers, tokens, heads int) *container.Reader {
	t.Helper()
	cfg := kvfile.DefaultConfig()
	cfg.Bits = 2
	h := &container.Header{Kind: container.KindCache, Tokens: int64(tokens), SegmentTokens: 64,
		KType: quant.Float16,
		VType: quant.Float16, Config: cfg.String(), Geometry: quant.Geometry{Layers: layers,
			Heads: heads, KVHeads: heads,
			HeadDim: 32, HeadDimV: 16}}
	for i := range layers {
		h.Layers = append(h.Layers, i)
	}
	var buf bytes.Buffer
	w, err := container.NewWriter(&buf, h)
	require.NoError(t, err)
	lm2, lm4 := quant.Coding{Format: quant.LM2}, quant.Coding{Format: quant.LM4}
	for l := range layers {
		for s := range int(h.Segments(l)) {
			rec := &container.Record{Layer: l, Segment: s}
			for range heads {
				blocks := []container.Block{{Level: quant.Dropped}, {Level: quant.Chunks, K: lm2,
					V: lm2, Counts: []uint16{5, 5}},
					{Level: quant.Full, K: lm4, V: lm2}}
				for tok := range h.SegmentLen(l, s) {
					b := &blocks[min(tok/10, 2)]
					b.Tokens = append(b.Tokens, uint16(tok))
				}
				for i := range blocks[1:] {
					b := &blocks[1+i]
					b.KData = make([]byte, b.K.PackedBytes(b.Rows(), 32))
					b.VData = make([]byte, b.V.PackedBytes(b.Rows(), 16))
				}
				rec.Heads = append(rec.Heads, container.Head{Blocks: blocks})
			}
			require.NoError(t, w.WriteRecord(rec))
		}
	}
	require.NoError(t, w.Close())
	return reader(t, buf.Bytes())
}

func TestBuildReport_Levels(t *testing.T) {
	r := levels(t, 1, 128, 2)
	rep, err := report.Build(context.Background(), r, nil)
	require.NoError(t, err)
	checkReport(t, r, rep)
	row := rep.Map.Rows[1]
	kind := func(token int) report.Kind { return rep.Map.Kinds[row.Kind[token]] }
	require.Equal(t, report.Kind{Level: "DROPPED"}, kind(64))
	require.Equal(t, report.Kind{Level: "CHUNKS", K: "lm2", V: "lm2"}, kind(75))
	require.Equal(t, report.Kind{Level: "FULL", K: "lm4", V: "lm2"}, kind(127))
	require.Zero(t, row.KBits[0])
	// Two rows of 32 values at 2 bits and an f16 scale, for ten tokens.
	require.InDelta(t, 8*float64(2*8+2*2)/(10*32), float64(row.KBits[12]), 1e-5)
	require.InDelta(t, 8*float64(44*16+44*2)/(44*32), float64(row.KBits[100]), 1e-5)
}

// Long files share columns among tokens, many heads share lines.
func TestBuildReport_Bounded(t *testing.T) {
	r := levels(t, 1, 64*80, 1)
	rep, err := report.Build(context.Background(), r, nil)
	require.NoError(t, err)
	checkReport(t, r, rep)
	require.Equal(t, int64(3), rep.Map.TokensPerColumn)
	require.Equal(t, "DROPPED", rep.Map.Kinds[rep.Map.Rows[0].Kind[0]].Level)

	r = levels(t, 5, 64, 256)
	rep, err = report.Build(context.Background(), r, nil)
	require.NoError(t, err)
	checkReport(t, r, rep)
	require.Len(t, rep.Map.Rows, 5)
	require.Equal(t, -1, rep.Map.Rows[4].Head)
	require.InDelta(t, 8*float64(44*16+44*2)/(44*32), float64(rep.Map.Rows[4].KBits[60]), 1e-4,
		"the mean over equal heads")
}
