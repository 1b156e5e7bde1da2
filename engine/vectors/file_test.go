// SPDX-License-Identifier: Apache-2.0

package vectors_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

func file(t testing.TB, x *vectors.Index) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, x.Write(&b))
	return b.Bytes()
}

// small are files of every kind.
func small(t testing.TB) [][]byte {
	t.Helper()
	const dim = 20
	var files [][]byte
	for _, x := range []*vectors.Index{calibrated(t, dim, vectors.Options{Bytes: 14, Metric: vectors.L2}),
		oblivious(t, dim, 1, vectors.InnerProduct)} {
		files = append(files, file(t, x))
		require.NoError(t, x.Add(context.Background(), []uint64{9, 4, 5, 6, 7, 8, 1, 2, 3, 11, 12, 13, 14, 15, 16, 17, 18},
			clustered(17, dim, 1)))
		files = append(files, file(t, x))
	}
	return files
}

// The bytes of codes and shared tensors are what Stats says; the rest is small.
func TestFile_Size(t *testing.T) {
	const dim, n = 128, 2000
	x := calibrated(t, dim, vectors.Options{Bytes: 40})
	require.NoError(t, x.Add(context.Background(), nil, clustered(n, dim, 1)))
	st := x.Stats()
	require.Zero(t, st.IDBytes)
	require.InDelta(t, n*st.RowBytes+st.SharedBytes, len(file(t, x)), 1400)
}

// A file damaged at any byte, or cut anywhere, is refused with a typed error.
func TestFile_Damage(t *testing.T) {
	for _, whole := range small(t) {
		step := 1
		if testing.Short() {
			step = 41
		}
		for i := 0; i < len(whole); i += step {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			if _, err := vectors.Read("x", b, vectors.LoadOptions{}); err == nil || !typed(err) {
				t.Fatalf("byte %d of %d: %v", i, len(whole), err)
			}
			if _, err := vectors.Read("x", whole[:i], vectors.LoadOptions{}); err == nil || !typed(err) {
				t.Fatalf("cut at %d of %d: %v", i, len(whole), err)
			}
		}
	}
}

func typed(err error) bool {
	return errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrUnsupported) ||
		errors.Is(err, quant.ErrVersion) || errors.Is(err, quant.ErrTooLarge)
}

// Files whose checksums are right and whose tensors are not.
func TestFile_Forged(t *testing.T) {
	if testing.Short() {
		t.Skip("600 forged files")
	}
	forge := func(b []byte, change func(a *container.Aux) bool) []byte {
		r, err := container.OpenVectors("x", bytes.NewReader(b), int64(len(b)), container.Limits{})
		require.NoError(t, err)
		all, err := r.ReadAllAux(0)
		require.NoError(t, err)
		var out bytes.Buffer
		w, err := container.NewWriter(&out, r.Header())
		require.NoError(t, err)
		for _, a := range all {
			a.Plain = true
			if change(a) {
				require.NoError(t, w.WriteAux(a))
			}
		}
		require.NoError(t, w.Close())
		return out.Bytes()
	}
	for _, whole := range small(t) {
		_, err := vectors.Read("x", forge(whole, func(*container.Aux) bool { return true }), vectors.LoadOptions{})
		require.NoError(t, err)
		r, err := container.OpenVectors("x", bytes.NewReader(whole), int64(len(whole)), container.Limits{})
		require.NoError(t, err)
		all, err := r.ReadAllAux(0)
		require.NoError(t, err)
		for _, victim := range all {
			missing := forge(whole, func(a *container.Aux) bool { return a.Name != victim.Name })
			_, err := vectors.Read("x", missing, vectors.LoadOptions{})
			require.ErrorIs(t, err, quant.ErrCorrupt, "without %s", victim.Name)
			for i := range min(len(victim.Data), 128) {
				for _, v := range []byte{0, 0x7f, 0xff} {
					b := forge(whole, func(a *container.Aux) bool {
						if a.Name == victim.Name {
							a.Data[i] = v
						}
						return true
					})
					x, err := vectors.Read("x", b, vectors.LoadOptions{})
					if err != nil {
						require.True(t, typed(err), "%s byte %d: %v", victim.Name, i, err)
						continue
					}
					// Codes may be anything: a search must end.
					_, err = x.Search(context.Background(), clustered(1, 20, 1), 3, vectors.SearchOptions{})
					require.NoError(t, err)
				}
			}
		}
	}
}

func TestFile_OtherKinds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.kvist")
	require.NoError(t, os.WriteFile(path, small(t)[1], 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	_, err = container.Open(path, f, info.Size(), container.Limits{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, "index of vectors")
	_, err = vectors.Load(path, vectors.LoadOptions{MaxBytes: 100})
	require.ErrorIs(t, err, quant.ErrTooLarge)
	_, err = vectors.Open(filepath.Join(t.TempDir(), "none"), vectors.LoadOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = vectors.Load("../../testdata/smollm2.kvprofile", vectors.LoadOptions{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
}

// What is written can be read, however far the rows are from the calibration; rows too short to be are refused.
func TestFile_FarRows(t *testing.T) {
	const dim = 20
	scaled := func(by float32) quant.Rows {
		rows := clustered(100, dim, 1)
		for i := range rows.Data {
			rows.Data[i] *= by
		}
		return rows
	}
	for _, m := range []vectors.Metric{vectors.InnerProduct, vectors.L2} {
		x, err := vectors.Calibrate(scaled(1e-8), vectors.Options{Bytes: 14, Metric: m})
		require.NoError(t, err)
		require.NoError(t, x.Add(context.Background(), nil, scaled(1e12)))
		y, err := vectors.Read("far", file(t, x), vectors.LoadOptions{})
		require.NoError(t, err)
		require.Equal(t, x.Stats(), y.Stats())
		_, err = vectors.Calibrate(scaled(1e-40), vectors.Options{Bytes: 14, Metric: m})
		require.ErrorIs(t, err, quant.ErrRange)
	}
}
