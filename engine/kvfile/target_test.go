// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func tryCompress(t testing.TB, src *capture.Source, cfg kvfile.Config) ([]byte, *kvfile.Result, error) {
	var file bytes.Buffer
	res, err := kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &cfg, Backend: openCPU(t)})
	return file.Bytes(), res, err
}

// TestCompress_LeastPossibleIsTrue: the budget that an error names can be met.
func TestCompress_LeastPossibleIsTrue(t *testing.T) {
	for _, form := range []string{"archive", "hot"} {
		for _, tokens := range []int{1, 2, 5, 8, 33, 300} {
			for _, dt := range []quant.DType{quant.Float16, quant.Float32} {
				src := synthetic(t, shape{4, 2, tokens, 64, 32, dt, true}, quanttest.Gaussian, nil)
				for _, bits := range []float64{0.01, 0.2, 1, 4, 9} {
					name := fmt.Sprintf("%s, %d tokens, %v, %g bits", form, tokens, dt, bits)
					cfg := config(t, fmt.Sprintf("bits=%g form=%s", bits, form))
					_, _, err := tryCompress(t, src, cfg)
					var over *kvfile.BudgetError
					if !errors.As(err, &over) {
						require.NoError(t, err, name)
						continue
					}
					cfg.Bits, cfg.Bytes = 0, over.Least
					b, _, err := tryCompress(t, src, cfg)
					require.NoError(t, err, "%s: the least possible, %d", name, over.Least)
					require.LessOrEqual(t, int64(len(b)), over.Least, name)
				}
			}
		}
	}
}

// TestCompress_WishOfFewTokens: a target that nobody set does not refuse a short capture.
func TestCompress_WishOfFewTokens(t *testing.T) {
	for _, form := range []string{"archive", "hot"} {
		for tokens := 1; tokens <= 8; tokens++ {
			src := synthetic(t, shape{4, 2, tokens, 64, 32, quant.Float16, true}, quanttest.Gaussian, nil)
			cfg := config(t, "bits=4.3 form="+form)
			_, _, err := tryCompress(t, src, cfg)
			require.ErrorIs(t, err, quant.ErrBudget, "%s, %d tokens", form, tokens)
			cfg.Soft = true
			b, _, err := tryCompress(t, src, cfg)
			require.NoError(t, err, "%s, %d tokens", form, tokens)
			if back := restored(t, b); form == "archive" {
				require.True(t, bytes.Equal(raw(t, src, "layers.2.k"), raw(t, back, "layers.2.k")))
			}
		}
	}
}

// TestArchive_BudgetForEveryBit: from the size on that every bit takes, every bit is kept.
func TestArchive_BudgetForEveryBit(t *testing.T) {
	for _, dt := range []quant.DType{quant.Float16, quant.BFloat16, quant.Float32} {
		src := synthetic(t, shape{4, 2, 300, 64, 32, dt, true}, quanttest.Gaussian, nil)
		exact, res, err := tryCompress(t, src, config(t, "lossless=true form=archive"))
		require.NoError(t, err)
		for _, more := range []int64{0, 1, 5000, 1 << 30} {
			cfg := config(t, "bits=1 form=archive")
			cfg.Bits, cfg.Bytes = 0, res.Bytes+more
			b, _, err := tryCompress(t, src, cfg)
			require.NoError(t, err)
			require.True(t, bytes.Equal(exact, b), "%v, %d bytes more", dt, more)
		}
		cfg := config(t, "bits=1 form=archive")
		cfg.Bits, cfg.Bytes = 0, res.Bytes-1
		b, _, err := tryCompress(t, src, cfg)
		require.NoError(t, err)
		require.Less(t, int64(len(b)), res.Bytes)
	}
}

// TestCompress_StopsWhereBytesBuyNothing: rows of zeros, of constants and of few different rows take what they
// need, not what they may.
func TestCompress_StopsWhereBytesBuyNothing(t *testing.T) {
	const rows, dim = 2000, 32
	rng := rand.New(rand.NewPCG(5, 6))
	distinct := make([]float64, dim)
	for i := range distinct {
		distinct[i] = rng.NormFloat64()
	}
	for name, value := range map[string]func(r, i int) float64{
		"zeros":      func(r, i int) float64 { return 0 },
		"a constant": func(r, i int) float64 { return 0.1 },
		"columns":    func(r, i int) float64 { return distinct[i] },
		"two rows":   func(r, i int) float64 { return distinct[i] * float64(1-2*(r%2)) },
	} {
		x := make([]float64, rows*dim)
		for i := range x {
			x[i] = value(i/dim, i%dim)
		}
		for _, dt := range []quant.DType{quant.Float16, quant.Float32} {
			b, want, _ := stored(x, dt)
			src := rowsCapture(t, b, dt, rows, dim)
			for _, form := range []string{"archive", "hot"} {
				if form == "hot" && !strings.HasPrefix(name, "zero") {
					continue // hot form has no means; it takes the widest coding that the budget allows
				}
				file, res, err := tryCompress(t, src, config(t, "bits=6 form="+form))
				require.NoError(t, err, name)
				t.Log(name, dt, form, res.BitsPerValue)
				require.Less(t, res.BitsPerValue, 1.5, "%s, %v, %s", name, dt, form)
				require.True(t, slices.Equal(want, valuesOf(t, restored(t, file), "x", dt)), "%s, %v, %s", name, dt, form)
			}
		}
	}
}

// TestCompress_EveryBudgetIsUsed: files in hot form take what they may, but for what plans cannot divide, at every
// budget. A search that gave up would fall to the smallest file.
func TestCompress_EveryBudgetIsUsed(t *testing.T) {
	src := synthetic(t, shape{2, 2, 700, 32, 32, quant.Float16, true}, quanttest.Gaussian, nil)
	budgets := 30
	if testing.Short() {
		budgets = 12
	}
	for i := range budgets {
		cfg := config(t, "bits=1 form=hot")
		cfg.Bits, cfg.Bytes = 0, int64(60000+13*i)
		b, _, err := tryCompress(t, src, cfg)
		require.NoError(t, err)
		require.LessOrEqual(t, int64(len(b)), cfg.Bytes)
		require.Greater(t, int64(len(b)), cfg.Bytes-cfg.Bytes/50, "%d bytes", cfg.Bytes)
	}
}
