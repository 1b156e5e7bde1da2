// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// Standard returns the methods of the standard table: some of each family of All, from 16 bits a value
// to 2, and kvist with and without importance.
func Standard() []Method {
	names := []string{
		"f16", "ggml-q8_0", "fp8", "kivi4", "gear4", "ggml-q4_0", "tqmse4", "tqmse4:sinks=4",
		"tqprod4", "kivi3", "tqmse3", "tqmse3:sinks=4", "tqprod3", "kivi2", "tqmse2",
		"tqmse2:sinks=4", "lm3+len+s8:sinks=4", "uniform:k=lm3+len+s8,v=lm2+len+s8,sinks=4",
		"lm2+len+s8:sinks=4", "uniform:k=lm2+len+s8,v=lm1+len+s8,sinks=4",
		"snapkv:50%", "snapkv:25%", "snapkv:12.5%", "sinks-recent:25%", "h2o:25%", "expected:25%",
		"adakv:25%", "pyramidkv:25%", "ems:25%", "kvzip:25%",
		"kvist:4.25", "kvist:3", "kvist:2.75", "kvist:2.75,importance=none", "kvist:2.25",
		"kvist:2", "kvist:1.5",
	}
	var list []Method
	for _, n := range names {
		// TestStandard_Names tests that every name of the list is one.
		if m, err := ByName(n); err == nil {
			list = append(list, m)
		}
	}
	return list
}

// All returns the methods of the whole table, from 16 bits a value to 1, family by family.
func All() []Method {
	same := func(f quant.Format, sinks int) Method {
		c := quant.Coding{Format: f}
		return Uniform{K: c, V: c, Sinks: sinks}
	}
	lm := func(k, v quant.Format) Method {
		side := func(f quant.Format) quant.Coding {
			return quant.Coding{Format: f, Rule: quant.LengthKeeping, Scale: quant.ScaleLog8}
		}
		return Uniform{K: side(k), V: side(v), Sinks: 4}
	}
	list := []Method{
		same(quant.F16, 0), same(quant.GGMLQ8_0, 0), FP8{},
		KIVI{Bits: 4}, KIVI{Bits: 3}, KIVI{Bits: 2}, KIVI{Bits: 2, Window: 128},
		GEAR{Bits: 4}, GEAR{Bits: 2},
		same(quant.GGMLQ4_0, 0), same(quant.GGMLQ4_0, 4),
		same(quant.TQMSE4, 0), same(quant.TQMSE4, 4), same(quant.TQMSE3, 0), same(quant.TQMSE3, 4),
		same(quant.TQMSE2, 0), same(quant.TQMSE2, 4),
		TurboQuantProd{Bits: 4}, TurboQuantProd{Bits: 3}, TurboQuantProd{Bits: 2},
		lm(quant.LM4, quant.LM4), lm(quant.LM3, quant.LM3),
		lm(quant.LM3, quant.LM2), lm(quant.LM2, quant.LM2),
	}
	for _, share := range []float64{0.5, 0.25, 0.125, 0.0625} {
		list = append(list, Eviction{Policy: SnapKV, Keep: share})
	}
	for p := H2O; int(p) < len(evictionPolicies); p++ {
		list = append(list, Eviction{Policy: p, Keep: 0.25})
	}
	for _, bits := range []float64{4.25, 3.25, 2.75, 2.25, 1.75, 1.5} {
		k := Kvist{Config: kvfile.DefaultConfig()}
		k.Config.Bits = bits
		list = append(list, k)
	}
	return list
}

// ByName returns the method of a name, written name or name:argument,argument,...
//
//	f16  lm3+len  ggml-q4_0  tqmse4:sinks=4      one coding for K and V (package quant)
//	uniform:k=lm3+len+s8,v=lm2+len+s8,sinks=4    a coding for each
//	kivi2  kivi2:window=128
//	tqprod3  fp8
//	gear2  gear2:rank=8,share=1%
//	snapkv:25%  snapkv:25%,window=32,pool=7      also h2o, sinks-recent, expected, adakv,
//	                                             pyramidkv, ems, kvzip
//	kvist:2.75                                   bits a value of the file
//	kvist:k=lm4,v=lm4  kvist:bits=3,sinks=8      any fields of kvfile.Config
//	kvist:2.75,importance=default;expected=0.5   fields separated by ";"
//	kvist:2.75,weights=random                    random weights, as a control
//	kvist:2.75,profile=model.kvprofile           with the settings of a profile
//	kvist-archive:1.8  kvist-archive:1.8,profile=FILE   the archive form
//
// The Name of the method that it returns is a name of the same method.
//
// Errors: quant.ErrUnsupported for an unknown name; those of kvfile.ParseConfig and profile.Open.
func ByName(name string) (Method, error) {
	base, rest, hasArgs := strings.Cut(name, ":")
	var fields []string
	if hasArgs {
		fields = strings.Split(rest, ",")
	}
	m, err := byBase(base, fields)
	if err != nil {
		return nil, fmt.Errorf("kvist/methods: method %q: %w", name, err)
	}
	return m, nil
}

// maxMethodArgs bounds the number of arguments of a name.
const maxMethodArgs = 64

func byBase(base string, fields []string) (Method, error) {
	if len(fields) > maxMethodArgs {
		return nil, fmt.Errorf("%d arguments, want at most %d: %w", len(fields), maxMethodArgs,
			quant.ErrUnsupported)
	}
	if base == "kvist" {
		return kvistByName(fields)
	}
	if base == "kvist-archive" {
		return archiveByName(fields)
	}
	for p := SnapKV; int(p) < len(evictionPolicies); p++ {
		if base == p.String() {
			return evictionByName(p, fields)
		}
	}
	a, err := parseArgs(fields)
	if err != nil {
		return nil, err
	}
	var m Method
	bits := func(prefix string) int {
		digit, ok := strings.CutPrefix(base, prefix)
		if !ok || len(digit) != 1 || digit[0] < '1' || digit[0] > '8' {
			return 0
		}
		return int(digit[0] - '0')
	}
	switch {
	case base == "fp8":
		m = FP8{}
	case base == "uniform":
		m = Uniform{K: a.coding("k"), V: a.coding("v"), Sinks: a.count("sinks")}
	case bits("kivi") > 0:
		m = KIVI{Bits: bits("kivi"), Window: a.count("window")}
	case bits("gear") > 0:
		m = GEAR{Bits: bits("gear"), Rank: a.count("rank"), Share: a.share("share")}
	case bits("tqprod") >= 2 && bits("tqprod") <= 4:
		m = TurboQuantProd{Bits: bits("tqprod")}
	default:
		coding, err := quant.ParseCoding(base)
		if err != nil {
			return nil, fmt.Errorf("neither a method nor a coding: %w", err)
		}
		m = Uniform{K: coding, V: coding, Sinks: a.count("sinks")}
	}
	return m, a.done()
}

func evictionByName(p EvictionPolicy, fields []string) (Method, error) {
	if len(fields) == 0 {
		return nil, fmt.Errorf("want the share of rows kept, as in %s:25%%: %w", p,
			quant.ErrUnsupported)
	}
	a, err := parseArgs(append([]string{"keep=" + fields[0]}, fields[1:]...))
	if err != nil {
		return nil, err
	}
	e := Eviction{Policy: p, Keep: a.share("keep"),
		Window: a.count("window"), Pool: a.count("pool")}
	if err := a.done(); err != nil {
		return nil, err
	}
	return e, e.validate()
}

// kvistByName joins the fields to a config. A field without "=" belongs to the menu before it; the
// first one is the target in bits.
func kvistByName(fields []string) (Method, error) {
	if len(fields) == 0 {
		return nil, fmt.Errorf("want a target, as in kvist:2.75: %w", quant.ErrUnsupported)
	}
	var config strings.Builder
	random := false
	for i, f := range fields {
		switch {
		case f == randomWeightsArg && !random:
			random = true
			continue
		case strings.ContainsAny(f, " \t\n"):
			return nil, fmt.Errorf("argument %q holds a space: %w", f, quant.ErrUnsupported)
		case strings.Contains(f, "="):
			config.WriteByte(' ')
		case i == 0:
			config.WriteString("bits=")
		default:
			config.WriteByte(',')
		}
		if strings.HasPrefix(f, "importance=") {
			f = strings.ReplaceAll(f, ";", ",") // the fields of an importance profile
		}
		config.WriteString(f)
	}
	m, err := NewKvist(config.String())
	if err != nil {
		return nil, err
	}
	m.Random = random
	return m, nil
}

// archiveByName is kvistByName for the archive form.
func archiveByName(fields []string) (Method, error) {
	return kvistByName(append(slices.Clone(fields), "form="+kvfile.FormArchive))
}

// args are key=value arguments. Each is taken once; done returns the first error.
type args struct {
	values map[string]string
	err    error
}

func parseArgs(fields []string) (*args, error) {
	a := &args{values: make(map[string]string, len(fields))}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if _, twice := a.values[k]; !ok || twice {
			return nil, fmt.Errorf("argument %q is not key=value, or is there twice: %w",
				f, quant.ErrUnsupported)
		}
		a.values[k] = v
	}
	return a, nil
}

func (a *args) take(key string) (string, bool) {
	v, ok := a.values[key]
	delete(a.values, key)
	return v, ok
}

func (a *args) fail(key, value, want string) {
	if a.err == nil {
		a.err = fmt.Errorf("argument %s=%s, want %s: %w", key, value, want, quant.ErrUnsupported)
	}
}

// count returns an argument that is a number of at least 0; 0 if it is missing.
func (a *args) count(key string) int {
	v, ok := a.take(key)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 30)
	if err != nil {
		a.fail(key, v, "a count")
	}
	return int(n)
}

// share returns an argument that is a percentage, as a share in (0, 1]; 0 if it is missing.
func (a *args) share(key string) float64 {
	v, ok := a.take(key)
	if !ok {
		return 0
	}
	digits, percent := strings.CutSuffix(v, "%")
	x, err := strconv.ParseFloat(digits, 64)
	if err != nil || !percent || !(x > 0 && x <= 100) {
		a.fail(key, v, "a percentage in (0%, 100%]")
	}
	return x / 100
}

// coding returns an argument that is a coding. It must not be missing.
func (a *args) coding(key string) quant.Coding {
	v, _ := a.take(key)
	c, err := quant.ParseCoding(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	return c
}

// done returns the first error. An argument that was not taken is an error.
func (a *args) done() error {
	for _, k := range slices.Sorted(maps.Keys(a.values)) {
		a.fail(k, a.values[k], "no such argument here")
	}
	return a.err
}
