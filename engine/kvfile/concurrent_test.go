// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
)

// firstTokens is the capture of the first n tokens of some layers, with the same tokens after them.
func firstTokens(t testing.TB, src *capture.Source, n int64, layers ...int) *capture.Source {
	t.Helper()
	var decls []capture.Decl
	rows := map[string][]byte{}
	for _, x := range src.Tensors() {
		var layer int
		if at, _ := fmt.Sscanf(x.Name, "layers.%d.", &layer); at == 1 && !slices.Contains(layers, layer) {
			continue
		}
		at := max(0, len(x.Shape)-2) // of the tokens
		shape := slices.Clone(x.Shape)
		if !strings.HasSuffix(x.Name, "_next") {
			shape[at] = n
		}
		data := make([]byte, x.Bytes)
		require.NoError(t, src.ReadAt(x.Name, 0, data))
		heads := int64(1)
		if at > 0 {
			heads = x.Shape[0]
		}
		of := x.Bytes / heads
		for h := range heads {
			rows[x.Name] = append(rows[x.Name], data[h*of:h*of+of/x.Shape[at]*shape[at]]...)
		}
		decls = append(decls, capture.Decl{Name: x.Name, DTypeName: x.DTypeName, Shape: shape})
	}
	var m memory
	w, err := capture.NewWriter(&m, decls, src.Info().Metadata)
	require.NoError(t, err)
	for name, data := range rows {
		require.NoError(t, w.WriteAt(name, 0, data))
	}
	require.NoError(t, w.Close())
	out, err := capture.New(src.Info().Name, bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	require.Equal(t, int(n), out.Info().Tokens)
	return out
}

// TestConcurrent_EveryCall runs every call beside all others, and beside itself: on one capture of many layers, one
// backend, one profile, one memo and one file. Each call gives what it gives alone. In the race run this test stands
// for most of the package: the detector sees every goroutine that a call starts.
func TestConcurrent_EveryCall(t *testing.T) {
	const tokens = 136
	ctx, be := context.Background(), openCPU(t)
	src := firstTokens(t, open(t, kvFile), tokens, 0, 29)
	p := calibrated(t, src)
	memo := &kvfile.Memo{}
	made := func(text string, with func(c *kvfile.Config)) func() (any, error) {
		return func() (any, error) {
			cfg := config(t, text)
			if with != nil {
				with(&cfg)
			}
			var b bytes.Buffer
			_, err := kvfile.Compress(ctx, src, &b, kvfile.Options{Config: &cfg, Backend: be})
			return b.Bytes(), err
		}
	}
	file := func(f func() (any, error)) []byte {
		b, err := f()
		require.NoError(t, err)
		return b.([]byte)
	}
	withProfile := func(c *kvfile.Config) { c.Profile = p }
	archived := made("bits=3 form=archive segment=64 chunks=3", withProfile)
	hot, cold := reader(t, file(made("bits=4 segment=64", nil))), reader(t, file(archived))
	o := kvfile.Options{Backend: be, Profiles: []*profile.Profile{p}, Force: true}
	path := filepath.Join(t.TempDir(), "cache.kvist")
	require.NoError(t, os.WriteFile(path, file(made("bits=4 segment=64", nil)), 0o600))
	packed, err := kvfile.Open(path, kvfile.Options{Backend: be})
	require.NoError(t, err)
	defer func() { require.NoError(t, packed.Close()) }()

	calls := map[string]func() (any, error){
		"archive":   archived,
		"own bases": made("bits=3 form=archive segment=64", nil),
		"every bit": made("lossless=true form=archive segment=64", nil),
		"hot":       made("bits=3 segment=64", nil),
		"levels":    made("bits=2.5 segment=64 levels=full+chunks+dropped", nil),
		"memo":      made("bits=5 segment=64", func(c *kvfile.Config) { c.Memo = memo }),
		"calibrate": func() (any, error) { return calibrated(t, src).ID(), nil },
		"compare": func() (any, error) {
			return report.Compare(ctx, hot, src, report.Options{Backend: be})
		},
		"explain": func() (any, error) { return kvfile.Explain(ctx, hot, src, kvfile.Options{Backend: be}) },
		"weights": func() (any, error) {
			w, err := kvfile.ArchiveWeights(ctx, cold, p)
			if err != nil {
				return nil, err
			}
			return w(src.Info().Layers[0], 0)
		},
		"truncate": func() (any, error) {
			var b bytes.Buffer
			_, err := kvfile.Truncate(ctx, cold, &b, cold.Size()*7/8, o)
			return b.Bytes(), err
		},
		"attend": func() (any, error) {
			g := packed.Geometry()
			q, out := make([]float32, 2*g.Heads*g.HeadDim), make([]float32, 2*g.Heads*g.HeadDimV)
			for i := range q {
				q[i] = float32(i%13) / 13
			}
			return out, packed.Attend(ctx, 0, q, out)
		},
	}
	for name, from := range map[string]*container.Reader{"hot": hot, "archive": cold} {
		calls["decompress "+name] = func() (any, error) {
			var m memory
			_, err := kvfile.Decompress(ctx, from, &m, o)
			return m.b, err
		}
		calls["verify "+name] = func() (any, error) { return nil, kvfile.VerifyRows(ctx, from, o) }
	}

	got := [2]map[string]any{{}, {}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for name, call := range calls {
		for i := range 2 {
			wg.Go(func() {
				x, err := call()
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				mu.Lock()
				defer mu.Unlock()
				got[i][name] = x
			})
		}
	}
	wg.Wait()
	for name, call := range calls {
		require.True(t, reflect.DeepEqual(got[0][name], got[1][name]), "%s gives one thing and another", name)
		if !testing.Short() {
			alone, err := call()
			require.NoError(t, err)
			require.True(t, reflect.DeepEqual(alone, got[0][name]), "%s gives something else alone", name)
		}
	}
}
