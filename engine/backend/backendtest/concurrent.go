// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// testRepeat repeats calls and requires the same bits.
func testRepeat(t *testing.T, b backend.Backend) {
	a := newArena(t, b)
	defer a.free()
	var ms []mixture
	for n := range uint64(6) {
		ms = append(ms, drawMixture(a, b, 9000+n))
	}
	a.upload()
	for _, m := range ms {
		out, lse := attend(t, b, m.q, m.blocks)
		rel := relFor(m.blocks, 1, 0)
		require.NoError(t, backend.RelevanceBlocks(context.Background(), b, m.q, ropeOf(m.blocks), lse,
			handles(m.blocks), rel))
		for range 4 {
			out2, lse2 := attend(t, b, m.q, m.blocks)
			require.Equal(t, out, out2)
			require.Equal(t, lse, lse2)
			rel2 := relFor(m.blocks, 1, 0)
			require.NoError(t, backend.RelevanceBlocks(context.Background(), b, m.q, ropeOf(m.blocks), lse,
				handles(m.blocks), rel2))
			require.Equal(t, rel.Sum, rel2.Sum)
		}
	}
}

// testConcurrent calls every method from many goroutines at once, each with its own outputs, while
// it allocates and frees buffers. Every result must equal that of a call alone.
func testConcurrent(t *testing.T, b backend.Backend) {
	const goroutines, dim, rows = 16, 64, 33
	a := newArena(t, b)
	defer a.free()
	m := drawMixture(a, b, 42)
	c := mustCoding(t, "lm4")
	to := mustCoding(t, "lm2")
	if !b.Supports(backend.OpDemote, c, dim) {
		t.Skipf("%s is not supported", c)
	}
	x := quanttest.Rows(quanttest.HeavyTails, rows, dim, 8)
	src := a.put(bytesOfF32(x.Data))
	enc := make([]backend.EncodeJob, goroutines)
	dem := make([]backend.DemoteJob, goroutines)
	dec := make([]backend.DecodeJob, goroutines)
	for i := range goroutines {
		packed := backend.Side{Coding: c, Data: a.room(c.PackedBytes(rows, dim)), Seed: seedA}
		low := backend.Side{Coding: to, Data: a.room(to.PackedBytes(rows, dim)), Seed: seedA}
		enc[i] = backend.EncodeJob{Src: src, DType: quant.Float32, Rows: rows, Dim: dim, Dst: packed}
		dem[i] = backend.DemoteJob{Src: packed, To: to, Rows: rows, Dim: dim, Dst: low.Data}
		dec[i] = backend.DecodeJob{Src: low, Rows: rows, Dim: dim, Dst: a.room(4 * rows * dim)}
	}
	a.upload()
	out, lse := attend(t, b, m.q, m.blocks)
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for round := 0; round < 3 && errs[i] == nil; round++ {
				errs[i] = oneRound(b, m, enc[i:i+1], dem[i:i+1], dec[i:i+1], out, lse)
			}
		}()
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	a.check()
	want := pack(t, c, x, seedA)
	low := make([]byte, to.PackedBytes(rows, dim))
	require.NoError(t, quant.Demote(low, to, want, c, rows, dim))
	for i := range goroutines {
		require.Equal(t, want, a.bytes(enc[i].Dst.Data))
		require.Equal(t, low, a.bytes(dem[i].Dst))
		sameFloats(t, a.bytes(dec[i].Dst), unpack(t, to, low, rows, dim, seedA).Data, "decoded")
	}
}

func oneRound(b backend.Backend, m mixture, enc []backend.EncodeJob, dem []backend.DemoteJob,
	dec []backend.DecodeJob, out, lse []float32) error {
	ctx := context.Background()
	if err := b.Encode(ctx, enc); err != nil {
		return err
	}
	if err := b.Demote(ctx, dem); err != nil {
		return err
	}
	if err := b.Decode(ctx, dec); err != nil {
		return err
	}
	out2, lse2 := nans(len(out)), nans(len(lse))
	if err := backend.AttendBlocks(ctx, b, m.q, ropeOf(m.blocks), handles(m.blocks),
		backend.Attention{Out: out2, LSE: lse2}); err != nil {
		return err
	}
	if !slices.Equal(out, out2) || !slices.Equal(lse, lse2) {
		return fmt.Errorf("attention has other bits during other calls")
	}
	rel := relFor(m.blocks, 2, 0)
	if err := backend.RelevanceBlocks(ctx, b, m.q, ropeOf(m.blocks), lse, handles(m.blocks), rel); err != nil {
		return err
	}
	buf, err := b.Alloc(4096)
	if err != nil {
		return err
	}
	got := bytes.Repeat([]byte{3}, 4096)
	if err := buf.Download(0, got); err != nil {
		return err
	}
	if !bytes.Equal(got, make([]byte, 4096)) {
		return fmt.Errorf("a new buffer is not zeroed")
	}
	return buf.Free()
}

// testCancelled calls every method with a cancelled context.
func testCancelled(t *testing.T, b backend.Backend) {
	a := newArena(t, b)
	defer a.free()
	good, _ := goodCall(t, a)
	const dim, rows = 64, 9
	c := mustCoding(t, "lm4")
	packed := backend.Side{Coding: c, Data: a.inPlace(make([]byte, c.PackedBytes(rows, dim)))}
	floats := a.inPlace(make([]byte, 4*rows*dim))
	a.upload()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	verbs := map[string]func(ctx context.Context) error{
		"encode": func(ctx context.Context) error {
			return b.Encode(ctx, []backend.EncodeJob{{Src: floats, DType: quant.Float32, Rows: rows,
				Dim: dim, Dst: packed}})
		},
		"decode": func(ctx context.Context) error {
			return b.Decode(ctx, []backend.DecodeJob{{Src: packed, Rows: rows, Dim: dim, Dst: floats}})
		},
		"demote": func(ctx context.Context) error {
			return b.Demote(ctx, []backend.DemoteJob{{Src: packed, To: c, Rows: rows, Dim: dim,
				Dst: packed.Data}})
		},
		"attend": func(ctx context.Context) error {
			return backend.AttendBlocks(ctx, b, &good.q, good.rope, good.blocks,
				backend.Attention{Out: good.out, LSE: good.lse})
		},
		"relevance": func(ctx context.Context) error {
			return backend.RelevanceBlocks(ctx, b, &good.q, good.rope, good.lse, good.blocks, &good.rel)
		},
	}
	for name, verb := range verbs {
		require.ErrorIs(t, verb(ctx), context.Canceled, name)
		require.NoError(t, verb(context.Background()), name)
	}
}
