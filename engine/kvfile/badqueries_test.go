// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/weigh"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// badQueries is a capture of float32 with values of some queries of query head 0, or of all heads, replaced.
func badQueries(t testing.TB, tokens int, value float32, all bool, at ...int) *capture.Source {
	src := synthetic(t, shape{4, 2, tokens, 64, 64, quant.Float32, true}, quanttest.Gaussian, nil)
	return edited(t, src, func(name string, data []byte) []byte {
		if !isQuery(name) {
			return data
		}
		for h := range 4 {
			for _, p := range at {
				if h == 0 || all {
					binary.LittleEndian.PutUint32(data[4*64*(h*tokens+p)+4*(p%64):], math.Float32bits(value))
				}
			}
		}
		return data
	})
}

// badForms are ways to compress that look at queries.
var badForms = []string{"bits=6", "bits=6 form=archive", "bits=7 importance=default,expected=0.5 levels=full",
	"bits=6 importance=relevance=1,mix=0"}

// roomy gives short captures a budget that they can meet; archives of a few tokens keep every bit then.
func roomy(cfg kvfile.Config, tokens int) kvfile.Config {
	switch {
	case tokens < 20:
		cfg.Bits, cfg.Bytes = 0, 1<<20
	case tokens < 100:
		cfg.Bits = 18
	}
	return cfg
}

// Whatever the length of the capture, and wherever, in however many heads and how many of its queries are not
// finite: it is compressed, and it is said what was left out.
func TestCompress_BadQueries(t *testing.T) {
	be := openCPU(t)
	lengths := []int{1, 2, 7, 37, 64, 65, 68, 100, 128, 150, 192}
	if testing.Short() {
		lengths = []int{1, 65, 100, 150}
	}
	values := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))}
	for _, tokens := range lengths {
		for i, at := range []int{0, tokens / 3, tokens / 2, tokens - 1} {
			for j, form := range badForms {
				all := (i+j)%2 == 0
				src := badQueries(t, tokens, values[i%3], all, at, (at+tokens/2)%tokens)
				cfg := roomy(config(t, form), tokens)
				name := fmt.Sprintf("%d tokens, %s, bad %d in all heads %t", tokens, form, at, all)
				var file bytes.Buffer
				res, err := kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &cfg, Backend: be})
				require.NoError(t, err, name)
				require.Less(t, nmse(t, src, decompress(t, file.Bytes()), 2, capture.K, 0), 0.02, name)
				if tokens < 20 && cfg.Form == kvfile.FormArchive {
					continue
				}
				want := 1
				if all {
					want = 2
				}
				if strings.Contains(form, "mix=0") && max(at, (at+tokens/2)%tokens) < tokens-64 {
					want = 0 // before the window that counts
				}
				require.Equal(t, want, res.Importance.Skipped, name)
				require.Equal(t, 2, res.Importance.Heads, name)
				require.Equal(t, 2, res.Prices.Heads, name)
			}
		}
	}
}

// A capture of which no query is finite is compressed to the file of one without queries, and that is said.
func TestCompress_NoQueryIsFinite(t *testing.T) {
	be := openCPU(t)
	for _, tokens := range []int{1, 40, 100, 150, 300} {
		every := make([]int, tokens)
		for i := range every {
			every[i] = i
		}
		bad := badQueries(t, tokens, float32(math.Inf(1)), true, every...)
		none := edited(t, bad, func(name string, data []byte) []byte {
			if isQuery(name) {
				return nil
			}
			return data
		})
		for _, form := range badForms {
			name := fmt.Sprintf("%d tokens, %s", tokens, form)
			cfg := roomy(config(t, form), tokens)
			want, wantRes := compress(t, none, be, cfg)
			got, res := compress(t, bad, be, cfg)
			require.True(t, bytes.Equal(want, got), name)
			if tokens < 20 && cfg.Form == kvfile.FormArchive {
				continue
			}
			require.Equal(t, weigh.Use{Profile: cfg.Importance, Heads: 2, Skipped: 2, Unweighed: 2,
				Reason: res.Importance.Reason}, res.Importance, name)
			require.Contains(t, res.Importance.Reason, "NaN or Inf", name)
			require.Contains(t, wantRes.Importance.Reason, "no queries", name)
			require.Equal(t, 2, res.Prices.StandIn, name)
			require.Equal(t, 2, wantRes.Prices.StandIn, name)
			require.Contains(t, wantRes.Prices.Reason, "no queries", name)
		}
	}
}

// Queries that are finite, but so long that scores or their squares are not, cost the measures made with them and
// not the file: it can be read.
func TestCompress_HugeQueries(t *testing.T) {
	be := openCPU(t)
	for _, value := range []float32{3e38, -1e25, 1e19, 1e-30} {
		for _, tokens := range []int{1, 65, 150, 700} {
			for _, form := range badForms {
				src := badQueries(t, tokens, value, true, tokens/2, tokens-1)
				cfg := roomy(config(t, form), tokens)
				b, _ := compress(t, src, be, cfg)
				name := fmt.Sprintf("%g, %d tokens, %s", value, tokens, form)
				back := decompress(t, b)
				for head := range 2 {
					// Tokens that get no attention are worth next to nothing, so this is about rows that are no numbers.
					require.Less(t, nmse(t, src, back, 2, capture.K, head), 1.0, name)
					require.Less(t, nmse(t, src, back, 2, capture.V, head), 1.0, name)
				}
			}
		}
	}
}

// A profile is not calibrated on what is no number, and the tensor is named.
func TestCalibrate_NotFinite(t *testing.T) {
	be, clean := openCPU(t), small(t)
	for _, tensor := range []string{"layers.2.q", "layers.2.k", "layers.2.v"} {
		src := edited(t, clean, func(name string, data []byte) []byte {
			if name == tensor {
				binary.LittleEndian.PutUint16(data[2*650*32:], 0x7e00)
			}
			return data
		})
		_, err := tune.Calibrate(context.Background(), []*capture.Source{src}, be, nil, nil)
		require.ErrorIs(t, err, quant.ErrRange, tensor)
		require.ErrorContains(t, err, tensor)
	}
}
