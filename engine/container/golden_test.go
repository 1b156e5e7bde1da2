// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

const (
	goldenDir  = "../../testdata/golden/v1"
	corruptDir = "../../testdata/corrupt"
)

// golden is a file that every later version must open. exact means that today's writer makes the
// same bytes. The other files hold deflated data, which other versions of compress/flate write
// differently.
type golden struct {
	name  string
	exact bool
	f     *file
}

func goldens() []golden {
	return []golden{
		{"pass-cache", true, goldenCache()},
		{"pass-rows", true, goldenRows()},
		{"pass-empty", true, goldenEmpty()},
		{"pass-planes", false, goldenPlanes()},
		{"pass-layers", true, goldenLayers()},
		{"pass-mean", true, goldenMean()},
	}
}

func goldenCache() *file {
	in := seeded(1)
	h := &Header{
		Kind: KindCache, Layers: []int{0, 3}, Tokens: 75, First: 4, SegmentTokens: 40, Sinks: 4,
		Geometry: quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8,
			Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4,
				InvFreq: []float32{1, 0.5, 0.25, 0.125}}},
		KType: quant.Float16, VType: quant.BFloat16, Seed: 0x6b76697374,
		Config: "bits=3 sinks=4", Model: "golden", Profile: [32]byte{1, 2, 3},
		Metadata:    map[string]string{"format": "kv-capture/1", "model": "golden"},
		QueryEnergy: []float32{1, 2, 3, 4.5},
	}
	kinds := []Block{
		{K: quant.Coding{Format: quant.F16}, V: quant.Coding{Format: quant.U8}},
		{K: quant.Coding{Format: quant.LM3, Rule: quant.InnerProduct},
			V: quant.Coding{Format: quant.LM2, Scale: quant.ScaleLog8}},
		{Level: quant.Chunks, K: quant.Coding{Format: quant.LM4, Rule: quant.LengthKeeping},
			V: quant.Coding{Format: quant.LM4}},
		{Level: quant.Summary, K: quant.Coding{Format: quant.LM1}, V: quant.Coding{Format: quant.BF16}},
		{Level: quant.Dropped},
	}
	f := &file{h: h}
	for seg := range 2 {
		for l := range 2 {
			tokens := h.SegmentLen(l, seg)
			rec := &Record{Layer: l, Segment: seg, Heads: make([]Head, 2)}
			for hi := range rec.Heads {
				n := 1 + (2*l+2*seg+2*hi)%6 // 1, 3 or 5 blocks
				blocks := make([]Block, n)
				for t := range tokens {
					b := in(n)
					if t < n {
						b = t
					}
					blocks[b].Tokens = append(blocks[b].Tokens, uint16(t))
				}
				for bi := range blocks {
					b := &blocks[bi]
					b.Level, b.K, b.V = kinds[bi].Level, kinds[bi].K, kinds[bi].V
					for left := len(b.Tokens); startsRows(b.Level) && left > 0; left -= 4 {
						b.Counts = append(b.Counts, uint16(min(left, 4)))
					}
					if b.Level != quant.Dropped {
						b.KData = payload(in, b.K, b.Rows(), 16)
						b.VData = payload(in, b.V, b.Rows(), 8)
					}
				}
				rec.Heads[hi].Blocks = blocks
			}
			f.recs = append(f.recs, rec)
		}
	}
	positions := &Aux{Name: "positions", DType: "I32", Shape: []int64{75}}
	for i := range 75 {
		positions.Data = append(positions.Data, byte(4+i), 0, 0, 0)
	}
	f.aux = []*Aux{positions, {Name: "kept", DType: "U8", Shape: []int64{5},
		Data: []byte{1, 0, 1, 1, 0}}}
	return f
}

func startsRows(l quant.Level) bool { return l == quant.Chunks || l == quant.Summary }

func goldenRows() *file {
	in := seeded(2)
	h := &Header{Kind: KindRows, Origin: "safetensors", SegmentTokens: 16, Seed: 9, Tokens: 29,
		Tensors: []Tensor{
			{Name: "hidden", DType: "F32", Shape: []int64{2, 10, 8}},
			{Name: "none", DType: "F16", Shape: []int64{0, 8}},
			{Name: "emb", DType: "BF16", Shape: []int64{9, 32}},
		}}
	f := &file{h: h}
	for l := range h.Stored() {
		for s := range int(h.Segments(l)) {
			dim, _ := h.Dims(l)
			n := h.SegmentLen(l, s)
			a := Block{K: quant.Coding{Format: quant.LM2}}
			b := Block{K: quant.Coding{Format: quant.U8}}
			for t := range n {
				if t%3 == 0 {
					b.Tokens = append(b.Tokens, uint16(t))
				} else {
					a.Tokens = append(a.Tokens, uint16(t))
				}
			}
			a.KData, b.KData = payload(in, a.K, len(a.Tokens), dim), payload(in, b.K, len(b.Tokens), dim)
			f.recs = append(f.recs, &Record{Layer: l, Segment: s, Heads: []Head{{Blocks: []Block{a, b}}}})
		}
	}
	return f
}

func goldenEmpty() *file {
	return &file{h: &Header{Kind: KindCache, Layers: []int{0}, SegmentTokens: 512,
		Geometry: quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8},
		KType:    quant.Float32, VType: quant.Float32}}
}

func goldenPlanes() *file {
	f := goldenEmpty()
	a := &Aux{Name: "tokens", DType: "I32", Shape: []int64{8, 16}}
	for i := range 128 {
		a.Data = append(a.Data, byte(i*i), byte(i%3), 0, 0)
	}
	f.aux = []*Aux{a}
	return f
}

// goldenMean is a cache in which one head of each record has a mean: a block of K coded without it,
// two merged rows likewise, in a metric, and a block of K coded as it is.
func goldenMean() *file {
	in := seeded(5)
	h := &Header{Kind: KindCache, Layers: []int{0}, Tokens: 22, SegmentTokens: 12,
		Geometry: quant.Geometry{Layers: 1, Heads: 4, KVHeads: 2, HeadDim: 24, HeadDimV: 8,
			Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 16, Theta: 1e4}},
		KType: quant.Float16, VType: quant.Float16, Seed: 5, Model: "mean"}
	diag := make([]float32, 24)
	for d := range diag {
		diag[d] = float32(1+h.Geometry.Rope.Pair(d)) / 4
	}
	m, err := frame.NewDiagonal(diag)
	if err != nil {
		panic(err)
	}
	h.Metrics = []*frame.Metric{nil, m}
	f := &file{h: h}
	lm := func(bits int) quant.Coding {
		return quant.Coding{Format: quant.LM1 + quant.Format(bits-1), Scale: quant.ScaleLog8}
	}
	for seg := range 2 {
		rec := &Record{Segment: seg, Heads: make([]Head, 2)}
		for hi := range rec.Heads {
			blocks := []Block{
				{K: lm(4), V: lm(2), Tokens: []uint16{0, 3}},
				{K: lm(2), V: lm(2), Tokens: []uint16{1, 2, 4, 9}, Centered: hi == 1},
				{Level: quant.Chunks, K: lm(2), V: lm(1), Tokens: []uint16{5, 6, 7, 8},
					Counts: []uint16{2, 2}, Centered: hi == 1}}
			for t := 10; t < h.SegmentLen(0, seg); t++ {
				blocks[0].Tokens = append(blocks[0].Tokens, uint16(t))
			}
			for bi := range blocks {
				b := &blocks[bi]
				b.KData, b.VData = payload(in, b.K, b.Rows(), 24), payload(in, b.V, b.Rows(), 8)
			}
			rec.Heads[hi].Blocks = blocks
			if hi == 1 {
				rec.Heads[hi].MeanK = randomMean(in, 24)
			}
		}
		f.recs = append(f.recs, rec)
	}
	return f
}

// goldenLayers is a cache of layers that differ: two that see 6 tokens, one without a position
// embedding and one with frequencies, a scale and a soft cap of its own. Of 20 tokens the first 15
// lie outside the windows.
func goldenLayers() *file {
	in := seeded(4)
	local := quant.LayerAttention{Window: 6,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 16, Theta: 1e4}}
	g := quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8, Rope: local.Rope,
		PerLayer: []quant.LayerAttention{local, {}, local, {Scale: 0.0625, Softcap: 50,
			Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 4, Theta: 1e6, InvFreq: []float32{1, 0.125}}}}}
	h := &Header{Kind: KindCache, Geometry: g, Layers: []int{0, 1, 3}, Tokens: 20, SegmentTokens: 16,
		KType: quant.Float16, VType: quant.Float16, Seed: 4, Model: "layers"}
	f := &file{h: h}
	full := Block{K: quant.Coding{Format: quant.LM3}, V: quant.Coding{Format: quant.LM2}}
	for l, number := range h.Layers {
		for seg := range 2 {
			rec := &Record{Layer: l, Segment: seg, Heads: make([]Head, 2)}
			unseen := int(g.Outside(number, h.Tokens))
			for hi := range rec.Heads {
				seen, gone := full, Block{Level: quant.Dropped}
				for t := range h.SegmentLen(l, seg) {
					if seg*16+t < unseen {
						gone.Tokens = append(gone.Tokens, uint16(t))
					} else {
						seen.Tokens = append(seen.Tokens, uint16(t))
					}
				}
				if len(gone.Tokens) > 0 {
					rec.Heads[hi].Blocks = append(rec.Heads[hi].Blocks, gone)
				}
				if len(seen.Tokens) > 0 {
					seen.KData = payload(in, seen.K, len(seen.Tokens), 16)
					seen.VData = payload(in, seen.V, len(seen.Tokens), 8)
					rec.Heads[hi].Blocks = append(rec.Heads[hi].Blocks, seen)
				}
			}
			f.recs = append(f.recs, rec)
		}
	}
	return f
}

func readGolden(t testing.TB, name string) []byte {
	b, err := os.ReadFile(filepath.Join(goldenDir, name+".kvist"))
	require.NoError(t, err)
	return b
}

func TestGolden_ReadWriteDump(t *testing.T) {
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			path := filepath.Join(goldenDir, g.name+".kvist")
			if *update {
				require.NoError(t, os.MkdirAll(goldenDir, 0o755))
				// Never rewrite a golden file: files of old versions must stay readable.
				if _, err := os.Stat(path); os.IsNotExist(err) {
					require.NoError(t, os.WriteFile(path, g.f.write(t), 0o644))
				}
			}
			b := readGolden(t, g.name)
			got, err := readAll(b, Limits{})
			require.NoError(t, err)
			requireSame(t, g.f, got)
			if g.exact {
				require.True(t, bytes.Equal(b, g.f.write(t)), "the writer's bytes changed")
			}
			r, err := openBytes(b, Limits{})
			require.NoError(t, err)
			var s strings.Builder
			require.NoError(t, Dump(&s, r, DumpOptions{Tokens: true}))
			text := filepath.Join(goldenDir, g.name+".txt")
			if *update {
				require.NoError(t, os.WriteFile(text, []byte(s.String()), 0o644))
			}
			want, err := os.ReadFile(text)
			require.NoError(t, err)
			require.Equal(t, string(want), s.String())
		})
	}
}

// TestDump_ShowsEveryByte reads the bytes back from a dump of everything.
func TestDump_ShowsEveryByte(t *testing.T) {
	for _, g := range goldens() {
		b := readGolden(t, g.name)
		r, err := openBytes(b, Limits{})
		require.NoError(t, err)
		var s strings.Builder
		require.NoError(t, Dump(&s, r, DumpOptions{MaxBytes: 1 << 20}))
		var got []byte
		for _, line := range strings.Split(s.String(), "\n") {
			if len(line) < 10 || line[8] != ':' {
				continue
			}
			off, text, _ := strings.Cut(line, ": ")
			text, _, _ = strings.Cut(text, "#")
			if text = strings.ReplaceAll(text, " ", ""); text == "" {
				continue // an empty stretch
			}
			require.Equal(t, len(got), unhex(t, off), "%s: %s", g.name, line)
			for i := 0; i+1 < len(text); i += 2 {
				got = append(got, byte(unhex(t, text[i:i+2])))
			}
		}
		require.True(t, bytes.Equal(b, got), g.name)
	}
}

func unhex(t *testing.T, s string) int {
	n := 0
	for _, c := range s {
		i := strings.IndexRune("0123456789abcdef", c)
		require.GreaterOrEqual(t, i, 0, "%q", s)
		n = n<<4 | i
	}
	return n
}
