// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// of returns the capture as one of a model whose layers attend otherwise. edit changes rows; nil: none.
func of(t testing.TB, src *capture.Source, g quant.Geometry,
	edit func(name string, data []byte) []byte) *capture.Source {
	t.Helper()
	var decls []capture.Decl
	for _, x := range src.Tensors() {
		decls = append(decls, capture.Decl{Name: x.Name, DTypeName: x.DTypeName, Shape: slices.Clone(x.Shape)})
	}
	shape, freqs := capture.KVFrequencies(g)
	if shape != nil {
		decls = append(decls, capture.Decl{Name: "rope_inv_freq", DTypeName: "F32", Shape: shape})
	}
	var m memory
	w, err := capture.NewWriter(&m, decls, capture.KVMetadata(g, src.Info().Model, src.Info().FirstPosition))
	require.NoError(t, err)
	for _, x := range src.Tensors() {
		data := make([]byte, x.Bytes)
		require.NoError(t, src.ReadAt(x.Name, 0, data))
		if edit != nil {
			data = edit(x.Name, data)
		}
		require.NoError(t, w.WriteAt(x.Name, 0, data))
	}
	if shape != nil {
		b, err := binary.Append(nil, binary.LittleEndian, freqs)
		require.NoError(t, err)
		require.NoError(t, w.WriteAt("rope_inv_freq", 0, b))
	}
	require.NoError(t, w.Close())
	out, err := capture.New(src.Info().Name, bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return out
}

// perLayer returns the geometry of a capture with attention of each layer, changed by change.
func perLayer(src *capture.Source, change func(l int, a *quant.LayerAttention)) quant.Geometry {
	g := src.Info().Geometry
	for l := range g.Layers {
		a := quant.LayerAttention{Rope: g.Rope}
		change(l, &a)
		g.PerLayer = append(g.PerLayer, a)
	}
	return g
}

// windowed gives every layer but number 9 a window.
func windowed(t testing.TB, src *capture.Source, window int64) *capture.Source {
	return of(t, src, perLayer(src, func(l int, a *quant.LayerAttention) {
		if l != 9 {
			a.Window = window
		}
	}), nil)
}

// droppedTokens returns how many of a file's tokens are dropped, per stored layer and head, and checks that those
// outside of windows are.
func droppedTokens(t testing.TB, r *container.Reader) (all [][]int) {
	h := r.Header()
	for l := range h.Layers {
		heads := make([]int, h.KVHeads())
		for s := range int(h.Segments(l)) {
			at, ok := r.Find(l, s)
			require.True(t, ok)
			rec, err := r.ReadRecord(at)
			require.NoError(t, err)
			for hi := range rec.Heads {
				var gone []uint16
				for _, b := range rec.Heads[hi].Blocks {
					if b.Level == quant.Dropped {
						gone = append(gone, b.Tokens...)
					}
				}
				heads[hi] += len(gone)
				for tok := range h.OutsideIn(l, s) {
					require.Contains(t, gone, uint16(tok))
				}
			}
		}
		all = append(all, heads)
	}
	return all
}

// Tokens that no later query can see are dropped, and that changes no output: the future-attention error is that
// of a file that kept them.
func TestWindow_DroppedTokensAreMissedByNobody(t *testing.T) {
	plain, be := open(t, kvFile), openCPU(t)
	for _, window := range []int64{300, 900, 17, 1} {
		if testing.Short() && window != 300 {
			continue
		}
		src := windowed(t, plain, window)
		outside := int(1024 - window + 1)
		cfg := config(t, "k=lm3 v=lm2 importance=none mean=false") // dropped rows have no part in a mean
		b, res := compress(t, src, be, cfg)
		kept, _ := compress(t, plain, be, cfg)
		r := reader(t, b)
		for l, heads := range droppedTokens(t, r) {
			for _, n := range heads {
				require.Equal(t, map[bool]int{true: 0, false: outside}[r.Header().Layers[l] == 9], n)
			}
		}
		require.Equal(t, int64(3*3*outside*128), res.Codings["dropped"])
		require.Equal(t, res.Values-int64(3*3*outside*128), res.SeenValues)
		require.InDelta(t, float64(8*res.Bytes)/float64(res.SeenValues), res.BitsPerSeen, 1e-9)

		// The same rows, with those that the plan dropped, as a file of the same model.
		got := measure(t, src, be, b)
		want := measure(t, src, be, sameModel(t, kept, src.Info().Geometry))
		for i := range want.Layers {
			require.InDelta(t, want.Layers[i].FutureError, got.Layers[i].FutureError,
				1e-4*want.Layers[i].FutureError, "window %d: %s", window, want.Layers[i].Name)
		}
		if window < 900 { // the windows are what makes the difference
			all := measure(t, plain, be, kept)
			require.NotEqual(t, all.Layers[3].FutureError, got.Layers[3].FutureError)
		}
	}
}

// sameModel returns a file as one of a model with another geometry.
func sameModel(t testing.TB, b []byte, g quant.Geometry) []byte {
	r := reader(t, b)
	h := *r.Header()
	h.Geometry = g
	var out bytes.Buffer
	w, err := container.NewWriter(&out, &h)
	require.NoError(t, err)
	auxes, err := r.ReadAllAux(0)
	require.NoError(t, err)
	for _, a := range auxes {
		require.NoError(t, w.WriteAux(a))
	}
	for i := range r.Records() {
		rec, err := r.ReadRecord(i)
		require.NoError(t, err)
		require.NoError(t, w.WriteRecord(rec))
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

// recordBytes returns the records of a file as they are stored, one after the other.
func recordBytes(t testing.TB, b []byte) (all []byte) {
	for _, i := range reader(t, b).Records() {
		all = append(all, b[i.Offset:i.Offset+i.Length]...)
	}
	return all
}

// A window that reaches behind the context, a scale that is 1/sqrt(head_dim) and layers that say what all say
// change no byte of a record.
func TestWindow_WiderThanTheContextIsNone(t *testing.T) {
	plain, be := firstTokens(t, open(t, kvFile), 320, 0, 29), openCPU(t)
	wide := of(t, plain, perLayer(plain, func(l int, a *quant.LayerAttention) {
		a.Window, a.Scale = int64(320+256+1+1000*(l%3)), 0.125
	}), nil)
	for _, text := range []string{"k=lm3 v=lm2 importance=none", "bytes=24000", "bytes=64000 levels=full",
		"bytes=24000 form=archive", "bytes=48000 importance=default,expected=0.5,surprise=0.25 levels=full"} {
		cfg := config(t, text)
		if testing.Short() && cfg.Bytes > 24000 {
			continue
		}
		want, res := compress(t, plain, be, cfg)
		got, other := withRoom(t, wide, be, cfg, res)
		require.True(t, bytes.Equal(recordBytes(t, want), recordBytes(t, got)), text)
		if cfg.Form != kvfile.FormArchive { // of which nothing is predicted
			require.Equal(t, res.Predicted, other.Predicted, text)
		}
		a, b := measure(t, plain, be, want), measure(t, wide, be, got)
		require.Equal(t, a.FutureError, b.FutureError, text)
	}
}

// withRoom compresses a capture to as many bytes for records as res has.
func withRoom(t testing.TB, src *capture.Source, be backend.Backend, cfg kvfile.Config,
	res *kvfile.Result) ([]byte, *kvfile.Result) {
	b, other := compress(t, src, be, cfg)
	if more := other.Sections.Header - res.Sections.Header; more != 0 && cfg.Bytes > 0 {
		cfg.Bytes += more
		return compress(t, src, be, cfg)
	}
	return b, other
}

// A budget goes to the tokens that can be seen. Both forms restore what they say they hold.
func TestWindow_BudgetGoesToWhatIsSeen(t *testing.T) {
	plain, be := open(t, kvFile), openCPU(t)
	src := windowed(t, plain, 200)
	for _, text := range []string{"bits=1.5", "bits=1.5 form=archive", "bits=0.5 form=archive chunks=3"} {
		cfg := config(t, text)
		b, res := compress(t, src, be, cfg)
		all, _ := compress(t, plain, be, cfg)
		require.LessOrEqual(t, res.BitsPerValue, cfg.Bits, text)
		require.Greater(t, res.BitsPerValue, 0.97*cfg.Bits, text)
		require.InDelta(t, res.BitsPerValue*float64(res.Values)/float64(res.SeenValues), res.BitsPerSeen, 1e-9)
		require.NoError(t, kvfile.Verify(context.Background(), reader(t, b), kvfile.Options{}))
		require.NoError(t, kvfile.VerifyRows(context.Background(), reader(t, b), kvfile.Options{}))
		got := measure(t, src, be, b)
		kept := measure(t, src, be, sameModelOf(t, all, src, cfg))
		require.Less(t, got.FutureError, 0.6*kept.FutureError, "%s: the bytes of dropped tokens serve the others", text)

		back := decompress(t, b)
		require.Equal(t, src.Info().Geometry, back.Info().Geometry, text)
		require.Equal(t, "kv-capture/2", back.Info().Metadata["format"])
		marks := make([]uint8, 1024)
		for _, l := range src.Info().Layers {
			require.NoError(t, back.ReadKept(l, 1, 0, marks))
			gone := 0
			for tok, m := range marks {
				if m == 0 && (l != 9 && tok <= 1024-200) {
					gone++
				}
			}
			require.Equal(t, map[bool]int{true: 0, false: 825}[l == 9], gone, "%s layer %d", text, l)
		}
		rows := make([]float32, 825*64)
		k, _ := back.KV(0, capture.K)
		require.NoError(t, k.ReadF32(2, 0, 825, rows))
		require.Equal(t, make([]float32, len(rows)), rows, "dropped rows are zeros")
		requireKept(t, src, back)
	}
}

// requireKept checks that the rows of layer 29 that a query can see came back, by their errors.
func requireKept(t testing.TB, src, back *capture.Source) {
	skip := make([]int, 825)
	for i := range skip {
		skip[i] = i
	}
	for head := range 3 {
		require.Less(t, nmse(t, src, back, 29, capture.V, head, skip...), 0.8)
	}
}

// sameModelOf is sameModel where records are in hot form; an archive of all rows is expanded first.
func sameModelOf(t testing.TB, b []byte, src *capture.Source, cfg kvfile.Config) []byte {
	if cfg.Form != kvfile.FormArchive {
		return sameModel(t, b, src.Info().Geometry)
	}
	r := reader(t, b)
	records, err := cold.OpenRecords(r, nil)
	require.NoError(t, err)
	h := *r.Header()
	h.Geometry, h.QueryEnergy, h.Config = src.Info().Geometry, nil, ""
	var out bytes.Buffer
	w, err := container.NewWriter(&out, &h)
	require.NoError(t, err)
	for i := range r.Records() {
		rec, err := records.Record(i)
		require.NoError(t, err)
		require.NoError(t, w.WriteRecord(rec))
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

// Plans that merge and drop for their own reasons foretell their error in layers with windows as well.
func TestWindow_Levels(t *testing.T) {
	plain, be := open(t, kvFile), openCPU(t)
	for _, window := range []int64{700, 400} {
		src := windowed(t, plain, window)
		b, res := compress(t, src, be, config(t, "bits=1.2 levels=full+chunks+dropped"))
		r := reader(t, b)
		more := 0 // tokens that the plan dropped though they can be seen
		for l, heads := range droppedTokens(t, r) {
			for _, n := range heads {
				more += n - int(r.Header().Outside(l))
			}
		}
		require.Positive(t, more)
		got := measure(t, src, be, b).FutureError
		t.Logf("window %d: error %.5f, foretold %.5f", window, got, res.Predicted)
		require.Less(t, got, 2*res.Predicted)
		require.Less(t, res.Predicted, 2*got)
		if testing.Short() {
			break
		}
	}
}

// A cache that a program holds becomes a file of layers that differ, and a capture again.
func TestMemory_LayersThatDiffer(t *testing.T) {
	m := cacheInMemory(90)
	m.Geometry.PerLayer = []quant.LayerAttention{{Window: 1000, Softcap: 20},
		{Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 32, InvFreq: make([]float32, 16)}}}
	m.Geometry.PerLayer[1].Rope.InvFreq[0] = 1
	for _, text := range []string{"k=f32 v=f32 importance=none", "bits=3 form=archive", "lossless=true form=archive"} {
		var b bytes.Buffer
		_, err := m.Write(context.Background(), &b, kvfile.Options{Config: settings(t, text)})
		require.NoError(t, err)
		require.Equal(t, m.Geometry.Canonical(), decompress(t, b.Bytes()).Info().Geometry, text)
	}
	m.Geometry.PerLayer[0].Window = -1
	_, err := m.Write(context.Background(), &bytes.Buffer{}, kvfile.Options{})
	require.ErrorIs(t, err, quant.ErrShape)
	m.Geometry.PerLayer = m.Geometry.PerLayer[:1]
	_, err = m.Write(context.Background(), &bytes.Buffer{}, kvfile.Options{})
	require.ErrorIs(t, err, quant.ErrShape)
}

// Archives of many records, some of which hold nothing, meet their budgets; rows that are kept as they are too.
func TestWindow_ArchivesOfManyRecords(t *testing.T) {
	plain, be := open(t, kvFile), openCPU(t)
	src := windowed(t, plain, 200)
	nan := of(t, plain, src.Info().Geometry, func(name string, data []byte) []byte {
		if name == "layers.19.v" || name == "layers.29.k" { // one row that can be seen, one that cannot
			binary.LittleEndian.PutUint16(data[2*64*1000:], 0x7e00)
			binary.LittleEndian.PutUint16(data[2*64*100:], 0x7e00)
		}
		return data
	})
	for _, c := range []struct {
		src  *capture.Source
		text string
	}{{src, "bits=0.8 form=archive segment=32"}, {src, "bits=0.3 form=archive segment=100 importance=none"},
		{nan, "bits=0.8 form=archive segment=32 allow-nonfinite=true"}} {
		cfg := config(t, c.text)
		b, res := compress(t, c.src, be, cfg)
		require.LessOrEqual(t, res.BitsPerValue, cfg.Bits, c.text)
		require.Greater(t, res.BitsPerValue, 0.97*cfg.Bits, c.text)
		require.NoError(t, kvfile.VerifyRows(context.Background(), reader(t, b), kvfile.Options{}))
		dropped := 0
		for i := range reader(t, b).Records() {
			rec, err := reader(t, b).ReadRecord(i)
			require.NoError(t, err)
			if rec.Archive == nil {
				dropped++
				require.Len(t, rec.Heads[0].Blocks, 1)
				require.Equal(t, quant.Dropped, rec.Heads[0].Blocks[0].Level)
			}
		}
		require.Equal(t, 3*(825/cfg.Segment), dropped, c.text)
		back := decompress(t, b)
		if c.src == src {
			requireKept(t, c.src, back)
			continue
		}
		v, row := make([]float32, 64), make([]float32, 64)
		x, _ := c.src.KV(19, capture.V)
		y, _ := back.KV(19, capture.V)
		require.NoError(t, x.ReadF32(0, 1000, 1, v))
		require.NoError(t, y.ReadF32(0, 1000, 1, row))
		require.True(t, math.IsNaN(float64(row[0])))
		require.Equal(t, v[1:], row[1:])
	}
}

// An archive that takes basis and steps from a profile needs one of a model that attends alike.
func TestWindow_Profiles(t *testing.T) {
	src, be := windowed(t, small(t), 100), openCPU(t)
	p := calibrated(t, src)
	require.Equal(t, src.Info().Geometry, p.Geometry())
	cfg := config(t, "bits=1.5 form=archive")
	cfg.Profile = p
	b, res := compress(t, src, be, cfg)
	require.LessOrEqual(t, res.BitsPerValue, 1.5)
	back := restored(t, b, p)
	require.Equal(t, src.Info().Geometry, back.Info().Geometry)
	var out bytes.Buffer
	_, err := kvfile.Compress(context.Background(), small(t), &out, kvfile.Options{Backend: be, Config: &cfg})
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorContains(t, err, "layer 0")
}

// A profile, weights of an archive and a truncated file know windows as well.
func TestWindow_ArchivesOfArchives(t *testing.T) {
	src, be := windowed(t, small(t), 100), openCPU(t)
	cfg := config(t, "bits=2 form=archive chunks=3")
	b, _ := compress(t, src, be, cfg)
	r := reader(t, b)
	weights, err := kvfile.ArchiveWeights(context.Background(), r)
	require.NoError(t, err)
	for _, l := range src.Info().Layers {
		w, err := weights(l, 0)
		require.NoError(t, err)
		require.Len(t, w, src.Info().Tokens)
	}
	hot := config(t, "bits=2")
	hot.Weighted = true
	var out bytes.Buffer
	_, err = kvfile.Compress(context.Background(), src, &out, kvfile.Options{Backend: be, Config: &hot,
		Weights: weights})
	require.NoError(t, err)
	droppedTokens(t, reader(t, out.Bytes()))
	var less bytes.Buffer
	_, err = kvfile.Truncate(context.Background(), r, &less, r.Size()*3/4, kvfile.Options{Force: true})
	require.NoError(t, err)
	require.Equal(t, src.Info().Geometry, decompress(t, less.Bytes()).Info().Geometry)
}

// Where no layer can see anything, nothing is stored, in either form.
func TestWindow_NothingIsSeen(t *testing.T) {
	plain, be := small(t), openCPU(t)
	src := of(t, plain, perLayer(plain, func(l int, a *quant.LayerAttention) { a.Window = 1 }), nil)
	for _, text := range []string{"bits=2", "bits=2 form=archive", "k=lm2 v=lm2"} {
		b, res := compress(t, src, be, config(t, text))
		require.Zero(t, res.SeenValues)
		require.Less(t, res.Bytes, int64(8192), text)
		require.NoError(t, kvfile.Verify(context.Background(), reader(t, b), kvfile.Options{}))
		back := decompress(t, b)
		require.Equal(t, src.Info().Geometry, back.Info().Geometry)
	}
	b, _ := compress(t, src, be, config(t, "lossless=true form=archive"))
	require.Zero(t, nmse(t, src, decompress(t, b), src.Info().Layers[0], capture.K, 0), "every bit is every token's")
}

// Explain names the tokens that lie outside of windows.
func TestWindow_Explained(t *testing.T) {
	src, be := windowed(t, small(t), 100), openCPU(t)
	b, _ := compress(t, src, be, config(t, "bits=2"))
	r := reader(t, b)
	why, err := kvfile.Explain(context.Background(), r, src, kvfile.Options{Backend: be})
	require.NoError(t, err)
	outside := map[int]int{}
	for _, w := range why.Blocks {
		if w.Kind == "outside" {
			require.Equal(t, "DROPPED", w.Level)
			require.Zero(t, w.Rows)
			require.Empty(t, w.Sides)
			outside[r.Header().Layers[w.Layer]] += len(w.Tokens)
		}
	}
	for i, l := range r.Header().Layers {
		want := int(r.Header().Outside(i)) * 2
		require.Equal(t, want, outside[l], "layer %d", l)
		require.Positive(t, want)
	}
	rep, err := report.Build(context.Background(), r, nil)
	require.NoError(t, err)
	require.Equal(t, r.Header().SeenValues(), rep.SeenValues)
	require.Greater(t, rep.BitsPerSeen, rep.BitsPerValue)

	// A file of other windows is not of the capture.
	_, err = kvfile.Explain(context.Background(), r, windowed(t, small(t), 90), kvfile.Options{Backend: be})
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorContains(t, err, "window 90")
}

// Positions with gaps are refused where windows are told by them, and kept where every bit is.
func TestWindow_PositionsWithGaps(t *testing.T) {
	be := openCPU(t)
	s := shape{2, 1, 100, 16, 16, quant.Float16, true}
	plain := synthetic(t, s, quanttest.Gaussian, nil)
	g := perLayer(plain, func(l int, a *quant.LayerAttention) { a.Window = 40 })
	var m memory
	decls := []capture.Decl{{Name: "positions", DTypeName: "I32", Shape: []int64{100}}}
	for _, x := range plain.Tensors() {
		decls = append(decls, capture.Decl{Name: x.Name, DTypeName: x.DTypeName, Shape: slices.Clone(x.Shape)})
	}
	w, err := capture.NewWriter(&m, decls, capture.KVMetadata(g, "m", 0))
	require.NoError(t, err)
	for _, x := range plain.Tensors() {
		data := make([]byte, x.Bytes)
		require.NoError(t, plain.ReadAt(x.Name, 0, data))
		require.NoError(t, w.WriteAt(x.Name, 0, data))
	}
	var pos []byte
	for i := range 100 {
		pos = binary.LittleEndian.AppendUint32(pos, uint32(i+i/50))
	}
	require.NoError(t, w.WriteAt("positions", 0, pos))
	require.NoError(t, w.Close())
	src, err := capture.New("gaps", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	for _, text := range []string{"bits=9", "bits=4 form=archive"} {
		var out bytes.Buffer
		_, err = kvfile.Compress(context.Background(), src, &out, kvfile.Options{Backend: be,
			Config: settings(t, text)})
		require.ErrorIs(t, err, quant.ErrUnsupported)
		require.ErrorContains(t, err, "positions 49 and 51 of tokens 49 and 50")
		require.Zero(t, out.Len())
	}
	b, _ := compress(t, src, be, config(t, "lossless=true form=archive"))
	require.Zero(t, nmse(t, src, decompress(t, b), 2, capture.K, 0))
}

// Queries twice as long under half the scale are the same model.
func TestScale_OfTheLayerIsUsed(t *testing.T) {
	plain, be := small(t), openCPU(t)
	twice := of(t, plain, perLayer(plain, func(l int, a *quant.LayerAttention) { a.Scale = 0.0625 }),
		func(name string, data []byte) []byte {
			if !isQuery(name) && !bytes.HasSuffix([]byte(name), []byte(".q_next")) {
				return data
			}
			for i := 0; i < len(data); i += 2 {
				v := quant.F16ToF32(binary.LittleEndian.Uint16(data[i:]))
				binary.LittleEndian.PutUint16(data[i:], quant.F32ToF16(2*v))
			}
			return data
		})
	for _, text := range []string{"bytes=60000", "bytes=60000 importance=default,expected=0.5"} {
		cfg := config(t, text)
		want, res := compress(t, plain, be, cfg)
		got, _ := withRoom(t, twice, be, cfg, res)
		require.True(t, bytes.Equal(recordBytes(t, want), recordBytes(t, got)), text)
	}
	// The row bias of an archive tells what errors do to scores.
	mean := func(src *capture.Source) (sum float64) {
		b, _ := compress(t, src, be, config(t, "bytes=40000 form=archive row-bias=true"))
		bias := make([]float32, src.Info().Tokens)
		require.NoError(t, decompress(t, b).ReadBias(2, 1, 0, bias))
		for _, v := range bias {
			sum += float64(v)
		}
		return sum
	}
	want := mean(plain)
	require.Less(t, want, -0.1)
	require.InEpsilon(t, want, mean(twice), 0.03)

	// And without the queries to tell, another scale is another price.
	cfg := config(t, "bytes=60000 importance=none")
	a, _ := compress(t, withoutQueries(t, plain), be, cfg)
	b, _ := compress(t, withoutQueries(t, of(t, plain, perLayer(plain, func(l int, a *quant.LayerAttention) {
		a.Scale = 2
	}), nil)), be, cfg)
	require.Greater(t, kBits(t, b), kBits(t, a)+0.1, "scores of a larger scale are more easily wrong")
}

// kBits returns the bits of K in a file.
func kBits(t testing.TB, b []byte) (sum float64) {
	rep, err := report.Build(context.Background(), reader(t, b), nil)
	require.NoError(t, err)
	for _, l := range rep.Layers {
		sum += l.KBits
	}
	return sum
}

// K of each layer is coded before its own position embedding: turned by another base, it takes as many bytes for
// as small an error as before, where the base is known.
func TestArchive_RopeOfTheLayer(t *testing.T) {
	plain, be := open(t, kvFile), openCPU(t)
	rope := plain.Info().Geometry.Rope
	other := rope
	other.Theta = 500
	turned := func(name string, data []byte) []byte {
		var layer int
		var part string
		if n, _ := fmt.Sscanf(name, "layers.%d.%s", &layer, &part); n != 2 || part != "k" || layer < 19 {
			return data
		}
		for head := range 3 {
			headRows(t, data, head, 1024, 64, func(x quant.Rows) {
				for r := range x.Len() {
					turn(x.Row(r), rope, -float64(r))
					turn(x.Row(r), other, float64(r))
				}
			})
		}
		return data
	}
	known := of(t, plain, perLayer(plain, func(l int, a *quant.LayerAttention) {
		if l >= 19 {
			a.Rope = other
		}
	}), turned)
	unknown := of(t, plain, plain.Info().Geometry, turned)
	bitsOf := func(src *capture.Source, p *profile.Profile) (bits float64) { // of K, and those that would make its error 1
		cfg := config(t, "bits=3 form=archive importance=none")
		cfg.Profile = p
		b, _ := compress(t, withoutQueries(t, src), be, cfg)
		rep, err := report.Build(context.Background(), reader(t, b), nil)
		require.NoError(t, err)
		back := restored(t, b, profilesOf(p)...)
		for i, l := range src.Info().Layers {
			if l < 19 {
				continue
			}
			bits += rep.Layers[i].KBits
			for head := range 3 {
				bits += math.Log2(nmse(t, src, back, l, capture.K, head)) / 2 / 3
			}
		}
		return bits
	}
	before, with, without := bitsOf(plain, nil), bitsOf(known, nil), bitsOf(unknown, nil)
	t.Logf("bits of K at an error of 1: %.3f, turned by another base %.3f, that nobody told of %.3f", before,
		with, without)
	require.InDelta(t, before, with, 0.02)
	require.Greater(t, without, with+0.1)
	if !testing.Short() { // bases of a profile are fitted before the layer's own embedding, too
		with, without = bitsOf(known, calibrated(t, known)), bitsOf(unknown, calibrated(t, unknown))
		t.Logf("with a profile %.3f and %.3f", with, without)
		require.Greater(t, without, with+0.1)
	}
}

func turn(row []float32, r quant.Rope, pos float64) {
	half := r.RotaryDim / 2
	for i, f := range r.Frequencies() {
		sin, cos := math.Sincos(pos * f)
		x, y := float64(row[i]), float64(row[i+half])
		row[i], row[i+half] = float32(x*cos-y*sin), float32(x*sin+y*cos)
	}
}

// A cache in memory is attended to with its layers' windows, scales and soft caps.
func TestPack_LayersThatDiffer(t *testing.T) {
	m := cacheInMemory(90)
	g := &m.Geometry
	for l := range g.Layers {
		a := quant.LayerAttention{Rope: g.Rope}
		if l == 0 {
			a.Window, a.Scale, a.Softcap = 30, 0.25, 3
		}
		g.PerLayer = append(g.PerLayer, a)
	}
	p, err := kvfile.Pack(context.Background(), m, kvfile.Options{Config: settings(t, "k=f32 v=f32 importance=none")})
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close()) }()
	const n = 3
	q := make([]float32, n*g.Heads*g.HeadDim)
	for i := range q {
		q[i] = float32(math.Sin(float64(i)))
	}
	for l := range g.Layers {
		out := make([]float32, n*g.Heads*g.HeadDimV)
		require.NoError(t, p.Attend(context.Background(), l, q, out))
		for i := range n {
			for h := range g.Heads {
				first := 0
				if l == 0 {
					first = 90 + i - 30 + 1
				}
				want := attendByHand(m, l, h, q[(i*g.Heads+h)*g.HeadDim:][:g.HeadDim], first)
				for d, w := range want {
					require.InDelta(t, w, out[(i*g.Heads+h)*g.HeadDimV+d], 1e-4, "layer %d token %d head %d", l, i, h)
				}
			}
		}
	}
}

func attendByHand(m *kvfile.Memory, layer, head int, q []float32, first int) []float64 {
	g := &m.Geometry
	kv, n := head/g.GQARatio(), len(m.K[layer])/(g.KVHeads*g.HeadDim)
	out, sum := make([]float64, g.HeadDimV), 0.0
	for t := first; t < n; t++ {
		var s float64
		for i, x := range m.K[layer][(kv*n+t)*g.HeadDim:][:g.HeadDim] {
			s += float64(x) * float64(q[i])
		}
		s *= g.ScaleOf(layer)
		if c := g.SoftcapOf(layer); c > 0 {
			s = c * math.Tanh(s/c)
		}
		p := math.Exp(s)
		sum += p
		for i, x := range m.V[layer][(kv*n+t)*g.HeadDimV:][:g.HeadDimV] {
			out[i] += p * float64(x)
		}
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}
