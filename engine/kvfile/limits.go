// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// maxExpansion bounds the bytes of the capture per byte of the file. Dropped tokens take next to
// nothing in a file, so a small hostile file could otherwise fill any disk.
const maxExpansion = 4096

// checkExpansion refuses a file that stands for more than maxExpansion times its size.
func checkExpansion(r *container.Reader) error {
	h := r.Header()
	var promised float64
	for i := range h.Stored() {
		k, v := h.Dims(i)
		promised += float64(h.LayerTokens(i)) * float64(h.KVHeads()) * float64(k+v) * 2
	}
	if promised > maxExpansion*float64(r.Size()) {
		return fmt.Errorf("kvist/kvfile: the file of %d bytes promises %.3g bytes, limit %d times: %w",
			r.Size(), promised, maxExpansion, quant.ErrTooLarge)
	}
	return nil
}

// expandingBytes bounds the memory of records that are expanded beside the first.
const expandingBytes = 24 << 20

// recordWorkers is the number of records of a file that are expanded at a time. A record takes up to
// four times the bytes it stands for: as stored, as float32, and as written. All together take less
// than 64 MiB and four times the largest.
func recordWorkers(h *container.Header) int {
	beside := expandingBytes / (4 * max(1, h.LargestRecord()))
	return int(min(int64(runtime.GOMAXPROCS(0)), 1+beside))
}

// losslessSegment is the default length of a segment in lossless mode. Long segments code better,
// because models learn as they go and repeated rows are found within a segment only.
const losslessSegment = 8192

// segmentOf returns the tokens of a segment. In lossless mode segments are long, but not so long that
// readers refuse their records.
func segmentOf(src *capture.Source, cfg *Config) int {
	if !cfg.Lossless {
		return cfg.Segment
	}
	most := int64(losslessSegment)
	for _, n := range src.Info().Layers {
		k, _ := src.KV(n, capture.K)
		v, _ := src.KV(n, capture.V)
		token := int64(src.Info().Geometry.KVHeads) * int64(k.RowBytes()+v.RowBytes())
		most = min(most, container.DefaultExpandedBytes/max(1, token))
	}
	return max(cfg.Segment, int(most))
}

// checkInput refuses what cannot become a file: records that readers refuse, and positions that windows cannot be
// told by, unless nothing attends to what is written.
func checkInput(in *input.Data, lossless bool) error {
	if err := checkRecords(in); err != nil || lossless {
		return err
	}
	return in.CheckPositions()
}

// checkRecords refuses segments whose records no reader would accept, before any work is done.
func checkRecords(in *input.Data) error {
	for i := range in.Layers {
		l := &in.Layers[i]
		token := int64(l.Heads) * int64(l.K.RowBytes())
		if l.HasV {
			token += int64(l.Heads) * int64(l.V.RowBytes())
		}
		most := int64(container.DefaultExpandedBytes)
		if n := token * int64(min(l.Segment, l.Tokens)); n > most {
			return fmt.Errorf("kvist/kvfile: %s of %s in segments of %d tokens: a record stands for "+
				"%d bytes, readers accept %d: segments of %d tokens or fewer fit: %w", l.Name,
				in.Name, l.Segment, n, most, most/token, quant.ErrTooLarge)
		}
	}
	return nil
}

// maxLost bounds the number of losses that are named.
const maxLost = 1 << 14

func (d *decompressor) lose(what string) {
	switch {
	case len(d.res.Lost) < maxLost:
		d.res.Lost = append(d.res.Lost, what)
	case len(d.res.Lost) == maxLost:
		d.res.Lost = append(d.res.Lost, "and more")
	}
}
