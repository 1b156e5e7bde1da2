// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// byteUnits are the suffixes of sizes, longest first.
var byteUnits = []struct {
	name string
	size float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"k", 1e3}, {"K", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"B", 1},
}

// parseBudget reads a number of bytes ("1500000", "1.5M", "2GiB") or a share of the original's
// f16 bytes ("10%"). Exactly one of the results is not zero.
func parseBudget(s string) (bytes int64, share float64, err error) {
	number, unit := s, 1.0
	percent := strings.HasSuffix(s, "%")
	if percent {
		number = strings.TrimSuffix(s, "%")
	} else {
		for _, u := range byteUnits {
			if rest, ok := strings.CutSuffix(s, u.name); ok {
				number, unit = rest, u.size
				break
			}
		}
	}
	x, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(x > 0) || math.IsInf(x, 0) {
		return 0, 0,
			fmt.Errorf("budget %q: want bytes (1500000, 1.5M, 2GiB) or a share of f16 (10%%)", s)
	}
	if percent {
		if x > 200 {
			return 0, 0, fmt.Errorf("budget %q: want at most 200%%", s)
		}
		return 0, x / 100, nil
	}
	x *= unit
	if x < 1 || x >= math.MaxInt64 {
		return 0, 0, fmt.Errorf("budget %q: want 1 byte to 2^63", s)
	}
	return int64(x), 0, nil
}

// codingMenus is what --coding asks for; nil where it says nothing.
type codingMenus struct{ k, v, rows []quant.Coding }

// parseCodings reads --coding: "lm4" for everything, or menus by side, "k=lm4|lm3,v=lm3" or
// "rows=lm4". A menu of one coding fixes it.
func parseCodings(s string) (codingMenus, error) {
	var m codingMenus
	if !strings.Contains(s, "=") {
		list, err := parseMenu(s)
		return codingMenus{k: list, v: list, rows: list}, err
	}
	for part := range strings.SplitSeq(s, ",") {
		side, text, _ := strings.Cut(part, "=")
		var to *[]quant.Coding
		switch side {
		case "k":
			to = &m.k
		case "v":
			to = &m.v
		case "rows":
			to = &m.rows
		default:
			return m, fmt.Errorf("coding %q: %q is no side, want k=, v= or rows=", s, part)
		}
		if *to != nil {
			return m, fmt.Errorf("coding %q: %s= is given twice", s, side)
		}
		list, err := parseMenu(text)
		if err != nil {
			return m, err
		}
		*to = list
	}
	return m, nil
}

func parseMenu(s string) (menu []quant.Coding, err error) {
	for part := range strings.SplitSeq(strings.ReplaceAll(s, "|", ","), ",") {
		c, err := quant.ParseCoding(part)
		if err != nil {
			return nil, err
		}
		menu = append(menu, c)
	}
	return menu, nil
}

// setting returns a config with one setting in place of the default.
func setting(key, value string) (kvfile.Config, error) {
	if strings.ContainsFunc(value, unicode.IsSpace) { // it would be several settings
		return kvfile.Config{}, fmt.Errorf("%s %q: want no spaces: %w", key, value, quant.ErrShape)
	}
	return kvfile.DefaultConfig().With("bits=4 " + key + "=" + value)
}

// errShare is what parseShare says of anything else.
var errShare = errors.New("want a share, as 50% or 0.5")

// parseShare reads a share of one.
func parseShare(s string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	x, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x >= 0 && x <= 1) {
		return 0, errShare
	}
	return x, nil
}
