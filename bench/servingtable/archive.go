// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// archiveNext is how many tokens follow what is parked.
const archiveNext = 128

// measureArchive prints what it costs to make a conversation smaller before it is parked: the divergence of the
// predictions of the tokens that follow, after it was resumed.
func measureArchive(be backend.Backend, m *model.Model, ids []int32, shares []float64, cfg engine.Config) error {
	ctx, g := context.Background(), m.Geometry()
	n := len(ids) - archiveNext
	st := store.NewMemory(store.MemoryOptions{})
	f16 := int64(2*n*g.Layers*g.KVHeads) * int64(g.HeadDim+g.HeadDimV)
	cfg.Budget, cfg.Store = 3*f16, st
	c, err := engine.Open(be, g, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := quality.NewSequenceStore(ctx, c, g.Layers)
	if err != nil {
		return err
	}
	for p := 0; p < n; p += 32 {
		if _, err := m.Forward(ids[p:min(p+32, n)], s, p, model.ForwardOptions{}); err != nil {
			return err
		}
	}
	var file bytes.Buffer
	if err := s.Seq.Save(ctx, &file); err != nil {
		return err
	}
	var want []float32
	for _, share := range append([]float64{0}, shares...) {
		if err := s.Seq.Close(); err != nil {
			return err
		}
		if s.Seq, err = c.Load(ctx, bytes.NewReader(file.Bytes()), int64(file.Len())); err != nil {
			return err
		}
		if err := s.Seq.Demote(share); err != nil {
			return err
		}
		id, err := s.Seq.Park(ctx, nil, time.Time{})
		if err != nil {
			return err
		}
		held := st.Held()
		if s.Seq, err = c.Resume(ctx, nil, id); err != nil {
			return err
		}
		got, err := m.Forward(ids[n:], s, n, model.ForwardOptions{Logits: model.LogitsAll})
		if err != nil {
			return errors.Join(err, c.Discard(ctx, nil, id))
		}
		if want == nil {
			want = got
		}
		mean, worst, top := divergence(want, got, m.Vocab)
		fmt.Printf("| %g | %d | %.2f | %.2g | %.2g | %.3f |\n", share, held, quant.BitsPerValue(held, f16/2), mean, worst, top)
		if err := c.Discard(ctx, nil, id); err != nil {
			return err
		}
	}
	return nil
}

// divergence returns the mean and the largest KL divergence of the predictions of all tokens, and how many have
// the same most likely token.
func divergence(want, got []float32, vocab int) (mean, worst, top float64) {
	n := len(want) / vocab
	for t := range n {
		p, q := want[t*vocab:(t+1)*vocab], got[t*vocab:(t+1)*vocab]
		a, b := logSum(p), logSum(q)
		kl, at, as := 0.0, 0, 0
		for i := range p {
			x := float64(p[i]) - a
			kl += math.Exp(x) * (x - (float64(q[i]) - b))
			if p[i] > p[at] {
				at = i
			}
			if q[i] > q[as] {
				as = i
			}
		}
		mean, worst = mean+kl/float64(n), max(worst, kl)
		if at == as {
			top += 1 / float64(n)
		}
	}
	return mean, worst, top
}

// logSum returns the logarithm of the sum of exponentials.
func logSum(x []float32) float64 {
	top := x[0]
	for _, v := range x {
		top = max(top, v)
	}
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(float64(v - top))
	}
	return float64(top) + math.Log(sum)
}
