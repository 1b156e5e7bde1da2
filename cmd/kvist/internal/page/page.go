// SPDX-License-Identifier: Apache-2.0

// Package page draws an kvfile.Report as one HTML page that needs nothing else: style, script
// and data stand in it, and no network is asked.
//
// # Concepts
//
// Numbers and tables are written here, so that they can be read without scripts; the script draws
// the map of bits and the chart of errors from the data in the page. Everything that came out of
// a file passes through html/template or JSON with "<" escaped: a hostile file cannot run code in
// a report about it. Before that, every string of the report passes through package visible, so
// that controls and changes of direction are seen, and is cut to maxText bytes.
//
// # Concurrency
//
// Pure functions.
package page

import (
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

var (
	//go:embed page.html
	htmlText string
	//go:embed style.css
	styleText string
	//go:embed script.js
	scriptText string
)

// maxText is what a string of the report may take of the page, in bytes.
const maxText = 4096

// Write writes the page. version is that of the program, for the foot.
//
// Errors: those of w.
func Write(w io.Writer, rep *report.Report, version string) error {
	rep = visible.Map(rep, func(s string) string { return visible.Line(visible.Cut(s, maxText)) })
	t, err := template.New("page").Funcs(template.FuncMap{
		"count": count, "bytes": bytesText, "percent": percent, "fixed": fixed,
		"fraction": fraction, "share": share,
		"title": title, "times": times,
	}).Parse(htmlText)
	if err != nil {
		return fmt.Errorf("kvist/page: template: %w", err)
	}
	data, err := json.Marshal(pack(rep))
	if err != nil {
		return fmt.Errorf("kvist/page: data of %s: %w", rep.File, err)
	}
	v := view{Report: rep, Version: version, Cache: rep.Kind == "cache",
		Style: template.CSS(styleText), Script: template.JS(scriptText), Data: template.JS(data),
		Settings: settings(rep.Config)}
	v.Parts = parts(rep)
	v.MeanHeads = len(rep.Map.Rows) > 0 && rep.Map.Rows[0].Head < 0
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("kvist/page: write: %w", err)
	}
	return nil
}

type view struct {
	*report.Report
	Version  string
	Cache    bool
	Style    template.CSS
	Script   template.JS
	Data     template.JS
	Settings []setting
	Parts    []part
	// MeanHeads: the map has a line for each layer, because its heads were too many.
	MeanHeads bool
}

type setting struct{ Key, Value string }

// settings splits a config text into its fields.
func settings(config string) []setting {
	var list []setting
	for f := range strings.FieldsSeq(config) {
		k, v, _ := strings.Cut(f, "=")
		list = append(list, setting{k, strings.ReplaceAll(v, ",", ", ")})
	}
	return list
}

// part is a piece of the bar of bytes.
type part struct {
	Name  string
	Class string // of the style sheet: its colour
	Bytes int64
	Width template.CSS // percent of the bar
}

var partClasses = map[string]string{"K codes": "p-k", "V codes": "p-v", "codes": "p-k",
	"scales": "p-scales",
	"tables": "p-tables", "side tensors": "p-side", "header": "p-header", "index": "p-index",
	"padding": "p-padding"}

func parts(rep *report.Report) []part {
	var list []part
	for _, s := range rep.Sections {
		class := partClasses[s.Name]
		if class == "" {
			class = "p-other"
		}
		width := 100 * float64(s.Bytes) / float64(max(1, rep.Bytes))
		list = append(list, part{s.Name, class, s.Bytes, template.CSS(strconv.FormatFloat(width,
			'f', 4, 64))})
	}
	return list
}

// packed is the map as the script reads it: 16-bit numbers in base64, so that a page with half a
// million cells has a few megabytes.
type packed struct {
	Cache   bool           `json:"cache"`
	Segment int            `json:"segment"`
	Per     int64          `json:"per"` // tokens of a column
	First   int64          `json:"first"`
	Layers  []packedLayer  `json:"layers"`
	Kinds   []report.Kind  `json:"kinds"`
	Rows    []packedRow    `json:"rows"`
	Dims    [2]int         `json:"dims"` // weights of K and V in the mean of both
	Dropped string         `json:"dropped"`
	Errors  *report.Errors `json:"errors"`
}

type packedLayer struct {
	Name   string `json:"name"`
	Number int    `json:"number"`
	Tokens int64  `json:"tokens"`
}

type packedRow struct {
	Layer int    `json:"layer"`
	Head  int    `json:"head"`
	Kind  string `json:"kind"` // u16 index of kinds
	K     string `json:"k"`    // u16 hundredths of a bit
	V     string `json:"v"`
	// The planner's prices, if the report has them: u16 hundredths. Of damage they are hundredths of
	// -log10.
	Weight  string `json:"weight,omitempty"`
	Damage  string `json:"damage,omitempty"`
	Coarser string `json:"coarser,omitempty"`
	Finer   string `json:"finer,omitempty"`
}

func pack(rep *report.Report) packed {
	p := packed{Cache: rep.Kind == "cache", Segment: rep.SegmentTokens,
		Per:   rep.Map.TokensPerColumn,
		First: rep.FirstPosition, Kinds: rep.Map.Kinds, Dims: [2]int{rep.HeadDim, rep.HeadDimV},
		Errors:  rep.Errors,
		Dropped: quant.Dropped.String(), Layers: []packedLayer{}, Rows: []packedRow{}}
	for _, l := range rep.Layers {
		p.Layers = append(p.Layers, packedLayer{l.Name, l.Number, l.Tokens})
	}
	for _, r := range rep.Map.Rows {
		kinds := make([]byte, 0, 2*len(r.Kind))
		for _, k := range r.Kind {
			kinds = binary.LittleEndian.AppendUint16(kinds, uint16(min(k, math.MaxUint16)))
		}
		row := packedRow{Layer: r.Layer, Head: r.Head,
			Kind: base64.StdEncoding.EncodeToString(kinds), K: hundredths(r.KBits), V: hundredths(r.VBits)}
		if len(r.Weight) > 0 {
			logs := make([]float32, len(r.Damage))
			for i, d := range r.Damage {
				logs[i] = float32(-math.Log10(max(float64(d), 1e-300)))
			}
			row.Weight, row.Damage = hundredths(r.Weight), hundredths(logs)
			row.Coarser, row.Finer = hundredths(r.Coarser), hundredths(r.Finer)
		}
		p.Rows = append(p.Rows, row)
	}
	return p
}

func hundredths(x []float32) string {
	b := make([]byte, 0, 2*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint16(b, uint16(min(max(math.Round(100*float64(v)), 0),
			math.MaxUint16)))
	}
	return base64.StdEncoding.EncodeToString(b)
}

func count(n any) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:] // a narrow space between thousands
	}
	return s
}

func bytesText(n int64) string {
	x := float64(n)
	for _, u := range []string{"B", "kB", "MB", "GB"} {
		if x < 999.5 {
			return strconv.FormatFloat(x, 'g', 3, 64) + "\u00a0" + u
		}
		x /= 1000
	}
	return strconv.FormatFloat(x, 'g', 4, 64) + "\u00a0TB"
}

// fraction writes an error as a percentage, a dash where it was not measured.
func fraction(x *float64) string {
	switch {
	case x == nil:
		return "\u2013"
	case *x == 0:
		return "0\u00a0%"
	case *x < 1e-5:
		return fmt.Sprintf("%.1e\u00a0%%", 100**x)
	}
	return fmt.Sprintf("%.3g\u00a0%%", 100**x)
}

func percent(x float64) string { return fraction(&x) }

func share(part, whole int64) string {
	return fmt.Sprintf("%.1f\u00a0%%", 100*float64(part)/float64(max(1, whole)))
}

func fixed(digits int, x any) string {
	switch v := x.(type) {
	case float64:
		return strconv.FormatFloat(v, 'f', digits, 64)
	case *float64:
		if v != nil {
			return strconv.FormatFloat(*v, 'f', digits, 64)
		}
	}
	return "\u2013"
}

// times writes how many times smaller a file is, or how many times as large where it is larger.
func times(ratio float64) string {
	if ratio > 0 && ratio < 1 {
		ratio = 1 / ratio
	}
	return fixed(2, ratio)
}

// title is the name of a layer for reading: the one tensor of an .npy has none.
func title(name string) string {
	if name == `tensor ""` {
		return "rows"
	}
	return name
}
