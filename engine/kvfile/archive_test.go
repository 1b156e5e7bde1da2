// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

var update = flag.Bool("update", false, "write a golden that is missing")

// goldenArchive is the SHA-256 of K and V of layer 2 of the golden, as it decompresses everywhere.
const (
	goldenArchive = "4b9fe326d6746db0e89cc31cc59e5a0fcbd1bc3c63140cb6e4b58dfb7d97d838"
	goldenPath    = "../../testdata/golden/v1/pass-archive.kvist"
)

func profilesOf(p *profile.Profile) []*profile.Profile {
	if p == nil {
		return nil
	}
	return []*profile.Profile{p}
}

func TestArchive_Golden(t *testing.T) {
	if _, err := os.Stat(goldenPath); *update && os.IsNotExist(err) {
		src := synthetic(t, shape{2, 1, 100, 16, 16, quant.BFloat16, true}, quanttest.Gaussian, nil)
		b, _ := compress(t, src, openCPU(t), config(t, "bits=6 form=archive segment=64 chunks=2 row-bias=true"))
		require.NoError(t, os.WriteFile(goldenPath, b, 0o644))
	}
	b, err := os.ReadFile(goldenPath)
	require.NoError(t, err)
	back := restored(t, b)
	h := sha256.New()
	for _, name := range []string{"layers.2.k", "layers.2.v", "layers.2.bias"} {
		h.Write(raw(t, back, name))
	}
	require.Equal(t, goldenArchive, hex.EncodeToString(h.Sum(nil)))
}

// small is a capture that is coded in no time.
func small(t testing.TB) *capture.Source {
	return synthetic(t, shape{4, 2, 700, 64, 32, quant.Float16, true}, quanttest.Gaussian, nil)
}

func calibrated(t testing.TB, src *capture.Source) *profile.Profile {
	t.Helper()
	p, err := tune.Calibrate(context.Background(), []*capture.Source{src}, openCPU(t), nil, nil)
	require.NoError(t, err)
	return p
}

func restored(t testing.TB, b []byte, p ...*profile.Profile) *capture.Source {
	t.Helper()
	var m memory
	_, err := kvfile.Decompress(context.Background(), reader(t, b), &m, kvfile.Options{Profiles: p})
	require.NoError(t, err)
	back, err := capture.New("back", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return back
}

// A profile that many calls share, at the same time and one after the other, gives each what a profile of its own
// does.
func TestConcurrent_SharedProfile(t *testing.T) {
	src, be := small(t), openCPU(t)
	p := calibrated(t, src)
	var written bytes.Buffer
	_, err := p.WriteTo(&written)
	require.NoError(t, err)
	own := func() *profile.Profile {
		x, err := profile.Read("own", bytes.NewReader(written.Bytes()), int64(written.Len()), profile.Limits{})
		require.NoError(t, err)
		return x
	}
	cfg := config(t, "bits=1.5 form=archive")
	cfg.Profile = own()
	want, _ := compress(t, src, be, cfg)
	back := restored(t, want, own())
	shared := own()
	cfg.Profile = shared
	var wg sync.WaitGroup
	var files [3]bytes.Buffer
	var rows [3]memory
	errs := make([]error, len(files)+len(rows))
	for i := range files {
		wg.Go(func() {
			_, errs[i] = kvfile.Compress(context.Background(), src, &files[i], kvfile.Options{Config: &cfg, Backend: be})
		})
	}
	for i := range rows {
		r := reader(t, want)
		wg.Go(func() {
			_, errs[len(files)+i] = kvfile.Decompress(context.Background(), r, &rows[i], kvfile.Options{Profiles: []*profile.Profile{shared}})
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	for i := range files {
		require.Equal(t, want, files[i].Bytes())
	}
	for i := range rows {
		got, err := capture.New("back", bytes.NewReader(rows[i].b), int64(len(rows[i].b)), capture.Limits{})
		require.NoError(t, err)
		for _, name := range []string{"layers.2.k", "layers.2.v"} {
			require.Equal(t, raw(t, back, name), raw(t, got, name))
		}
	}
}

// Whatever the budget, the number of tokens and of sinks: a file that comes back, finite, in the bytes asked for and
// better the more they are; or an error that states the least possible.
func TestArchive_AnyBudget(t *testing.T) {
	be := openCPU(t)
	p := calibrated(t, small(t))
	counts := []int{1, 2, 5, 8, 15, 17, 33, 64, 96, 300}
	if testing.Short() {
		counts = []int{1, 8, 15, 96}
	}
	met, refused := 0, 0
	for _, tokens := range counts {
		src := synthetic(t, shape{4, 2, tokens, 64, 32, quant.Float16, true}, quanttest.Gaussian, nil)
		want := [2][]byte{raw(t, src, "layers.2.k"), raw(t, src, "layers.2.v")}
		for _, more := range []string{"", " sinks=1000", " chunks=4"} {
			for _, with := range []*profile.Profile{nil, p} {
				last := math.Inf(1)
				for _, bits := range []float64{0.05, 0.3, 1, 2, 4.3, 8, 16, 19, 24, 32, 64} {
					name := fmt.Sprintf("%d tokens, bits=%g%s, profile %v", tokens, bits, more, with != nil)
					cfg := config(t, fmt.Sprintf("bits=%g form=archive%s", bits, more))
					cfg.Profile = with
					var file bytes.Buffer
					_, err := kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &cfg, Backend: be})
					budget := int64(bits * float64(tokens*2*(64+32)) / 8)
					if err != nil {
						require.ErrorIs(t, err, quant.ErrBudget, name)
						require.ErrorContains(t, err, fmt.Sprintf("%d bytes", budget), name)
						require.ErrorContains(t, err, "the least possible is", name)
						require.True(t, math.IsInf(last, 1), "%s: less was enough", name)
						refused++
						continue
					}
					require.LessOrEqual(t, int64(file.Len()), budget, name)
					back := restored(t, file.Bytes(), profilesOf(with)...)
					var e, energy float64
					for side, tensor := range []string{"layers.2.k", "layers.2.v"} {
						got := raw(t, back, tensor)
						for i := 0; i < len(got); i += 2 {
							x := float64(quant.F16ToF32(binary.LittleEndian.Uint16(want[side][i:])))
							y := float64(quant.F16ToF32(binary.LittleEndian.Uint16(got[i:])))
							e, energy = e+(x-y)*(x-y), energy+x*x
						}
					}
					e /= energy
					require.LessOrEqual(t, e, 1.5, name)
					// Twice the bytes may go to other tokens, but never to naught.
					require.LessOrEqual(t, e, 1.3*last+1e-6, "%s: worse than with less", name)
					if bits >= 24 && tokens >= 64 {
						require.Less(t, e, 1e-6, name)
					}
					last = e
					met++
				}
			}
		}
	}
	require.Greater(t, met, 50)
	require.Greater(t, refused, 20)
}

func TestArchive_BudgetsAreMet(t *testing.T) {
	src, be := small(t), openCPU(t)
	p := calibrated(t, src)
	last := math.Inf(1)
	for _, bits := range []float64{0.8, 1.5, 3, 6} {
		for _, with := range []*profile.Profile{nil, p} {
			cfg := config(t, fmt.Sprintf("bits=%g form=archive", bits))
			cfg.Profile = with
			b, res := compress(t, src, be, cfg)
			require.Equal(t, int64(len(b)), res.Bytes)
			require.LessOrEqual(t, res.BitsPerValue, bits)
			require.Greater(t, res.BitsPerValue, 0.985*bits, "with a profile: %v", with != nil)
			s := res.Sections
			require.Equal(t, res.Bytes, s.Header+s.Payload+s.Tables+s.Side+s.Index)
			if with == nil {
				continue
			}
			cmp, err := report.Compare(context.Background(), reader(t, b), src, report.Options{Backend: be, Profiles: []*profile.Profile{p}})
			require.NoError(t, err)
			require.Less(t, cmp.KError+cmp.VError, last)
			last = cmp.KError + cmp.VError
		}
	}
	_, err := kvfile.Compress(context.Background(), src, &bytes.Buffer{}, kvfile.Options{Config: settings(t, "bytes=900 form=archive"), Backend: be})
	require.ErrorIs(t, err, quant.ErrBudget)
}

// Damage that no checksum tells, because the file was written so, is found by decoding, and all of it
// is told.
func TestVerifyRows(t *testing.T) {
	src, be := small(t), openCPU(t)
	good, _ := compress(t, src, be, config(t, "bits=2 form=archive segment=128"))
	r := reader(t, good)
	ctx := context.Background()
	require.NoError(t, kvfile.VerifyRows(ctx, r, kvfile.Options{}))
	var b bytes.Buffer
	w, err := container.NewWriter(&b, r.Header())
	require.NoError(t, err)
	infos, err := r.Auxes()
	require.NoError(t, err)
	for _, i := range infos {
		a, err := r.ReadAux(i.Name)
		require.NoError(t, err)
		require.NoError(t, w.WriteAux(a))
	}
	for i := range r.Records() {
		rec, err := r.ReadRecord(i)
		require.NoError(t, err)
		if i == 3 || i == 5 {
			rec.Archive[len(rec.Archive)*3/4] ^= 1
		}
		require.NoError(t, w.WriteRecord(rec))
	}
	require.NoError(t, w.Close())
	bad := reader(t, b.Bytes())
	require.NoError(t, kvfile.Verify(ctx, bad, kvfile.Options{}), "the checksums are right")
	err = kvfile.VerifyRows(ctx, bad, kvfile.Options{})
	require.ErrorIs(t, err, quant.ErrCorrupt)
	all := err.(interface{ Unwrap() []error }).Unwrap()
	require.Len(t, all, 2)
	for i, at := range []int{3, 5} {
		var c *container.CorruptError
		require.ErrorAs(t, all[i], &c)
		require.Equal(t, "record", c.Section)
		require.Equal(t, r.Records()[at].Layer, c.Layer)
		require.Equal(t, r.Records()[at].Segment, c.Segment)
	}

	p := calibrated(t, src)
	cfg := config(t, "bits=2 form=archive")
	cfg.Profile = p
	b2, _ := compress(t, src, be, cfg)
	var missing *profile.MissingError
	require.ErrorAs(t, kvfile.VerifyRows(ctx, reader(t, b2), kvfile.Options{}), &missing)
	require.NoError(t, kvfile.VerifyRows(ctx, reader(t, b2), kvfile.Options{Profiles: []*profile.Profile{p}}))
}

func TestArchive_BeatsHotOnTheCapture(t *testing.T) {
	long(t)
	src, be := open(t, kvFile), openCPU(t)
	hot, _ := compress(t, src, be, config(t, "bits=2.75"))
	cold, res := compress(t, src, be, config(t, "bits=2.75 form=archive"))
	require.LessOrEqual(t, res.BitsPerValue, 2.75)
	a, b := measure(t, src, be, hot), measure(t, src, be, cold)
	t.Logf("error of K, V, future attention: hot %.4f %.4f %.5f, archive %.4f %.4f %.5f", a.KError, a.VError,
		a.FutureError, b.KError, b.VError, b.FutureError)
	require.Less(t, b.KError, a.KError)
	require.Less(t, b.VError, a.VError)
	require.Less(t, b.FutureError, a.FutureError)
	back := restored(t, cold)
	require.Equal(t, raw(t, src, "tokens"), raw(t, back, "tokens"))
	require.False(t, holds(back, src.Info().Layers[0], "bias"))
}

// An archive has the row bias of its steps where it is asked for.
func TestArchive_RowBias(t *testing.T) {
	src, be := small(t), openCPU(t)
	for _, on := range []bool{false, true} {
		b, _ := compress(t, src, be, config(t, fmt.Sprintf("bits=2 form=archive row-bias=%v", on)))
		require.Equal(t, on, holds(restored(t, b), src.Info().Layers[0], "bias"))
	}
}

func TestArchive_Profiles(t *testing.T) {
	src, be := small(t), openCPU(t)
	p := calibrated(t, src)
	cfg := config(t, "bits=2 form=archive")
	cfg.Profile = p
	b, _ := compress(t, src, be, cfg)
	require.Equal(t, cold.ProfileID(p, &cold.Settings{}), profile.ID(reader(t, b).Header().Profile))

	var missing *profile.MissingError
	for _, given := range [][]*profile.Profile{nil, {calibrated(t, synthetic(t,
		shape{4, 2, 300, 64, 32, quant.Float16, true}, quanttest.HeavyTails, nil))}} {
		_, err := kvfile.Decompress(context.Background(), reader(t, b), &memory{}, kvfile.Options{Profiles: given})
		require.ErrorAs(t, err, &missing)
		require.ErrorIs(t, err, quant.ErrUnavailable)
		require.Equal(t, cold.ProfileID(p, &cold.Settings{}), missing.ID)
	}
	// A profile that learnt something else since still decodes.
	tuned, err := p.WithParams(profile.Params{"sinks": "4"}, nil)
	require.NoError(t, err)
	require.NotEqual(t, p.ID(), tuned.ID())
	require.Equal(t, raw(t, restored(t, b, p), "layers.2.k"), raw(t, restored(t, b, tuned), "layers.2.k"))

	// So does one that has another name of its model since.
	named, err := p.Named("other name")
	require.NoError(t, err)
	require.NotEqual(t, cold.ProfileID(p, &cold.Settings{}), cold.ProfileID(named, &cold.Settings{}))
	require.Equal(t, raw(t, restored(t, b, p), "layers.2.k"), raw(t, restored(t, b, named), "layers.2.k"))

	other := synthetic(t, shape{4, 2, 100, 32, 32, quant.Float16, true}, quanttest.Gaussian, nil)
	_, err = kvfile.Compress(context.Background(), other, &bytes.Buffer{}, kvfile.Options{Config: &cfg, Backend: be})
	require.ErrorIs(t, err, quant.ErrShape, "a profile of another model")
}

func TestArchive_Lossless(t *testing.T) {
	be := openCPU(t)
	for _, dt := range []quant.DType{quant.Float16, quant.BFloat16, quant.Float32} {
		src := synthetic(t, shape{2, 1, 90, 64, 64, dt, false}, quanttest.HeavyTails, func(k quant.Rows) {
			k.Row(7)[3] = math.Float32frombits(0x7fc12345)
			k.Row(8)[0] = float32(math.Inf(-1))
		})
		b, res := compress(t, src, be, config(t, "lossless=true form=archive"))
		require.Less(t, res.Bytes, src.Info().Size)
		back := restored(t, b)
		for _, name := range []string{"layers.2.k", "layers.2.v", "tokens"} {
			require.Equal(t, raw(t, src, name), raw(t, back, name), name)
		}
	}
}

func TestArchive_Nonfinite(t *testing.T) {
	be := openCPU(t)
	src := synthetic(t, shape{2, 1, 700, 64, 64, quant.Float16, true}, quanttest.Gaussian,
		func(k quant.Rows) { k.Row(600)[3] = float32(math.NaN()) })
	cfg := config(t, "bits=8 form=archive segment=128")
	_, err := kvfile.Compress(context.Background(), src, &bytes.Buffer{}, kvfile.Options{Config: &cfg, Backend: be})
	require.ErrorIs(t, err, quant.ErrRange)
	require.ErrorContains(t, err, "layers.2.k head 0 token 600 ")
	cfg.AllowNonfinite = true
	b, _ := compress(t, src, be, cfg)
	back := restored(t, b)
	k, want := raw(t, back, "layers.2.k"), raw(t, src, "layers.2.k")
	require.Equal(t, want[512*128:640*128], k[512*128:640*128], "the segment with the NaN is kept exactly")
	require.NotEqual(t, want, k)
}

func TestArchive_Activations(t *testing.T) {
	if testing.Short() {
		t.Skip("fits many files")
	}
	be := openCPU(t)
	src := open(t, "../../testdata/minilm-base-4096x384.npy")
	b, res := compress(t, src, be, config(t, "bits=2 form=archive"))
	require.LessOrEqual(t, res.BitsPerValue, 2.0)
	cmp := measure(t, src, be, b)
	t.Logf("%.3f bits/value: error %.4f", res.BitsPerValue, cmp.KError)
	require.Less(t, cmp.KError, 0.1)
	back := restored(t, b)
	require.Equal(t, "npy", back.Info().Format)
	require.Equal(t, src.ActTensors()[0].Shape, back.ActTensors()[0].Shape)
}

// The same file comes out whatever the number of workers.
func TestArchive_SameWithAnyWorkers(t *testing.T) {
	src, be := small(t), openCPU(t)
	cfg := config(t, "bits=2 form=archive segment=64")
	b, _ := compress(t, src, be, cfg)
	old := runtime.GOMAXPROCS(1)
	one, _ := compress(t, src, be, cfg)
	runtime.GOMAXPROCS(old)
	require.True(t, bytes.Equal(b, one))
}

// A file of few records meets any budget that can be met. Its components are all alike, and so
// are no longer coded all at once as the step grows: few bytes in between can be had.
func TestArchive_EveryBudget(t *testing.T) {
	src, be := small(t), openCPU(t)
	step := 1.09
	if testing.Short() {
		step = 2
	}
	for bits := 0.5; bits < 9; bits *= step {
		_, res := compress(t, src, be, config(t, fmt.Sprintf("bits=%g form=archive importance=none", bits)))
		require.LessOrEqual(t, res.BitsPerValue, bits)
		require.Greater(t, res.BitsPerValue, 0.975*bits)
	}
}

// A capture without tokens becomes an archive without records.
func TestArchive_NoTokens(t *testing.T) {
	src := synthetic(t, shape{4, 2, 0, 32, 32, quant.Float16, true}, quanttest.Gaussian, nil)
	b, _ := compress(t, src, openCPU(t), config(t, "bytes=100000 form=archive"))
	require.Empty(t, reader(t, b).Records())
	require.Equal(t, 0, restored(t, b).Info().Tokens)
}

// A file of many records meets its budget in one pass: near it, never above, and with rows that are
// kept exactly counted.
func TestArchive_ManyRecords(t *testing.T) {
	be := openCPU(t)
	src := synthetic(t, shape{4, 2, 2100, 32, 32, quant.Float16, true}, quanttest.Gaussian,
		func(k quant.Rows) { k.Row(1300)[3] = float32(math.NaN()) })
	for _, bits := range []float64{0.7, 2, 5} {
		cfg := config(t, fmt.Sprintf("bits=%g form=archive segment=64 allow-nonfinite=true", bits+1))
		b, res := compress(t, src, be, cfg)
		require.LessOrEqual(t, res.BitsPerValue, bits+1)
		require.Greater(t, res.BitsPerValue, 0.998*(bits+1))
		back := restored(t, b)
		want, got := raw(t, src, "layers.2.k"), raw(t, back, "layers.2.k")
		require.Equal(t, want[1300*64:1301*64], got[1300*64:1301*64])

		weights, err := kvfile.ArchiveWeights(context.Background(), reader(t, b))
		require.NoError(t, err)
		require.NotNil(t, weights)
	}
	_, err := kvfile.Compress(context.Background(), src, &bytes.Buffer{}, kvfile.Options{Config: settings(t, "bits=0.05 form=archive segment=64 allow-nonfinite=true"), Backend: be})
	require.ErrorIs(t, err, quant.ErrBudget)
}

// Any flipped bit is found; in a salvage it costs its record and no other.
func TestArchive_Damage(t *testing.T) {
	src, be := small(t), openCPU(t)
	good, _ := compress(t, src, be, config(t, "bits=2 form=archive segment=128"))
	whole := raw(t, restored(t, good), "layers.2.v")
	r := reader(t, good)
	step := 61
	if testing.Short() {
		step = 997
	}
	for at := 0; at < len(good); at += step {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 8)
		x, err := container.Open("flip", bytes.NewReader(bad), int64(len(bad)), container.Limits{})
		if err == nil {
			if _, err = kvfile.Decompress(context.Background(), x, &memory{}, kvfile.Options{}); err == nil {
				err = kvfile.Verify(context.Background(), x, kvfile.Options{})
			}
		}
		require.Error(t, err, "byte %d", at)
		require.True(t, errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrVersion) ||
			errors.Is(err, quant.ErrUnsupported) || errors.Is(err, quant.ErrTooLarge), "byte %d: %v", at, err)
	}
	for n := 0; n < len(good); n += 5 * step {
		_, err := container.Open("cut", bytes.NewReader(good[:n]), int64(n), container.Limits{})
		require.ErrorIs(t, err, quant.ErrCorrupt)
	}
	info := r.Records()[2]
	bad := bytes.Clone(good)
	bad[info.Offset+info.Length/2] ^= 4
	x, lost, err := container.Salvage("flip", bytes.NewReader(bad), int64(len(bad)), container.Limits{})
	require.NoError(t, err)
	require.Len(t, lost, 1)
	var m memory
	res, err := kvfile.Decompress(context.Background(), x, &m, kvfile.Options{Salvage: true})
	require.NoError(t, err)
	require.Len(t, res.Lost, 1)
	back, err := capture.New("back", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	got := raw(t, back, "layers.2.v")
	first, n := info.Segment*128*64, 128*64
	require.Equal(t, whole[:first], got[:first])
	require.Equal(t, make([]byte, n), got[first:first+n])
	require.Equal(t, whole[first+n:700*64], got[first+n:700*64])
}
