// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
)

func sealed(c store.Context, k store.Key, payload string) []byte {
	p := append(make([]byte, store.SealBytes), payload...)
	c.Seal(k, p)
	return p
}

func TestSeal(t *testing.T) {
	c := store.Context{Salt: []byte("s"), Model: "m", Profile: "p", Layout: "l", Version: 3}
	k := c.Key("segment", []byte("7"))
	p := sealed(c, k, "payload")
	got, err := c.Open(k, p)
	require.NoError(t, err)
	require.Equal(t, "payload", string(got))
	for i := range len(p) * 8 { // any bit
		q := append([]byte(nil), p...)
		q[i/8] ^= 1 << (i % 8)
		_, err := c.Open(k, q)
		require.Error(t, err, "bit %d", i)
	}
	for n := range len(p) {
		_, err := c.Open(k, p[:n])
		require.ErrorIs(t, err, quant.ErrCorrupt)
	}
	_, err = c.Open(k, append(p, 0))
	require.ErrorIs(t, err, quant.ErrCorrupt)
	_, err = c.Open(storetest.KeyOf(1), p)
	require.ErrorIs(t, err, quant.ErrCorrupt)
	require.ErrorContains(t, err, "another key")
}

// A record of another context says what differs, and is not taken for damage.
func TestSeal_Foreign(t *testing.T) {
	c := store.Context{Salt: []byte("s"), Model: "m", Profile: "p", Layout: "l", Version: 3}
	for what, change := range map[string]func(*store.Context){
		"salt": func(c *store.Context) { c.Salt = []byte("t") }, "model": func(c *store.Context) { c.Model = "n" },
		"profile": func(c *store.Context) { c.Profile = "" }, "layout": func(c *store.Context) { c.Layout = "k" },
		"version": func(c *store.Context) { c.Version = 4 },
	} {
		other := c
		change(&other)
		k := other.Key("segment", nil)
		_, err := c.Open(k, sealed(other, k, "x"))
		var foreign *store.ForeignError
		require.True(t, errors.As(err, &foreign), "%s: %v", what, err)
		require.Equal(t, what, foreign.What)
		require.NotErrorIs(t, err, quant.ErrCorrupt)
		require.ErrorContains(t, err, what)
		if what == "version" {
			require.ErrorIs(t, err, quant.ErrVersion)
		} else {
			require.ErrorIs(t, err, quant.ErrUnsupported)
			require.NotEqual(t, k, c.Key("segment", nil))
		}
	}
	require.NotEqual(t, c.Key("a", []byte("b")), c.Key("ab", nil))
}
