// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// memory is an io.WriterAt that grows.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// shape describes a synthetic capture of one layer.
type shape struct {
	heads, kvHeads, tokens, dim, dimV int
	dtype                             quant.DType
	withQ                             bool
}

// synthetic makes a capture whose rows of K come from a family.
func synthetic(t testing.TB, s shape, fam quanttest.Family,
	edit func(k quant.Rows)) *capture.Source {
	t.Helper()
	g := quant.Geometry{
		Layers:   4,
		Heads:    s.heads,
		KVHeads:  s.kvHeads,
		HeadDim:  s.dim,
		HeadDimV: s.dimV,
		Rope:     quant.Rope{Layout: quant.RopeHalf, RotaryDim: s.dim / 2 * 2, Theta: 10000},
	}
	name := s.dtype.String()
	decls := []capture.Decl{
		{
			Name:      "layers.2.k",
			DTypeName: name,
			Shape:     []int64{int64(s.kvHeads), int64(s.tokens), int64(s.dim)},
		},
		{
			Name:      "layers.2.v",
			DTypeName: name,
			Shape:     []int64{int64(s.kvHeads), int64(s.tokens), int64(s.dimV)},
		},
		{Name: "tokens", DTypeName: "I32", Shape: []int64{int64(s.tokens)}},
	}
	if s.withQ {
		decls = append(decls, capture.Decl{Name: "layers.2.q", DTypeName: name,
			Shape: []int64{int64(s.heads), int64(s.tokens), int64(s.dim)}})
	}
	var m memory
	w, err := capture.NewWriter(&m, decls, capture.KVMetadata(g, "synthetic", 0))
	require.NoError(t, err)
	put := func(tensor string, x quant.Rows) {
		c := quant.Coding{Format: s.dtype.Format()}
		b := make([]byte, c.PackedBytes(x.Len(), x.Dim))
		require.NoError(t, quant.Encode(b, c, x, 0))
		require.NoError(t, w.WriteAt(tensor, 0, b))
	}
	k := quanttest.Rows(fam, s.kvHeads*s.tokens, s.dim, 1)
	if edit != nil {
		edit(k)
	}
	put("layers.2.k", k)
	put("layers.2.v", quanttest.Rows(quanttest.Gaussian, s.kvHeads*s.tokens, s.dimV, 2))
	require.NoError(t, w.WriteAt("tokens", 0, make([]byte, 4*s.tokens)))
	if s.withQ {
		put("layers.2.q", quanttest.Rows(quanttest.Gaussian, s.heads*s.tokens, s.dim, 3))
	}
	require.NoError(t, w.Close())
	src, err := capture.New("synthetic", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return src
}

func decompress(t testing.TB, b []byte) *capture.Source {
	t.Helper()
	var m memory
	_, err := kvfile.Decompress(context.Background(), reader(t, b), &m, kvfile.Options{})
	require.NoError(t, err)
	back, err := capture.New("back", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return back
}

// Shapes that are not those of the test model: K and V of different dims, GQA, every element type,
// fewer tokens than sinks, dims that are no power of two, no queries.
func TestCompress_Shapes(t *testing.T) {
	be := openCPU(t)
	for _, s := range []shape{
		{8, 1, 700, 128, 64, quant.BFloat16, true},
		{4, 4, 33, 80, 96, quant.Float32, true},
		{2, 2, 513, 96, 96, quant.Float16, false},
		{6, 2, 3, 64, 64, quant.Float16, true},
		{2, 1, 1, 64, 64, quant.Float32, true},
		{2, 1, 0, 64, 64, quant.Float16, false},
		{2, 1, 100, 20, 12, quant.Float16, true}, // exact codings only
	} {
		t.Run(
			fmt.Sprintf("heads=%d/kv_heads=%d/tokens=%d/head_dim=%d/head_dim_v=%d/dtype=%s",
				s.heads, s.kvHeads, s.tokens, s.dim, s.dimV, s.dtype),
			func(t *testing.T) {
				src := synthetic(t, s, quanttest.Gaussian, nil)
				cfg := kvfile.DefaultConfig()
				cfg.Share = 2
				if s.dim%8 == 0 && s.tokens > 100 {
					cfg.Share, cfg.Bits = 0, 3.5
				}
				if s.tokens < 100 {
					cfg.Share, cfg.Bytes = 0, 1<<30
				}
				b, _ := compress(t, src, be, cfg)
				cmp := measure(t, src, be, b)
				require.Less(t, cmp.KError, 0.1)
				require.Less(t, cmp.VError, 0.1)
				back := decompress(t, b)
				require.Equal(t, src.Info().Geometry, back.Info().Geometry)
				require.Equal(t, dtypeOfK(src), dtypeOfK(back))
			},
		)
	}
}

// Every family of rows goes through and comes back finite, also in element types whose values pass
// the range of binary16.
func TestCompress_Families(t *testing.T) {
	be := openCPU(t)
	families := append(quanttest.Finite(), quanttest.Huge)
	if testing.Short() {
		families = []quanttest.Family{quanttest.Massive, quanttest.Subnormals, quanttest.Huge}
	}
	for _, fam := range families {
		for _, dt := range []quant.DType{quant.Float32, quant.BFloat16} {
			src := synthetic(t, shape{4, 2, 130, 64, 64, dt, true}, fam, nil)
			cfg := kvfile.DefaultConfig()
			cfg.Bits = 5
			b, _ := compress(t, src, be, cfg)
			back := decompress(t, b)
			tensor, _ := back.KV(2, capture.K)
			x := make([]float32, 130*64)
			require.NoError(t, tensor.ReadF32(1, 0, 130, x))
			for i, v := range x {
				require.False(t, math.IsNaN(float64(v)) || math.IsInf(float64(v), 0),
					"%s %s value %d is %g", fam, dt, i, v)
			}
		}
	}
}

func TestCompress_Nonfinite(t *testing.T) {
	be := openCPU(t)
	nan := math.Float32frombits(0x7fc12345)
	src := synthetic(
		t,
		shape{4, 2, 600, 64, 64, quant.Float32, true},
		quanttest.Gaussian,
		func(k quant.Rows) {
			k.Row(600 + 7)[3] = nan
			k.Row(40)[0] = float32(math.Inf(-1))
		},
	)
	cfg := kvfile.DefaultConfig()
	cfg.Bits = 4
	var buf bytes.Buffer
	_, err := kvfile.Compress(context.Background(), src, &buf, kvfile.Options{Config: &cfg, Backend: be})
	require.ErrorIs(t, err, quant.ErrRange)
	require.ErrorContains(t, err, "layers.2.k head 0 token 40")
	require.Zero(t, buf.Len())

	cfg.AllowNonfinite = true
	b, _ := compress(t, src, be, cfg)
	back := decompress(t, b)
	tensor, _ := back.KV(2, capture.K)
	row := make([]byte, 64*4)
	require.NoError(t, tensor.Read(1, 7, 1, row))
	require.Equal(t, uint32(0x7fc12345), binary.LittleEndian.Uint32(row[12:]),
		"the NaN's payload is kept")
	cmp := measure(t, src, be, b)
	require.Less(t, cmp.KError, 0.05)
}

// withNaN returns the capture with NaN in one value of a tensor, in the row of the given head and token.
func withNaN(t *testing.T, tensor string, head, token int) *capture.Source {
	t.Helper()
	data, err := os.ReadFile(kvFile)
	require.NoError(t, err)
	size := int(binary.LittleEndian.Uint64(data))
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(data[8:8+size], &fields))
	var x struct {
		Offsets []int `json:"data_offsets"`
		Shape   []int `json:"shape"`
	}
	require.NoError(t, json.Unmarshal(fields[tensor], &x))
	require.Len(t, x.Shape, 3)
	at := 8 + size + x.Offsets[0] + 2*x.Shape[2]*(x.Shape[1]*head+token)
	binary.LittleEndian.PutUint16(data[at:], 0x7e00)
	src, err := capture.New("in", bytes.NewReader(data), int64(len(data)), capture.Limits{})
	require.NoError(t, err)
	return src
}

// One query that is not finite costs its head the queries beside it, no more, and that is said.
func TestCompress_NonfiniteQuery(t *testing.T) {
	src, be := withNaN(t, "layers.9.q", 4, 1000), openCPU(t)
	for _, target := range []string{"bits=2.5", "bits=2 form=archive", "bits=3 importance=default,expected=0.5 levels=full"} {
		res, err := kvfile.Compress(context.Background(), src, &bytes.Buffer{}, kvfile.Options{Config: settings(t, target), Backend: be})
		require.NoError(t, err)
		require.Equal(t, 1, res.Importance.Skipped, target)
		require.Equal(t, 12, res.Importance.Heads, target)
		if !strings.Contains(target, "archive") {
			require.Less(t, res.Predicted, 0.02, target)
		}
	}
	_, res := compress(t, open(t, kvFile), be, config(t, "bits=2.5"))
	require.Zero(t, res.Importance.Skipped)
}

// Where what comes after the context is no number, a bound on its error cannot be held, and is not.
func TestCompress_NonfiniteNext(t *testing.T) {
	be := openCPU(t)
	for _, tensor := range []string{"layers.9.q_next", "layers.9.k_next", "layers.9.v_next"} {
		var file bytes.Buffer
		src := withNaN(t, tensor, 1, 3)
		_, err := kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: settings(t, "max-error=0.002"), Backend: be})
		require.ErrorIs(t, err, quant.ErrRange, tensor)
		require.ErrorContains(t, err, tensor+" head 1")
		require.Zero(t, file.Len())
		b, _ := compress(t, src, be, config(t, "bits=3"))
		_, err = report.Compare(context.Background(), reader(t, b), src, report.Options{Backend: be})
		require.ErrorContains(t, err, tensor+" head 1")
	}
}

// A damaged record is named, refused, and the rest still comes back with salvage.
func TestDecompress_Salvage(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	good, _ := compress(t, src, be, config(t, "bits=3 levels=full"))
	r := reader(t, good)
	info := r.Records()[3]
	bad := bytes.Clone(good)
	bad[info.Offset+info.Length/2] ^= 0x10

	err := kvfile.Verify(context.Background(), reader(t, bad), kvfile.Options{})
	var ce *container.CorruptError
	require.ErrorAs(t, err, &ce)
	require.Equal(t, info.Layer, ce.Layer)
	require.Equal(t, info.Segment, ce.Segment)
	_, err = kvfile.Decompress(context.Background(), reader(t, bad), &memory{}, kvfile.Options{})
	require.ErrorIs(t, err, quant.ErrCorrupt)

	var m memory
	res, err := kvfile.Decompress(context.Background(), reader(t, bad), &m, kvfile.Options{Salvage: true})
	require.NoError(t, err)
	require.Len(t, res.Lost, 1)
	require.Contains(t, res.Lost[0],
		fmt.Sprintf("layer %d segment %d", src.Info().Layers[info.Layer], info.Segment))
	back, err := capture.New("back", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	whole := decompress(t, good)
	layer := src.Info().Layers[info.Layer]
	require.True(t, holds(back, layer, "kept"))
	kept := make([]uint8, src.Info().Tokens)
	require.NoError(t, back.ReadKept(layer, 0, 0, kept))
	first := info.Segment * 512
	for tok, v := range kept {
		require.Equal(t, tok < first || tok >= first+512, v == 1, "token %d", tok)
	}
	for _, n := range src.Info().Layers {
		if n == layer {
			continue
		}
		name := fmt.Sprintf("layers.%d.k", n)
		require.True(t, bytes.Equal(raw(t, whole, name), raw(t, back, name)), name)
	}
}

// Whatever byte of a file is flipped, reading it gives a typed error or the same tensors; nothing
// panics. (Every byte of the small goldens is flipped in package container.)
func TestDecompress_Flips(t *testing.T) {
	be := openCPU(t)
	src := synthetic(t, shape{2, 1, 70, 64, 64, quant.Float16, true}, quanttest.Gaussian, nil)
	good, _ := compress(t, src, be, config(t, "bits=4.5"))
	step := 1
	if testing.Short() {
		step = 199
	}
	for at := 0; at < len(good); at += step {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 8)
		r, err := container.Open("flip", bytes.NewReader(bad), int64(len(bad)), container.Limits{})
		if err == nil {
			_, err = kvfile.Decompress(context.Background(), r, &memory{}, kvfile.Options{})
			if err == nil {
				err = kvfile.Verify(context.Background(), r, kvfile.Options{})
			}
		}
		require.Error(t, err, "byte %d", at)
		require.True(t, errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrVersion) ||
			errors.Is(err,
				quant.ErrUnsupported) || errors.Is(err, quant.ErrTooLarge), "byte %d: %v", at, err)
	}
}

func TestCompress_Activations(t *testing.T) {
	be := openCPU(t)
	src := open(t, "../../testdata/minilm-base-4096x384.npy")
	budgets := []float64{2, 4.1, 8.3}
	if testing.Short() {
		budgets = budgets[:1]
	}
	for _, bits := range budgets {
		b, res := compress(t, src, be, config(t, fmt.Sprintf("bits=%g", bits)))
		require.LessOrEqual(t, res.BitsPerValue, bits)
		require.Greater(t, res.BitsPerValue, 0.99*bits)
		cmp := measure(t, src, be, b)
		t.Logf("%.3f bits/value: error %.5f cosine %.5f", res.BitsPerValue, cmp.KError,
			cmp.Layers[0].KCosine)
		// Rows of unit length: the prediction is off only by the fit of finite rows, and for u8 by the
		// peak of a row, which grows with the dim.
		slack := 0.15
		if bits > 8 {
			slack = 0.6
		}
		require.InEpsilon(t, cmp.KError, res.Predicted, slack)
		back := decompress(t, b)
		require.Equal(t, "npy", back.Info().Format)
		require.Equal(t, src.ActTensors()[0].Shape, back.ActTensors()[0].Shape)
	}
	b, _ := compress(t, src, be, config(t, "bits=32.2"))
	require.Equal(t, raw(t, src, ""), raw(t, decompress(t, b), ""), "exact when bytes allow")
}

// Weights sort rows into blocks and pull bits to where they point.
func TestCompress_Weights(t *testing.T) {
	long(t)
	src, be := open(t, kvFile), openCPU(t)
	weights := func(layer, head int) ([]float32, error) {
		w := make([]float32, src.Info().Tokens)
		for i := range w {
			w[i] = 1
			if i%7 == 3 {
				w[i] = 30
			}
		}
		return w, nil
	}
	var buf bytes.Buffer
	_, err := kvfile.Compress(context.Background(), src, &buf, kvfile.Options{Config: settings(t, "bits=3"), Backend: be, Weights: weights})
	require.NoError(t, err)
	back := decompress(t, buf.Bytes())
	var heavy, light, nh, nl float64
	for _, n := range src.Info().Layers {
		a, _ := src.KV(n, capture.V)
		b, _ := back.KV(n, capture.V)
		for tok := 8; tok < src.Info().Tokens; tok++ {
			x, y := make([]float32, 64), make([]float32, 64)
			require.NoError(t, a.ReadF32(0, tok, 1, x))
			require.NoError(t, b.ReadF32(0, tok, 1, y))
			if tok%7 == 3 {
				heavy, nh = heavy+quanttest.NMSE(x, y), nh+1
			} else {
				light, nl = light+quanttest.NMSE(x, y), nl+1
			}
		}
	}
	t.Logf("NMSE of V: heavy tokens %.5f, light %.5f", heavy/nh, light/nl)
	require.Less(t, heavy/nh, light/nl/4)

	bad := func(layer, head int) ([]float32, error) { return make([]float32, 3), nil }
	_, err = kvfile.Compress(context.Background(), src, io.Discard, kvfile.Options{Config: settings(t, "bits=3"), Backend: be, Weights: bad})
	require.ErrorIs(t, err, quant.ErrShape)
	nan := func(layer, head int) ([]float32, error) {
		w := make([]float32, src.Info().Tokens)
		w[5] = float32(math.NaN())
		return w, nil
	}
	_, err = kvfile.Compress(context.Background(), src, io.Discard, kvfile.Options{Config: settings(t, "bits=3"), Backend: be, Weights: nan})
	require.ErrorIs(t, err, quant.ErrRange)
	zero := func(layer, head int) ([]float32, error) { return make([]float32, src.Info().Tokens), nil }
	_, err = kvfile.Compress(context.Background(), src, io.Discard, kvfile.Options{Config: settings(t, "bits=3"), Backend: be, Weights: zero})
	require.NoError(t, err, "weights that are all zero: the cheapest file")
}

func TestConfig_StringParse(t *testing.T) {
	for _, s := range []string{"bits=3", "bytes=1000", "share=0.1", "max-error=0.01", "k=lm4 v=lm3",
		"bits=2.5 sinks=0 window=128 segment=256 seed=9 row-bias=false allow-nonfinite=true",
		"bits=1 levels=auto unseen=0", "bits=1 levels=full+dropped unseen=0.25", "bits=1 levels=full"} {
		c, err := kvfile.ParseConfig(s)
		require.NoError(t, err, s)
		again, err := kvfile.ParseConfig(c.String())
		require.NoError(t, err, c.String())
		require.Equal(t, c, again)
	}
	for _, s := range []string{"", "bits=3 bytes=4", "bits=-1", "bits=NaN", "bits=Inf", "bits=65", "share=3", "bits=x",
		"bits", "colour=red", "bits=3 k=lm9", "bits=3 sinks=-1", "bits=3 segment=1", "bits=3 segment=99999",
		"bits=3 levels=", "bits=3 levels=most", "bits=3 levels=full+full", "bits=3 unseen=2", "bits=3 unseen=NaN"} {
		_, err := kvfile.ParseConfig(s)
		require.Error(t, err, s)
		require.True(t, errors.Is(err, quant.ErrShape) || errors.Is(err, quant.ErrUnsupported),
			"%s: %v", s, err)
	}
}

// failing accepts n bytes and then reports a full disk.
type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

var errFull = errors.New("no space left on device")

func TestCompress_WriterFails(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	for _, n := range []int{0, 100, 5000, 100000} {
		_, err := kvfile.Compress(context.Background(), src, &failing{n}, kvfile.Options{Config: settings(t, "k=lm2 v=lm2"), Backend: be})
		require.ErrorIs(t, err, errFull)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := kvfile.Compress(ctx, src, io.Discard, kvfile.Options{Config: settings(t, "bits=3"), Backend: be})
	require.ErrorIs(t, err, context.Canceled)
}

func FuzzParseConfig(f *testing.F) {
	f.Add("bits=3 k=lm4,lm3 v=lm2 sinks=4")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := kvfile.ParseConfig(s)
		if err != nil {
			return
		}
		if again, err := kvfile.ParseConfig(c.String()); err != nil ||
			again.String() != c.String() {
			t.Fatalf("%q -> %q does not parse back: %v", s, c.String(), err)
		}
	})
}

// Goldens of the format decompress whatever their config says: a file outlives the version that
// wrote it, and its other fields.
func TestDecompress_Goldens(t *testing.T) {
	files, err := filepath.Glob("../../testdata/golden/v*/pass-*.kvist")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, path := range files {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		r := reader(t, b)
		require.NoError(t, kvfile.Verify(context.Background(), r, kvfile.Options{}), path)
		var m memory
		_, err = kvfile.Decompress(context.Background(), r, &m, kvfile.Options{})
		require.NoError(t, err, path)
	}
}

// A small file cannot promise a large capture.
func TestDecompress_Expansion(t *testing.T) {
	h := &container.Header{Kind: container.KindCache, Tokens: 60000 * 64, SegmentTokens: 60000,
		KType: quant.Float16, VType: quant.Float16, Layers: []int{0},
		Geometry: quant.Geometry{Layers: 1, Heads: 4, KVHeads: 4, HeadDim: 64, HeadDimV: 64}}
	var buf bytes.Buffer
	w, err := container.NewWriter(&buf, h)
	require.NoError(t, err)
	all := make([]uint16, h.SegmentTokens)
	for i := range all {
		all[i] = uint16(i)
	}
	for s := range 64 {
		rec := &container.Record{Segment: s}
		for range 4 {
			rec.Heads = append(rec.Heads,
				container.Head{Blocks: []container.Block{{Level: quant.Dropped, Tokens: all}}})
		}
		require.NoError(t, w.WriteRecord(rec))
	}
	require.NoError(t, w.Close())
	var m memory
	_, err = kvfile.Decompress(context.Background(), reader(t, buf.Bytes()), &m, kvfile.Options{})
	require.ErrorIs(t, err, quant.ErrTooLarge)
	require.Empty(t, m.b, "nothing was written")
}
