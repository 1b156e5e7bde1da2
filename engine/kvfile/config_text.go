// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// String returns the config as ParseConfig reads it: "key=value" joined by spaces, zero targets
// left out.
func (c *Config) String() string {
	var b []string
	add := func(k, v string) { b = append(b, k+"="+v) }
	float := func(k string, v float64) {
		if v != 0 {
			add(k, strconv.FormatFloat(v, 'g', -1, 64))
		}
	}
	float("bits", c.Bits)
	if c.Bytes != 0 {
		add("bytes", strconv.FormatInt(c.Bytes, 10))
	}
	float("share", c.Share)
	float("max-error", c.MaxError)
	add("k", codings(c.K))
	add("v", codings(c.V))
	add("rows", codings(c.Rows))
	add("sinks", strconv.Itoa(c.Sinks))
	add("window", strconv.Itoa(c.Window))
	add("segment", strconv.Itoa(c.Segment))
	add("seed", strconv.FormatUint(c.Seed, 10))
	add("row-bias", c.RowBias)
	add("mean", strconv.FormatBool(c.Mean))
	add("metric", strconv.FormatBool(c.Metric))
	add("allow-nonfinite", strconv.FormatBool(c.AllowNonfinite))
	add("importance", c.Importance)
	add("levels", levelNames(c.Levels))
	add("unseen", strconv.FormatFloat(c.Unseen, 'g', -1, 64))
	add("weighted", strconv.FormatBool(c.Weighted))
	if c.Form != FormHot {
		add("form", c.Form)
	}
	if c.Chunks != 1 {
		add("chunks", strconv.Itoa(c.Chunks))
	}
	if c.Lossless {
		add("lossless", "true")
	}
	return strings.Join(b, " ")
}

func codings(m []quant.Coding) string {
	s := make([]string, len(m))
	for i, c := range m {
		s[i] = c.String()
	}
	return strings.Join(s, ",")
}

// levelNames joins levels by "+", in lower case, as parseLevels reads them.
func levelNames(levels []quant.Level) string {
	if levels == nil {
		return "auto"
	}
	names := make([]string, len(levels))
	for i, l := range levels {
		names[i] = strings.ToLower(l.String())
	}
	return strings.Join(names, "+")
}

// parseLevels reads levels joined by "+", as full+chunks+summary+dropped, or "auto": nil.
//
// Errors: quant.ErrShape.
func parseLevels(s string) (levels []quant.Level, err error) {
	if s == "auto" {
		return nil, nil
	}
	for name := range strings.SplitSeq(s, "+") {
		l := quant.Full
		for l.Valid() && !strings.EqualFold(name, l.String()) {
			l++
		}
		if !l.Valid() {
			return nil, fmt.Errorf("kvist/kvfile: level %q, want full, chunks, summary, dropped or auto: %w",
				name, quant.ErrShape)
		}
		levels = append(levels, l)
	}
	return levels, nil
}

// parseCodings reads a comma-separated menu.
//
// Errors: quant.ErrUnsupported.
func parseCodings(s string) ([]quant.Coding, error) {
	var m []quant.Coding
	for part := range strings.SplitSeq(s, ",") {
		c, err := quant.ParseCoding(part)
		if err != nil {
			return nil, err
		}
		m = append(m, c)
	}
	return m, nil
}

// ParseConfig reads what String writes. Unknown keys are an error.
//
// Errors: quant.ErrShape, quant.ErrUnsupported.
func ParseConfig(s string) (Config, error) {
	return DefaultConfig().With(s)
}

// With returns c with the fields that s names, as ParseConfig reads them, in place of its own.
//
// Errors: those of ParseConfig.
func (c Config) With(s string) (Config, error) {
	c, err := c.with(s)
	if err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// with returns c with the fields that s names changed, not validated.
func (c Config) with(s string) (Config, error) {
	for field := range strings.FieldsSeq(s) {
		k, v, ok := strings.Cut(field, "=")
		var err error
		switch {
		case !ok:
			err = strconv.ErrSyntax
		case k == "bits":
			c.Bits, err = strconv.ParseFloat(v, 64)
		case k == "bytes":
			c.Bytes, err = strconv.ParseInt(v, 10, 64)
		case k == "share":
			c.Share, err = strconv.ParseFloat(v, 64)
		case k == "max-error":
			c.MaxError, err = strconv.ParseFloat(v, 64)
		case k == "k":
			c.K, err = parseCodings(v)
		case k == "v":
			c.V, err = parseCodings(v)
		case k == "rows":
			c.Rows, err = parseCodings(v)
		case k == "sinks":
			c.Sinks, err = strconv.Atoi(v)
		case k == "window":
			c.Window, err = strconv.Atoi(v)
		case k == "segment":
			c.Segment, err = strconv.Atoi(v)
		case k == "seed":
			c.Seed, err = strconv.ParseUint(v, 10, 64)
		case k == "row-bias":
			c.RowBias = v
			if v != rowBiasAuto {
				var on bool
				on, err = strconv.ParseBool(v)
				c.RowBias = strconv.FormatBool(on)
			}
		case k == "mean":
			c.Mean, err = strconv.ParseBool(v)
		case k == "metric":
			c.Metric, err = strconv.ParseBool(v)
		case k == "allow-nonfinite":
			c.AllowNonfinite, err = strconv.ParseBool(v)
		case k == "importance":
			c.Importance = v
		case k == "levels":
			c.Levels, err = parseLevels(v)
		case k == "unseen":
			c.Unseen, err = strconv.ParseFloat(v, 64)
		case k == "form":
			c.Form = v
		case k == "chunks":
			c.Chunks, err = strconv.Atoi(v)
		case k == "lossless":
			c.Lossless, err = strconv.ParseBool(v)
		case k == "weighted":
			c.Weighted, err = strconv.ParseBool(v)
		default:
			err = fmt.Errorf("unknown key: %w", quant.ErrShape)
		}
		if err != nil {
			if !errors.Is(err, quant.ErrUnsupported) && !errors.Is(err, quant.ErrShape) {
				err = fmt.Errorf("%w: %w", err, quant.ErrShape)
			}
			return Config{}, fmt.Errorf("kvist/kvfile: config: %q: %w", field, err)
		}
	}
	return c, nil
}
