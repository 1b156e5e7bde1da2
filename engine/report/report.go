// SPDX-License-Identifier: Apache-2.0

package report

import (
	stdcmp "cmp"
	"context"
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/quant"
)

// Report is all that a person wants to see of a file, as plain data: what it holds, where its
// bytes went, how sharp each token is, and what that cost. No number is NaN or infinite;
// errors that were not measured are nil.
type Report struct {
	File         string  `json:"file"` // for the caller to fill in
	Kind         string  `json:"kind"` // "cache" or "rows"
	Version      string  `json:"version"`
	Model        string  `json:"model"`
	Config       string  `json:"config"`
	Profile      string  `json:"profile"` // hash of the profile the plan was made with, or ""
	Archive      bool    `json:"archive"` // records in archive form: Map has means over segments there
	Bytes        int64   `json:"bytes"`
	Values       int64   `json:"values"` // of K and V, or of all rows
	BitsPerValue float64 `json:"bits_per_value"`
	// SeenValues counts the values of tokens that a query behind them all can see: all but those outside of
	// layers' windows, which a plan drops. BitsPerSeen is 8 * bytes / seen_values.
	SeenValues    int64   `json:"seen_values"`
	BitsPerSeen   float64 `json:"bits_per_seen_value"`
	OriginalBytes int64   `json:"original_bytes"` // f16 bytes of the values
	Ratio         float64 `json:"ratio"`          // original_bytes / bytes
	SourceBytes   int64   `json:"source_bytes"`   // of the values in the types of the original

	Tokens        int64 `json:"tokens"` // of every layer; rows of all tensors
	FirstPosition int64 `json:"first_position"`
	SegmentTokens int   `json:"segment_tokens"`
	Heads         int   `json:"heads"` // of queries; 0 for rows
	KVHeads       int   `json:"kv_heads"`
	HeadDim       int   `json:"head_dim"` // 0 where tensors differ
	HeadDimV      int   `json:"head_dim_v"`
	Sinks         int   `json:"sinks"`
	Window        int   `json:"window"`

	// Attention is how layers attend, by kind; nil where all are alike and attend plainly.
	Attention []Attention `json:"attention,omitempty"`

	Layers   []Layer   `json:"layers"`
	Sections []Section `json:"sections"` // every byte of the file, once
	Codings  []Coding  `json:"codings"`  // by bytes, descending
	Map      Map       `json:"map"`
	Errors   *Errors   `json:"errors"` // nil unless compared with the original
	Slope    float64   `json:"slope"`  // the price of a byte in damage, 0 before AddWhy
	// WhyNot says why there is no AddWhy although it was asked for. For the caller to fill in.
	WhyNot string `json:"why_not,omitempty"`
}

// ReportLayer is a stored layer, or a tensor of activations.
type Layer struct {
	Number   int    `json:"number"` // the model's number of the layer; the index of a tensor
	Name     string `json:"name"`   // "layer 9", `tensor "x"`
	Tokens   int64  `json:"tokens"`
	Dim      int    `json:"dim"` // of a row of K, or of the tensor
	Segments int64  `json:"segments"`
	// AttentionWindow is the number of tokens that a query of the layer sees, its own included; 0: all. Outside
	// counts the tokens that no query behind them all can see.
	AttentionWindow int64   `json:"attention_window,omitempty"`
	Outside         int64   `json:"outside,omitempty"`
	Bytes           int64   `json:"bytes"`  // of its records
	KBits           float64 `json:"k_bits"` // payload bits a value of K, or of the rows
	VBits           float64 `json:"v_bits"`
}

// ReportSection is a part of the file's bytes.
type Section struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// ReportCoding sums up the blocks of one side that share level and coding.
type Coding struct {
	Side         string  `json:"side"` // "K", "V" or "rows"
	Level        string  `json:"level"`
	Coding       string  `json:"coding"` // "" for DROPPED
	Tokens       int64   `json:"tokens"` // tokens of a head, summed over heads and layers
	Rows         int64   `json:"rows"`   // rows stored for them
	Values       int64   `json:"values"` // of the original
	Bytes        int64   `json:"bytes"`  // packed
	BitsPerValue float64 `json:"bits_per_value"`
}

// Bounds on the map, so that a page stays small enough for a browser: columns of a row, cells of
// the map, and rows beyond which the heads of a layer are shown as their mean.
const (
	reportColumns = 2000
	reportCells   = 400_000
	reportRows    = 1024
)

// The names of Report.Sections. Every byte of a file belongs to exactly one.
const (
	sectionKCodes  = "K codes"
	sectionVCodes  = "V codes"
	sectionRows    = "codes"
	sectionScales  = "scales"
	sectionTables  = "tables"
	sectionSide    = "side tensors"
	sectionHeader  = "header"
	sectionIndex   = "index"
	sectionPadding = "padding"
	sectionOther   = "other"
)

// BuildReport reads a whole file and sums it up. cmp may be nil. Memory grows with the map only,
// which is bounded.
//
// Errors: *container.CorruptError; quant.ErrShape where cmp is of another file; context errors.
func Build(ctx context.Context, r *container.Reader, cmp *Comparison) (*Report, error) {
	h := r.Header()
	b := &reporter{
		r:        r,
		h:        h,
		sections: map[string]int64{},
		codings:  map[Coding]*Coding{},
		kinds:    map[Kind]int{},
	}
	b.rep = &Report{
		Kind:          h.Kind.String(),
		Version:       fmt.Sprintf("v%d", h.Version),
		Model:         h.Model,
		Config:        h.Config,
		Profile:       cold.ProfileText(h.Profile),
		SourceBytes:   captured.SourceBytes(h),
		Bytes:         r.Size(),
		Tokens:        h.Tokens,
		FirstPosition: h.First,
		SegmentTokens: h.SegmentTokens,
		KVHeads:       h.KVHeads(),
		Sinks:         h.Sinks,
		Window:        h.Window,
		Layers:        []Layer{},
		Codings:       []Coding{},
		Map:           Map{Kinds: []Kind{}, Rows: []MapRow{}},
	}
	if h.Kind == container.KindCache {
		b.rep.Heads, b.rep.HeadDim, b.rep.HeadDimV = h.Geometry.Heads, h.Geometry.HeadDim,
			h.Geometry.HeadDimV
		b.rep.Attention = AttentionOf(h.Geometry)
	} else if h.Stored() > 0 {
		b.rep.HeadDim, _ = h.Dims(0)
	}
	if err := b.layout(); err != nil {
		return nil, err
	}
	for i := range h.Stored() {
		if err := b.layer(ctx, i); err != nil {
			return nil, err
		}
	}
	b.finish()
	if cmp == nil {
		return b.rep, nil
	}
	if len(cmp.Layers) != h.Stored() {
		return nil, fmt.Errorf(
			"kvist/report: report: comparison of %d layers, the file has %d: %w",
			len(cmp.Layers), h.Stored(), quant.ErrShape)
	}
	b.rep.Errors = reportErrors(cmp, h.Kind == container.KindCache)
	return b.rep, nil
}

type reporter struct {
	r        *container.Reader
	h        *container.Header
	rep      *Report
	records  []container.RecordInfo
	sections map[string]int64
	codings  map[Coding]*Coding // by side, level and coding
	kinds    map[Kind]int
	meanHead bool // one map row a layer
}

// layout accounts for the sections that are not records, and sizes the map.
func (b *reporter) layout() error {
	auxes, err := b.r.Auxes()
	if err != nil {
		return err
	}
	b.records = b.r.Records()
	index := container.EndSize(len(b.records) + len(auxes))
	header, held := b.r.Size()-index, int64(0)
	for _, a := range auxes {
		header, held = min(header, a.Offset), held+a.Length
		b.sections[sectionSide] += a.Length
	}
	for _, rec := range b.records {
		header, held = min(header, rec.Offset), held+rec.Length
	}
	b.sections[sectionHeader], b.sections[sectionIndex] = header, index
	// Optional sections of later versions, which this one steps over.
	b.sections[sectionOther] = max(0, b.r.Size()-index-header-held)

	most := int64(1)
	for i := range b.h.Stored() {
		most = max(most, b.h.LayerTokens(i))
	}
	rows := int64(b.h.Stored()) * int64(b.h.KVHeads())
	if b.meanHead = rows > reportRows; b.meanHead {
		rows = int64(b.h.Stored())
	}
	columns := min(reportColumns, max(1, reportCells/max(1, rows)))
	b.rep.Map.TokensPerColumn = (most + columns - 1) / columns
	return nil
}

// layer reads the records of a layer, in order.
func (b *reporter) layer(ctx context.Context, i int) error {
	h := b.h
	kDim, vDim := h.Dims(i)
	l := Layer{Tokens: h.LayerTokens(i), Dim: kDim, Segments: h.Segments(i), Number: i}
	if h.Kind == container.KindCache {
		l.Number = h.Layers[i]
		l.Name = fmt.Sprintf("layer %d", l.Number)
		l.AttentionWindow, l.Outside = h.Geometry.WindowOf(l.Number), h.Outside(i)
	} else {
		l.Name = fmt.Sprintf("tensor %q", h.Tensors[i].Name)
		if kDim != b.rep.HeadDim {
			b.rep.HeadDim = 0
		}
	}
	tpc := b.rep.Map.TokensPerColumn
	columns := int((l.Tokens + tpc - 1) / tpc)
	lines := make([]*mapLine, 1)
	if !b.meanHead {
		lines = make([]*mapLine, h.KVHeads())
	}
	for j := range lines {
		lines[j] = newMapLine(columns, vDim > 0)
	}
	var packed [2]int64
	for s := range int(l.Segments) {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, ok := b.r.Find(i, s)
		if !ok {
			return fmt.Errorf(
				"kvist/report: record of layer index %d segment %d is not in the file: %w", i,
				s, quant.ErrCorrupt)
		}
		rec, err := b.r.ReadRecord(at)
		if err != nil {
			return err
		}
		n := b.records[at].Length
		l.Bytes += n
		if rec.Archive != nil {
			b.rep.Archive = true
			held, err := b.archived(rec, kDim, vDim, lines, &packed)
			if err != nil {
				return err
			}
			n -= held
		}
		for hi := range rec.Heads {
			line := lines[min(hi, len(lines)-1)]
			n -= b.head(rec, hi, kDim, vDim, line, &packed)
		}
		b.sections[sectionTables] += n
	}
	values := l.Tokens * int64(h.KVHeads())
	l.KBits = quant.BitsPerValue(packed[0], values*int64(kDim))
	l.VBits = quant.BitsPerValue(packed[1], values*int64(vDim))
	b.rep.Values += values * int64(kDim+vDim)
	b.rep.Layers = append(b.rep.Layers, l)
	for j, line := range lines {
		head := j
		if b.meanHead {
			head = -1
		}
		b.rep.Map.Rows = append(b.rep.Map.Rows, line.row(i, head))
	}
	return nil
}

// head accounts for one head of a record and returns the bytes of its payloads, padded.
func (b *reporter) head(rec *container.Record, hi, kDim, vDim int, line *mapLine,
	packed *[2]int64) (held int64) {
	n := b.h.SegmentLen(rec.Layer, rec.Segment)
	first := b.h.SegmentStart(rec.Segment)
	tokens := make([]mapToken, n)
	for bi := range rec.Heads[hi].Blocks {
		blk := &rec.Heads[hi].Blocks[bi]
		var bits [2]float64
		for side, dim := range [2]int{kDim, vDim} {
			if dim == 0 {
				continue
			}
			size := b.side(blk, side, dim)
			packed[side] += size
			held += (size + 15) &^ 15
			bits[side] = quant.BitsPerValue(size, int64(len(blk.Tokens)*dim))
		}
		kind := b.kind(blk, vDim)
		for _, t := range blk.Tokens {
			tokens[t] = mapToken{kind: kind, k: bits[0], v: bits[1]}
		}
	}
	for t, tok := range tokens {
		line.add((first+int64(t))/b.rep.Map.TokensPerColumn, tok)
	}
	return held
}

// side accounts for K (0) or V (1) of a block and returns its packed bytes.
func (b *reporter) side(blk *container.Block, side, dim int) int64 {
	rows, coding := blk.Rows(), blk.K
	name, codes := "K", sectionKCodes
	switch {
	case b.h.Kind == container.KindRows:
		name, codes = "rows", sectionRows
	case side == 1:
		name, codes, coding = "V", sectionVCodes, blk.V
	}
	c := Coding{Side: name, Level: blk.Level.String()}
	var size int64
	if blk.Level != quant.Dropped {
		c.Coding = coding.String()
		size = int64(coding.PackedBytes(rows, dim))
		scales := int64(coding.ScaleBytes(rows))
		if coding.Format == quant.GGMLQ8_0 || coding.Format == quant.GGMLQ4_0 {
			scales = int64(rows * dim / 32 * 2) // one f16 for each group of 32
		}
		bits := int64(rows) * int64(dim) * int64(coding.Format.Bits())
		b.sections[codes] += bits / 8
		b.sections[sectionScales] += scales
		b.sections[sectionPadding] += size - bits/8 - scales + (-size)&15
	}
	sum := b.codings[c]
	if sum == nil {
		sum = &Coding{Side: c.Side, Level: c.Level, Coding: c.Coding}
		b.codings[c] = sum
	}
	sum.Tokens += int64(len(blk.Tokens))
	sum.Rows += int64(rows)
	sum.Values += int64(len(blk.Tokens) * dim)
	sum.Bytes += size
	return size
}

// kind returns the index of a block's level and codings in Map.Kinds.
func (b *reporter) kind(blk *container.Block, vDim int) int {
	k := Kind{Level: blk.Level.String()}
	if blk.Level != quant.Dropped {
		k.K = blk.K.String()
		if vDim > 0 {
			k.V = blk.V.String()
		}
	}
	i, ok := b.kinds[k]
	if !ok {
		i = len(b.rep.Map.Kinds)
		b.kinds[k] = i
		b.rep.Map.Kinds = append(b.rep.Map.Kinds, k)
	}
	return i
}

func (b *reporter) finish() {
	r := b.rep
	r.BitsPerValue = quant.BitsPerValue(r.Bytes, r.Values)
	r.SeenValues = b.h.SeenValues()
	r.BitsPerSeen = quant.BitsPerValue(r.Bytes, r.SeenValues)
	r.OriginalBytes = 2 * r.Values
	r.Ratio = float64(r.OriginalBytes) / float64(max(1, r.Bytes))
	for _, name := range []string{sectionKCodes, sectionVCodes, sectionRows, sectionScales,
		sectionTables, sectionSide, sectionHeader, sectionIndex, sectionPadding, sectionOther} {
		if n := b.sections[name]; n > 0 {
			r.Sections = append(r.Sections, Section{Name: name, Bytes: n})
		}
	}
	for _, c := range b.codings {
		c.BitsPerValue = quant.BitsPerValue(c.Bytes, c.Values)
		r.Codings = append(r.Codings, *c)
	}
	slices.SortFunc(r.Codings, func(x, y Coding) int {
		return stdcmp.Or(stdcmp.Compare(y.Bytes, x.Bytes), stdcmp.Compare(x.Side, y.Side),
			stdcmp.Compare(x.Level, y.Level), stdcmp.Compare(x.Coding, y.Coding))
	})
}
