// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// TestKvist_Profile tests that a method can name a profile, uses its settings and factors, and has it
// in its name.
func TestKvist_Profile(t *testing.T) {
	f := smallFamily(t)
	g := f.c.Geometry
	p, err := profile.New("", g)
	require.NoError(t, err)
	p, err = p.WithParams(profile.Params{"sinks": "12", "importance": "none"}, nil)
	require.NoError(t, err)
	n := g.Layers * g.KVHeads
	s := &profile.Sensitivity{K: make([]float32, n), V: make([]float32, n)}
	for i := range n {
		s.K[i], s.V[i] = 1, 1
	}
	s.K[0], s.V[0] = 1<<12, 1<<12
	p, err = p.WithSensitivity(s, nil)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "m.kvprofile")
	require.NoError(t, p.Write(path, false))

	k := method(t, "kvist:3,profile="+path)
	require.Equal(t, "kvist:3,profile="+path, k.Name())
	require.Equal(t, 12, k.(Kvist).Config.Sinks)
	require.Equal(t, 4, method(t, "kvist:3,sinks=4,profile="+path).(Kvist).Config.Sinks,
		"what is named overrides")
	require.Equal(t, "kvist:3,sinks=4,profile="+path,
		method(t, "kvist:sinks=4,bits=3,profile="+path).Name())

	with := compress(t, k, f.c)
	without := compress(t, method(t, "kvist:3,sinks=12,importance=none"), f.c)
	e := func(c *Cache) (sum float64) {
		rows := len(f.c.Tokens) * g.HeadDim
		for i, x := range f.c.Layers[0].K[:rows] {
			d := float64(x - c.Layers[0].K[i])
			sum += d * d
		}
		return sum
	}
	require.Less(t, e(with), e(without)/2, "head 0 of layer 0 got the bits")

	for _, bad := range []string{"kvist:3,profile=" + path + ",profile=" + path,
		"kvist:3,profile=" + path + ".none", "kvist:profile=" + path} {
		_, err := ByName(bad)
		require.Error(t, err, bad)
	}
	_, err = ByName("kvist:profile=" + path + ",bits=-1")
	require.ErrorIs(t, err, quant.ErrShape)
}
