// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

func TestRoundTrip_RandomFiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		f := randomFile(seeded(seed))
		b := f.write(t)
		got, err := readAll(b, Limits{})
		require.NoError(t, err)
		requireSame(t, f, got)
		require.True(t, bytes.Equal(b, got.write(t)), "rewriting is the identity")

		// Sizes are known before a byte is written.
		size, err := HeaderSize(f.h)
		require.NoError(t, err)
		for _, r := range f.recs {
			shape := stripped(r)
			n, err := RecordSize(f.h, shape)
			require.NoError(t, err)
			size += n
		}
		for _, a := range f.aux {
			n, err := AuxSize(a)
			require.NoError(t, err)
			size += n
		}
		size += indexSize(len(f.recs)+len(f.aux)) + trailerSize
		require.EqualValues(t, len(b), size)

		// A salvage of an intact file loses nothing.
		r, lost, err := Salvage("x", bytes.NewReader(b), int64(len(b)), Limits{})
		require.NoError(t, err)
		require.Empty(t, lost)
		require.Len(t, r.Records(), len(f.recs))
		require.NoError(t, r.Verify(nil))
	})
}

// stripped returns a record without payloads.
func stripped(r *Record) *Record {
	s := &Record{Layer: r.Layer, Segment: r.Segment}
	for _, h := range r.Heads {
		var blocks []Block
		for _, b := range h.Blocks {
			b.KData, b.VData = nil, nil
			blocks = append(blocks, b)
		}
		s.Heads = append(s.Heads, Head{Blocks: blocks})
	}
	return s
}

func TestReader_FindsEveryRecord(t *testing.T) {
	f := randomFile(seeded(3))
	require.NotEmpty(t, f.recs)
	r, err := openBytes(f.write(t), Limits{})
	require.NoError(t, err)
	infos := r.Records()
	for i, rec := range f.recs {
		j, ok := r.Find(rec.Layer, rec.Segment)
		require.True(t, ok)
		require.Equal(t, i, j)
		require.Equal(t, rec.Layer, infos[i].Layer)
		require.Equal(t, rec.Segment, infos[i].Segment)
	}
	_, ok := r.Find(0, 1<<20)
	require.False(t, ok)
	_, err = r.ReadRecord(len(infos))
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestVerify_ReportsProgressToTheLastByte(t *testing.T) {
	b := randomFile(seeded(3)).write(t)
	r, err := openBytes(b, Limits{})
	require.NoError(t, err)
	last := int64(0)
	require.NoError(t, r.Verify(func(done, total int64) {
		require.GreaterOrEqual(t, done, last)
		require.EqualValues(t, len(b), total)
		last = done
	}))
	require.EqualValues(t, len(b), last)
}

// members returns the owner list of the named case.
func members(name string, tokens, blocks int, rng *rand.Rand) []uint8 {
	owner := make([]uint8, tokens)
	for i := range owner {
		switch name {
		case "runs":
			owner[i] = uint8(i * blocks / tokens)
		case "skewed":
			owner[i] = uint8(min(int(rng.ExpFloat64()*1.2), blocks-1))
		default: // even, shuffled
			owner[i] = uint8(i % blocks)
		}
	}
	if name != "runs" {
		rng.Shuffle(tokens, func(i, j int) { owner[i], owner[j] = owner[j], owner[i] })
	}
	for b := 0; name == "skewed" && b < blocks; b++ { // no block is empty
		owner[b*tokens/blocks] = uint8(b)
	}
	return owner
}

// TestMembers_EveryModeRoundTrips uses all modes, including those that the writer would not choose.
func TestMembers_EveryModeRoundTrips(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, name := range []string{"even", "runs", "skewed"} {
		for _, tokens := range []int{2, 3, 31, 512, maxSegmentTokens} {
			for _, blocks := range []int{2, 3, 16, 255} {
				if blocks > tokens {
					continue
				}
				owner := members(name, tokens, blocks, rng)
				sizes := make([]int, blocks)
				for _, b := range owner {
					sizes[b]++
				}
				for _, n := range sizes {
					if n == 0 {
						t.Fatalf("test made an empty block: %s %d %d", name, tokens, blocks)
					}
				}
				for mode := range numMembers {
					if mode == memberEven && !isEven(sizes, tokens) {
						continue
					}
					e := newRangeEncoder()
					encodeMembers(&e, mode, owner, sizes)
					s := e.finish()
					got := make([]uint8, tokens)
					gotSizes := make([]int, blocks)
					d := newRangeDecoder(s)
					require.True(t, decodeMembers(&d, mode, got, gotSizes))
					require.Equal(t, owner, got, "%s mode %d", name, mode)
					require.Equal(t, sizes, gotSizes)
					require.True(t, d.canonical(), "%s mode %d tokens %d", name, mode, tokens)
				}
			}
		}
	}
}

// TestRangeCoder_RandomSymbols exercises carries and the short ending.
func TestRangeCoder_RandomSymbols(t *testing.T) {
	type symbol struct{ cum, freq, total uint32 }
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 7))
		e := newRangeEncoder()
		var syms []symbol
		for range rng.IntN(60) {
			total := 1 + uint32(rng.IntN(maxTotal))
			cum := uint32(rng.IntN(int(total)))
			if seed%3 == 0 {
				cum = total - 1 // stays at the top: long runs of 0xff
			}
			s := symbol{cum, 1 + uint32(rng.IntN(int(total-cum))), total}
			syms = append(syms, s)
			e.encode(s.cum, s.freq, s.total)
		}
		out := e.finish()
		d := newRangeDecoder(out)
		for i, s := range syms {
			v := d.target(s.total)
			require.True(t, v >= s.cum && v < s.cum+s.freq, "seed %d symbol %d", seed, i)
			d.take(s.cum, s.freq, s.total)
		}
		require.True(t, d.canonical(), "seed %d", seed)
	}
}

// regular returns a record as the planner makes it: blocks of 32 sorted tokens per head.
func regular(h *Header, blocks int, kinds []Block, rng *rand.Rand) *Record {
	tokens := h.SegmentLen(0, 0)
	kDim, vDim := h.Dims(0)
	rec := &Record{Heads: make([]Head, h.KVHeads())}
	for hi := range rec.Heads {
		bs := make([]Block, blocks)
		for t, b := range members("even", tokens, blocks, rng) {
			bs[b].Tokens = append(bs[b].Tokens, uint16(t))
		}
		for bi := range bs {
			k := kinds[bi*len(kinds)/blocks]
			bs[bi].Level, bs[bi].K, bs[bi].V = k.Level, k.K, k.V
			bs[bi].KData = make([]byte, k.K.PackedBytes(bs[bi].Rows(), kDim))
			bs[bi].VData = make([]byte, k.V.PackedBytes(bs[bi].Rows(), vDim))
		}
		rec.Heads[hi].Blocks = bs
	}
	return rec
}

// TestOverhead_Bound checks the bound that the package comment promises.
func TestOverhead_Bound(t *testing.T) {
	lm := func(k, v quant.Format) Block {
		return Block{K: quant.Coding{Format: k, Rule: quant.InnerProduct}, V: quant.Coding{Format: v}}
	}
	kinds := []Block{lm(quant.U8, quant.U8), lm(quant.LM4, quant.LM3), lm(quant.LM3, quant.LM2),
		lm(quant.LM2, quant.LM2)}
	kinds[0].K.Rule = 0
	for _, heads := range []int{1, 3, 8, 32} {
		for _, blocks := range []int{1, 2, 4, 8, 16} {
			for _, dim := range []int{64, 128} {
				t.Run(fmt.Sprintf("heads=%d/blocks=%d/dim=%d", heads, blocks, dim), func(t *testing.T) {
					rng := rand.New(rand.NewPCG(5, uint64(heads*blocks)))
					tokens := 32 * blocks
					h := &Header{Kind: KindCache, Tokens: int64(tokens), SegmentTokens: tokens, Layers: []int{0},
						KType: quant.Float16, VType: quant.Float16, Geometry: quant.Geometry{
							Layers: 1, Heads: heads, KVHeads: heads, HeadDim: dim, HeadDimV: dim}}
					rec := regular(h, blocks, kinds[:min(4, blocks)], rng)
					n, err := RecordSize(h, rec)
					require.NoError(t, err)
					payload := int64(0)
					for _, hd := range rec.Heads {
						for _, b := range hd.Blocks {
							payload += int64(len(b.KData) + len(b.VData))
						}
					}
					overhead := n - payload + indexEntryBytes
					bound := int64(64 + tokens*heads/2)
					t.Logf("overhead %d of %d bytes, %.2f bits a (token, kv_head)", overhead, bound,
						8*float64(overhead)/float64(tokens*heads))
					require.LessOrEqual(t, overhead, bound)
				})
			}
		}
	}
}

// TestOverhead_MergedBlocks checks the same bound for one block per kind, uneven shares, and
// payloads that all need padding (8-bit scales).
func TestOverhead_MergedBlocks(t *testing.T) {
	const tokens, heads, dim = 512, 3, 64
	rng := rand.New(rand.NewPCG(9, 9))
	h := &Header{Kind: KindCache, Tokens: tokens, SegmentTokens: tokens, Layers: []int{0},
		KType: quant.Float16, VType: quant.Float16, Geometry: quant.Geometry{
			Layers: 1, Heads: heads, KVHeads: heads, HeadDim: dim, HeadDimV: dim}}
	rec := &Record{Heads: make([]Head, heads)}
	payload := 0
	for hi := range rec.Heads {
		blocks := make([]Block, 4)
		for i, at := range rng.Perm(tokens) {
			b := []int{0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3}[i/32]
			blocks[b].Tokens = append(blocks[b].Tokens, uint16(at))
		}
		for bi := range blocks {
			b := &blocks[bi]
			slices.Sort(b.Tokens)
			b.K = quant.Coding{Format: quant.LM1 + quant.Format(bi), Scale: quant.ScaleLog8}
			b.V = b.K
			payload += 2 * b.K.PackedBytes(len(b.Tokens), dim)
		}
		rec.Heads[hi].Blocks = blocks
	}
	n, err := RecordSize(h, rec)
	require.NoError(t, err)
	overhead := n - int64(payload) + indexEntryBytes
	t.Logf("overhead %d bytes, %.2f bits a (token, kv_head)", overhead,
		8*float64(overhead)/(tokens*heads))
	require.LessOrEqual(t, overhead, int64(64+tokens*heads/2))
}

// TestSide_TakesTheSmallestEncoding checks each encoding with data that it suits best.
func TestSide_TakesTheSmallestEncoding(t *testing.T) {
	ints := func(f func(i int) uint32) []byte {
		var b []byte
		for i := range 500 {
			v := f(i)
			b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
		}
		return b
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		name string
		want encoding
		data []byte
	}{
		{"positions", encodingProgression, ints(func(i int) uint32 { return uint32(100 + i) })},
		{"backwards", encodingProgression, ints(func(i int) uint32 { return uint32(7 - 3*i) })},
		{"tokens", encodingPlanes, ints(func(int) uint32 { return uint32(rng.IntN(50000)) })},
		{"noise", encodingRaw, ints(func(int) uint32 { return rng.Uint32() })},
	} {
		a := &Aux{Name: c.name, DType: "I32", Shape: []int64{500}, Data: c.data}
		f := &file{h: randomFile(seeded(3)).h, aux: []*Aux{a}}
		f.recs = randomFile(seeded(3)).recs
		b := f.write(t)
		r, err := openBytes(b, Limits{})
		require.NoError(t, err)
		infos, err := r.Auxes()
		require.NoError(t, err)
		require.Equal(t, c.want, infos[0].encoding, c.name)
		require.Equal(t, int64(2000), infos[0].Decoded)
		got, err := r.ReadAux(c.name)
		require.NoError(t, err)
		require.True(t, bytes.Equal(c.data, got.Data), c.name)
	}
}

// Segments of different lengths divide the tokens without gaps, or the file is refused.
func TestHeader_Starts(t *testing.T) {
	header := func(starts ...int64) *Header {
		return &Header{Kind: KindCache, Geometry: quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8},
			Layers: []int{0}, KType: quant.Float16, VType: quant.Float16, Tokens: 100, SegmentTokens: 40, Starts: starts}
	}
	h := header(0, 4, 44, 84)
	b, err := appendHeader(nil, h)
	require.NoError(t, err)
	_, k, n, err := parseFileHeader(place{}, &Limits{MaxHeaderBytes: 1 << 20}, b, int64(len(b)))
	require.NoError(t, err)
	got, err := parseHeader(place{}, b[:n], 1, k, kindInvalid)
	require.NoError(t, err)
	require.Equal(t, h.Starts, got.Starts)
	require.EqualValues(t, 4, got.Segments(0))
	for s, want := range []int{4, 40, 40, 16} {
		require.Equal(t, want, got.SegmentLen(0, s))
		require.Equal(t, h.Starts[s], got.SegmentStart(s))
	}
	require.Equal(t, 1, got.longest(0))
	for _, bad := range [][]int64{{}, {1, 40, 80}, {0, 41, 80}, {0, 40}, {0, 40, 40, 80}, {0, 40, 80, 100}, {0, 50, 40, 80}} {
		_, err := appendHeader(nil, header(bad...))
		require.ErrorIs(t, err, quant.ErrShape, "%v", bad)
	}
}
