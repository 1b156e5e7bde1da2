// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu/internal/slab"
	"github.com/kvist-project/kvist/quant"
)

func TestOpen_ISA(t *testing.T) {
	t.Setenv(EnvISA, "")
	b, err := Open(Options{Reason: "no better one"})
	require.NoError(t, err)
	require.Equal(t, ISAs()[len(ISAs())-1], b.Caps().ISA, "the best there is")
	require.Equal(t, "no better one", b.Caps().Reason)
	require.Positive(t, b.Caps().Workers)
	require.NoError(t, b.Close())

	_, err = Open(Options{ISA: "sve9"})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, `Options.ISA "sve9"`)
	require.ErrorContains(t, err, "generic", "names what there is")
	for _, isa := range knownISAs {
		b, err := Open(Options{ISA: isa})
		if !slices.Contains(ISAs(), isa) {
			require.ErrorIs(t, err, quant.ErrUnavailable, isa)
			continue
		}
		require.NoError(t, err, isa)
		require.Equal(t, isa, b.Caps().ISA)
		require.NoError(t, b.Close())
	}
}

func TestOpen_Environment(t *testing.T) {
	t.Setenv(EnvISA, "mmx")
	_, err := Open(Options{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, `KVIST_CPU "mmx"`)
	b, err := Open(Options{ISA: "generic"})
	require.NoError(t, err, "Options go before the environment")
	require.NoError(t, b.Close())
	t.Setenv(EnvISA, "generic")
	b, err = Open(Options{})
	require.NoError(t, err)
	require.NoError(t, b.Close())
}

func TestOpen_Numbers(t *testing.T) {
	for _, o := range []Options{{Workers: -1}, {Workers: MaxWorkers + 1}, {Memory: -1}} {
		_, err := Open(o)
		require.ErrorIs(t, err, quant.ErrShape)
	}
}

func TestAlloc_CountsLiveBytesAndHoldsTheLimit(t *testing.T) {
	b, err := Open(Options{Memory: 1000})
	require.NoError(t, err)
	require.Equal(t, int64(1000), b.Caps().Memory)
	one, err := b.Alloc(600)
	require.NoError(t, err)
	_, err = b.Alloc(401)
	require.ErrorIs(t, err, quant.ErrTooLarge)
	two, err := b.Alloc(400)
	require.NoError(t, err)
	require.Equal(t, int64(1000), b.LiveBytes())
	require.NoError(t, one.Free())
	require.ErrorIs(t, one.Free(), quant.ErrClosed)
	require.Equal(t, int64(400), b.LiveBytes(), "a second Free counts nothing")
	require.NoError(t, b.Close())
	require.Zero(t, b.LiveBytes())
	require.ErrorIs(t, two.Free(), quant.ErrClosed)
	require.Zero(t, b.LiveBytes())
}

func TestAlloc_Aligned(t *testing.T) {
	b, err := Open(Options{})
	require.NoError(t, err)
	defer b.Close()
	for n := int64(0); n < 300; n += 7 {
		buf, err := b.Alloc(n)
		require.NoError(t, err)
		p, err := buf.(*buffer).bytes(0, n)
		require.NoError(t, err)
		require.Len(t, p, int(n))
		if n > 0 {
			require.Zero(t, uintptr(unsafe.Pointer(&p[0]))%slab.Align)
		}
	}
}
