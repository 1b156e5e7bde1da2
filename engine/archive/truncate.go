// SPDX-License-Identifier: Apache-2.0

package archive

// ChunkSizes returns the bytes of the streams of each lane of a payload, [lanes][chunks]; 0 for
// those that were dropped.
//
// Errors: *CorruptError, also for a payload in lossless mode, which has no streams to drop.
func ChunkSizes(payload []byte, lanes int) ([][]int, error) {
	p, err := parse(payload, lanes)
	if err != nil {
		return nil, err
	}
	sizes := make([][]int, lanes)
	for i, l := range p.lanes {
		for _, c := range l {
			sizes[i] = append(sizes[i], len(c))
		}
	}
	return sizes, nil
}

// Truncate appends to dst the payload with the first keep[i] streams of lane i, at most those it
// has: its last components become their means. Nothing is coded again.
//
// Errors: *CorruptError; quant.ErrShape for a keep of another length.
func Truncate(dst, payload []byte, keep []int) ([]byte, error) {
	p, err := parse(payload, len(keep))
	if err != nil {
		return dst, err
	}
	for i, l := range p.lanes {
		if keep[i] < 0 {
			return dst, shapef("lane %d: keep %d streams", i, keep[i])
		}
		for k := keep[i]; k < len(l); k++ {
			l[k] = nil
		}
	}
	return p.append(dst), nil
}

// Side reads the classes and steps of a payload into seg, of which Layer, First, Dims and the
// lengths of Pos and Rows are given, and leaves the rows alone.
//
// Errors: as Decode.
func (c *Codec) Side(seg *Segment, b []byte) error {
	ts, err := c.layer(seg.Layer, len(seg.Rows)/len(seg.Dims), seg.Dims)
	if err != nil {
		return err
	}
	p, err := parse(b, len(seg.Rows))
	if err != nil {
		return err
	}
	_, err = c.decodeSide(seg, ts, p.side)
	return err
}
