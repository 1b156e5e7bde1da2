// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// all keeps so many refinements of every stream.
func all(c *Contents, refinements int) *Keep {
	k := &Keep{Lanes: slices.Repeat([]bool{true}, len(c.Lanes))}
	if len(c.Refined) > 0 {
		k.Refined = slices.Repeat([]int{refinements}, len(c.Refined[0]))
	}
	return k
}

// squaredSteps returns the squared error of decoded rows, in squared steps of their tokens.
func squaredSteps(t *testing.T, c *Codec, seg *Segment, rows [][]float32) (sum float64) {
	want, err := c.Prepare(clone(seg))
	require.NoError(t, err)
	got := clone(seg)
	got.Rows = nil
	for _, r := range rows {
		got.Rows = append(got.Rows, slices.Clone(r))
	}
	have, err := c.Prepare(got)
	require.NoError(t, err)
	for i := range want.y {
		_, steps := c.lane(want.seg, i, &want.told, want.step(i, 0))
		dim := seg.Dims[i%2]
		for j := range want.y[i] {
			d := float64(want.y[i][j]-have.y[i][j]) / float64(steps[j/dim])
			sum += d * d
		}
	}
	return sum
}

// Whole, a record of several stages decodes to the levels that one of a single stage has; what its
// streams say they are worth is what dropping them costs.
func TestTruncate_WorthIsWhatDroppingCosts(t *testing.T) {
	for _, parts := range []int{1, 3} {
		c, seg := cache(t, 33, 4)
		seg.Parts = parts
		b := encode(t, c, seg)
		s, err := Streams(b, 4)
		require.NoError(t, err)
		require.Len(t, s.Refined, 3)
		require.Len(t, s.Refined[0], parts*NumGroups)
		try := func(keep *Keep, want float64) {
			cut, err := Truncate(nil, b, keep)
			require.NoError(t, err)
			got := squaredSteps(t, c, seg, decode(t, c, seg, cut))
			require.InEpsilon(t, want, got, 0.02)
			again, err := Streams(cut, 4)
			require.NoError(t, err)
			require.Equal(t, s.Error, again.Error, "what the streams are worth stays when they go")
		}
		try(all(s, 3), s.Error)
		same, err := Truncate(nil, b, all(s, 3))
		require.NoError(t, err)
		require.Equal(t, b, same)
		for i := range s.Refined[2] {
			for left := range 3 {
				keep, want := all(s, 3), s.Error
				keep.Refined[i] = left
				for n := left; n < 3; n++ {
					want += s.Refined[n][i].Worth
				}
				try(keep, want)
			}
		}
		want := s.Error
		for _, r := range s.Refined {
			for _, p := range r {
				want += p.Worth
			}
		}
		keep := all(s, 0)
		try(keep, want)
		keep.Lanes[1] = false
		try(keep, want+s.Lanes[1].Worth)
		try(&Keep{Lanes: make([]bool, 4)}, s.Energy)
	}
}

// Dropping refinements of all tokens leaves about what coding with the coarser step does.
func TestTruncate_AsCoarserSteps(t *testing.T) {
	c, seg := cache(t, 256, 4)
	b := encode(t, c, seg)
	s, err := Streams(b, 4)
	require.NoError(t, err)
	single := clone(seg)
	single.Chunks = 1
	for keep := 3; keep >= 0; keep-- {
		cut, err := Truncate(nil, b, all(s, keep))
		require.NoError(t, err)
		p, err := c.Prepare(clone(single))
		require.NoError(t, err)
		afresh := c.Encode(nil, p, 8*(3-keep), Effort{Lambda: 0.12})
		require.Less(t, float64(len(cut)), 1.08*float64(len(afresh))+300, "%d refinements", keep)
		require.Less(t, squaredSteps(t, c, seg, decode(t, c, seg, cut)),
			1.7*squaredSteps(t, c, seg, decode(t, c, seg, afresh)), "%d refinements", keep)
	}
}

// Steps from far above what rows hold to far below it, one row to many, all counts of stages.
func TestStaged_AnyStepAndShape(t *testing.T) {
	for _, tokens := range []int{1, 2, 7, 65} {
		for _, chunks := range []int{2, 5, MaxChunks} {
			for _, step8 := range []int{-200, -90, -30, 0, 40, 300} {
				c, seg := cache(t, tokens, chunks)
				seg.Parts = 1 + tokens%MaxParts
				p, err := c.Prepare(clone(seg))
				require.NoError(t, err)
				b := c.Encode(nil, p, step8, Effort{Lambda: 0.12})
				single := clone(seg)
				single.Chunks = 1
				p, err = c.Prepare(single)
				require.NoError(t, err)
				want := decode(t, c, seg, c.Encode(nil, p, step8, Effort{Lambda: 0.12}))
				for i, rows := range decode(t, c, seg, b) {
					_, steps := c.lane(p.seg, i, &p.told, p.step(i, step8))
					// A value is a float32 sum over components of a row. Compilers fuse products and sums of
					// the two decoders differently, so sums differ by roundings of the largest term.
					rounding := 0x1p-22 * float64(largest(want[i]))
					for j, v := range rows {
						// The same levels: points of reconstruction may differ by a part of a step.
						require.InDelta(t, want[i][j], v, 2*float64(steps[j/16])+rounding,
							"%d tokens, %d stages, step %d", tokens, chunks, step8)
					}
				}
			}
		}
	}
}

func TestStaged_EveryBitAndLength(t *testing.T) {
	c, seg := cache(t, 9, 4)
	seg.Parts = 2
	b := encode(t, c, seg)
	want := decode(t, c, seg, b)
	changed := 0
	try := func(b []byte) {
		out := emptyLike(seg)
		if err := c.Decode(out, b, nil); err != nil {
			var ce *CorruptError
			require.ErrorAs(t, err, &ce)
			require.ErrorIs(t, err, quant.ErrCorrupt)
			return
		}
		for i := range want {
			if !slices.Equal(want[i], out.Rows[i]) {
				changed++
				return
			}
		}
	}
	for n := range b {
		try(b[:n])
	}
	require.Zero(t, changed, "a cut payload decoded to other rows")
	for i := range b {
		for bit := range 8 {
			d := slices.Clone(b)
			d[i] ^= 1 << bit
			try(d)
		}
	}
	t.Logf("%d of %d flipped bits are for the checksum to find", changed, 8*len(b))
	require.Less(t, changed, 8*len(b)/10)
}

func TestTruncate_Refuses(t *testing.T) {
	c, seg := cache(t, 9, 3)
	b := encode(t, c, seg)
	s, err := Streams(b, 4)
	require.NoError(t, err)
	keep := all(s, 2)
	keep.Lanes[2] = false
	_, err = Truncate(nil, b, keep)
	require.ErrorIs(t, err, quant.ErrShape, "a base goes and what refines it stays")
	keep = all(s, 2)
	keep.Refined = keep.Refined[:1]
	_, err = Truncate(nil, b, keep)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = Truncate(nil, b[:len(b)-1], all(s, 2))
	require.ErrorIs(t, err, quant.ErrCorrupt)
	bad := slices.Clone(b)
	bad[7], bad[8] = 0x80, 0x7f // an energy of Inf
	_, err = Streams(bad, 4)
	require.ErrorIs(t, err, quant.ErrCorrupt)
}

// Tables of coarser steps are those of levels halved, and add up.
func TestTables_Coarser(t *testing.T) {
	for tables, n := DefaultTables(), 0; n < MaxChunks; n++ {
		require.NoError(t, tables.validate())
		tables = tables.coarser()
	}
}
