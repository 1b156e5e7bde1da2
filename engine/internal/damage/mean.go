// SPDX-License-Identifier: Apache-2.0

package damage

import (
	"encoding/binary"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// means returns the mean of K of each block that a probe codes, in a metric or none, nil for the others; nil where K
// may not be coded without its means.
func (c *Pricer) means(blocks []backend.Block, keys []quant.Rows, sinks, past int, metric *frame.Metric) ([]*input.Mean, error) {
	if !c.Mean {
		return nil, nil
	}
	means := make([]*input.Mean, len(blocks))
	for i := range blocks {
		if blocks[i].Base < int64(sinks) || blocks[i].Base >= int64(past) {
			continue
		}
		var err error
		if means[i], err = input.MeanOf(keys[i], alive(keys[i]), metric); err != nil {
			return nil, err
		}
	}
	return means, nil
}

// alive tells which rows are not zeros, as rows that are not finite are.
func alive(x quant.Rows) []bool {
	part := make([]bool, x.Len())
	for r := range part {
		part[r] = input.Energy(x.Row(r)) > 0
	}
	return part
}

// hasMean reports whether some block has a mean.
func hasMean(means []*input.Mean) bool {
	for _, m := range means {
		if m != nil && m.Stored != nil {
			return true
		}
	}
	return false
}

// leftOf returns the energy of the rows of K that a probe codes: of what is left without their mean. It is
// weighed as plans weigh it, by the squares of the weights w of the tokens from first on. What rows with
// attention have left is not what others have.
func leftOf(st *Head, means []*input.Mean, of []backend.Block, keys []quant.Rows, w []float32, first int) (sum float64) {
	for i, m := range means {
		if m == nil {
			continue
		}
		for r := range keys[i].Len() {
			weight := 1.0
			if at := int(of[i].Base) + r - first; w != nil {
				weight = float64(w[at]) * float64(w[at])
			}
			switch row := keys[i].Row(r); {
			case m.Stored == nil:
				sum += weight * st.KEnergy(row, nil)
			case !m.Late[r]:
				sum += weight * st.KEnergy(row, m)
			}
		}
	}
	return sum
}

// centered turns a block of exact rows into one of K coded without its mean, in a metric or both. late is a block of the late rows,
// as they were; a plan keeps them finely.
func (c *Pricer) centered(up *input.Uploader, l *input.Layer, b *backend.Block, keys quant.Rows, m *input.Mean,
	metric *frame.Metric, coding quant.Coding) (late []backend.Block, jobs []backend.EncodeJob, err error) {
	put := func(data []byte) (s backend.Span) {
		if err == nil {
			s, err = up.Upload(data)
		}
		return s
	}
	var rows [2][]uint16
	left := quant.Rows{Dim: keys.Dim}
	for r, is := range m.Late {
		if is {
			rows[1] = append(rows[1], uint16(r))
			continue
		}
		rows[0] = append(rows[0], uint16(r))
		left.Data = append(left.Data, keys.Row(r)...)
	}
	if err := frame.Center(left, left, m.Stored, metric); err != nil {
		return nil, nil, err
	}
	exact := *b
	b.Metric, b.Noise = metric, blocks.Noise(coding, c.RowBias)
	if m.Stored != nil {
		b.MeanK = put(m.Stored)
	}
	b.K = backend.Side{Coding: coding, Seed: c.Seed, Data: put(make([]byte, coding.PackedBytes(len(rows[0]), keys.Dim)))}
	b.Rows, b.Pos = int32(len(rows[0])), put(blocks.Shorts(rows[0]))
	jobs = append(jobs, backend.EncodeJob{Src: put(input.AppendFloats(nil, left.Data)), DType: quant.Float32,
		Rows: len(rows[0]), Dim: keys.Dim, Dst: b.K})
	if len(rows[1]) == 0 {
		return nil, jobs, err
	}
	take := func(t input.Tensor, from backend.Side, rows []uint16) backend.Side {
		index := make([]byte, 4*len(rows))
		for i, r := range rows {
			binary.LittleEndian.PutUint32(index[4*i:], uint32(r))
		}
		to := backend.Side{Coding: from.Coding, Data: put(make([]byte, len(rows)*t.RowBytes()))}
		jobs = append(jobs, backend.EncodeJob{Src: from.Data, DType: t.DType(), Index: put(index), Rows: len(rows),
			Dim: t.Dim(), Dst: to})
		return to
	}
	b.V = take(l.V, exact.V, rows[0])
	other := exact
	other.Rows, other.Pos = int32(len(rows[1])), put(blocks.Shorts(rows[1]))
	other.K, other.V = take(l.K, exact.K, rows[1]), take(l.V, exact.V, rows[1])
	return []backend.Block{other}, jobs, err
}
