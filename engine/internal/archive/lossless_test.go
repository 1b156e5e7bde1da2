// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
)

func TestLossless_AnyBytesComeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{2, 4} {
		for _, n := range []int{0, 1, 2, 3, 64, 333} {
			for _, dim := range []int{1, 3, 64} {
				lanes := make([]LosslessLane, 2)
				back := make([]LosslessLane, 2)
				for i := range lanes {
					lanes[i] = LosslessLane{Dim: dim, Data: make([]byte, n*dim*size)}
					for j := range lanes[i].Data {
						lanes[i].Data[j] = byte(rng.Uint32() >> (i * 5 % 8))
					}
					back[i] = LosslessLane{Dim: dim, Data: make([]byte, n*dim*size)}
				}
				b := EncodeLossless([]byte{}, lanes, size)
				require.NoError(t, DecodeLossless(back, b, size))
				require.Equal(t, lanes, back)
				sizes, err := LaneSizes(b, 2)
				require.NoError(t, err)
				require.Equal(t, int64(len(b)-2-8), sizes[0]+sizes[1])
			}
		}
	}
}

// TestLossless_BeatsBytePlanesAndZstd holds the claim on the capture in testdata.
func TestLossless_BeatsBytePlanesAndZstd(t *testing.T) {
	zstd, err := exec.LookPath("zstd")
	if err != nil {
		t.Skip("no zstd command to compare with")
	}
	src, err := capture.Open("../../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	defer src.Close()
	var planes [2][]byte
	total := 0
	for _, l := range src.Info().Layers {
		var lanes []LosslessLane
		for h := range src.Info().Geometry.KVHeads {
			for _, p := range []capture.Part{capture.K, capture.V} {
				x, ok := src.KV(l, p)
				require.True(t, ok)
				raw := make([]byte, x.Rows()*x.RowBytes())
				require.NoError(t, x.Read(h, 0, x.Rows(), raw))
				lanes = append(lanes, LosslessLane{x.Dim(), raw})
				for i, b := range raw {
					planes[i%2] = append(planes[i%2], b)
				}
			}
		}
		total += len(EncodeLossless(nil, lanes, 2))
	}
	path := filepath.Join(t.TempDir(), "planes")
	require.NoError(t, os.WriteFile(path, append(planes[1], planes[0]...), 0o600))
	require.NoError(t, exec.Command(zstd, "-q", "-19", path).Run())
	st, err := os.Stat(path + ".zst")
	require.NoError(t, err)
	t.Logf("lossless %d bytes, byte planes and zstd -19 %d, raw %d", total, st.Size(), 2*len(planes[0]))
	require.Less(t, int64(total), st.Size())
}
