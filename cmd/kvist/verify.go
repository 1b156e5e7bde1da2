// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

type verifyFlags struct {
	against  string
	profiles []string
	json     bool
	backend  backendFlags
}

func newVerify(a *app) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify FILE.kvist",
		Short: "Check every byte of a file, and its error against the original",
		Long: `verify reads the whole file and checks checksums, structure and padding, and that no
record is missing. It also decodes every record of an archive. An archive that was coded with a
profile needs it for that (--profile); without it, verify says that records were not decoded. Damage
is listed with section, record and offset, and the exit status is 3.

--against measures the loss, layer by layer. K and V error: sum|x - x'|^2 / sum|x|^2 over all rows.
Cosine: the mean over rows. Future attention: the relative squared error of the attention outputs of
the captured later queries (q_next) over the compressed context and the exact tokens after it. Means
hide damage, so the worst of each layer is shown too: the head with the largest error relative to its
own rows; the row with the largest squared error relative to the mean squared length of its head's
rows; the KV head and the later token with the largest future-attention error.

Fields of --json: file, ok, bytes, records, side_tensors, damage (section, layer, segment, head,
block, offset, message; a number is -1 if it does not apply), not_decoded (why the records of an
archive were not decoded, or ""), comparison (null without
--against: original, k_error, v_error, future_error, side_tensors, layers with name, k_error,
v_error, k_cosine, v_cosine, future_error; null if not measured).`,
		Example: `  kvist verify cache.kvist
  kvist verify cache.kvist --against cache.safetensors
  kvist verify cache.kvist --json`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			if err := f.backend.check(); err != nil {
				return err
			}
			return a.verify(cmd.Context(), args[0], &f)
		}),
	}
	cmd.Flags().StringVar(&f.against, "against", "",
		"`ORIGINAL` capture to measure the error against")
	cmd.Flags().StringArrayVar(&f.profiles, "profile", nil,
		"profile `FILE` that an archive was coded with")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	f.backend.add(cmd)
	return cmd
}

// verifyJSON is what --json prints.
type verifyJSON struct {
	File        string          `json:"file"`
	OK          bool            `json:"ok"`
	Bytes       int64           `json:"bytes"`
	Records     int             `json:"records"`
	SideTensors int             `json:"side_tensors"`
	Damage      []damageJSON    `json:"damage"`
	NotDecoded  string          `json:"not_decoded"`
	Comparison  *comparisonJSON `json:"comparison"`
}

type damageJSON struct {
	Section string `json:"section"`
	Layer   int    `json:"layer"`
	Segment int    `json:"segment"`
	Head    int    `json:"head"`
	Block   int    `json:"block"`
	Offset  int64  `json:"offset"`
	Message string `json:"message"`
}

func (a *app) verify(ctx context.Context, name string, f *verifyFlags) (err error) {
	if name == stdStream && f.against == stdStream {
		return usagef("FILE and --against cannot both be standard input")
	}
	in, err := a.openInput(ctx, name)
	if err != nil {
		return err
	}
	defer closing(in, &err)
	profiles, err := a.openProfiles(ctx, f.profiles)
	if err != nil {
		return err
	}
	res := verifyJSON{File: in.name, Bytes: in.size, Damage: []damageJSON{}}
	r, err := openKvist(in)
	if err == nil {
		res.Records = len(r.Records())
		say, clear := a.progress()
		if err = kvfile.Verify(ctx, r, kvfile.Options{Progress: say}); err == nil {
			err = kvfile.VerifyRows(ctx, r, kvfile.Options{Progress: say, Profiles: profiles})
		}
		clear()
		var missing *profile.MissingError
		if errors.As(err, &missing) && missing.Given == 0 {
			res.NotDecoded, err = oneLine(missing), nil
		}
	}
	if err != nil {
		if exitCode(err) != exitDamaged {
			return err
		}
		return a.verifyDamage(&res, err, f.json)
	}
	auxes, err := r.Auxes()
	if err != nil {
		return err
	}
	res.OK, res.SideTensors = true, len(auxes)
	if f.against != "" {
		cmp, original, err := a.compare(ctx, r, f.against, profiles, f.backend)
		if err != nil {
			return err
		}
		res.Comparison = newComparisonJSON(cmp, original, r.Header().Kind == container.KindCache)
	}
	if f.json {
		return printJSON(a.stdout, res)
	}
	p := &printer{w: a.stdout}
	p.printf("%s: intact: %s bytes, %d records, %d side tensors\n", res.File, count(res.Bytes),
		res.Records,
		res.SideTensors)
	if res.NotDecoded != "" {
		p.printf("records were checked by their checksums but not decoded: %s\n", res.NotDecoded)
	}
	if res.Comparison != nil {
		res.Comparison.print(p)
	}
	return p.err
}

// verifyDamage lists what is damaged.
func (a *app) verifyDamage(res *verifyJSON, err error, asJSON bool) error {
	eachError(err, func(e error) {
		d := damageJSON{Section: "file", Layer: -1, Segment: -1, Head: -1, Block: -1, Offset: -1,
			Message: oneLine(e)}
		var corrupt *container.CorruptError
		var refused *container.RefusedError
		switch {
		case errors.As(e, &corrupt):
			d.Section, d.Offset = corrupt.Section, corrupt.Offset
			d.Layer, d.Segment, d.Head, d.Block = corrupt.Layer, corrupt.Segment, corrupt.Head,
				corrupt.Block
		case errors.As(e, &refused):
			d.Section, d.Offset = refused.Section, refused.Offset
			d.Layer, d.Segment = refused.Layer, refused.Segment
		}
		res.Damage = append(res.Damage, d)
		if !asJSON {
			a.complain("%s", d.Message)
		}
	})
	if asJSON {
		if err := printJSON(a.stdout, res); err != nil {
			return err
		}
	}
	if errors.Is(err, quant.ErrCorrupt) {
		return errDamage
	}
	return fmt.Errorf("not read by this build: %w", err)
}

// compare measures a file against the capture called name, and returns that name for messages.
func (a *app) compare(ctx context.Context, r *container.Reader, name string, ps []*profile.Profile,
	f backendFlags) (_ *report.Comparison,
	original string, err error) {
	liftMemory()
	src, in, err := a.openCapture(ctx, name)
	if err != nil {
		return nil, "", err
	}
	defer closing(in, &err)
	be, err := a.openBackend(f)
	if err != nil {
		return nil, "", err
	}
	defer closing(be, &err)
	say, clear := a.progress()
	defer clear()
	cmp, err := report.Compare(ctx, r, src, report.Options{Backend: be, Profiles: ps, Progress: say})
	return cmp, in.name, err
}

type comparisonJSON struct {
	Original    string           `json:"original"`
	KError      *float64         `json:"k_error"`
	VError      *float64         `json:"v_error"`
	FutureError *float64         `json:"future_error"`
	SideTensors int              `json:"side_tensors"`
	Layers      []layerErrorJSON `json:"layers"`
}

type layerErrorJSON struct {
	Name        string   `json:"name"`
	KError      *float64 `json:"k_error"`
	VError      *float64 `json:"v_error"`
	KCosine     *float64 `json:"k_cosine"`
	VCosine     *float64 `json:"v_cosine"`
	FutureError *float64 `json:"future_error"`

	KHead       *worstJSON `json:"worst_k_head"`
	VHead       *worstJSON `json:"worst_v_head"`
	KToken      *worstJSON `json:"worst_k_token"`
	VToken      *worstJSON `json:"worst_v_token"`
	FutureHead  *worstJSON `json:"worst_future_head"`
	FutureToken *worstJSON `json:"worst_future_token"`
}

// worstJSON is where an error is largest; head or token is null where it is of all of them.
type worstJSON struct {
	Head  *int     `json:"head"`
	Token *int     `json:"token"`
	Error *float64 `json:"error"`
}

func newWorstJSON(w report.Worst) *worstJSON {
	if math.IsNaN(w.Error) {
		return nil
	}
	place := func(i int) *int {
		if i < 0 {
			return nil
		}
		return &i
	}
	return &worstJSON{Head: place(w.Head), Token: place(w.Token), Error: number(w.Error)}
}

// String is for a cell of a table: head, token or both, and the error there.
func (w *worstJSON) String() string {
	if w == nil {
		return "-"
	}
	e := "inf"
	if w.Error != nil {
		e = percent(*w.Error)
	}
	switch {
	case w.Head == nil:
		return fmt.Sprintf("%d: %s", *w.Token, e)
	case w.Token == nil:
		return fmt.Sprintf("%d: %s", *w.Head, e)
	}
	return fmt.Sprintf("%d/%d: %s", *w.Head, *w.Token, e)
}

func newComparisonJSON(cmp *report.Comparison, original string, hasV bool) *comparisonJSON {
	side := func(x float64) *float64 {
		if !hasV {
			return nil
		}
		return number(x)
	}
	c := &comparisonJSON{Original: original, KError: number(cmp.KError), VError: side(cmp.VError),
		FutureError: number(cmp.FutureError), SideTensors: cmp.SideTensors,
		Layers: []layerErrorJSON{}}
	for _, l := range cmp.Layers {
		x := layerErrorJSON{Name: l.Name, KError: number(l.KError), VError: side(l.VError), KCosine: number(l.KCosine),
			VCosine: side(l.VCosine), FutureError: number(l.FutureError),
			KHead: newWorstJSON(l.Worst.KHead), KToken: newWorstJSON(l.Worst.KToken),
			VHead: newWorstJSON(l.Worst.VHead), VToken: newWorstJSON(l.Worst.VToken),
			FutureHead: newWorstJSON(l.Worst.FutureHead), FutureToken: newWorstJSON(l.Worst.FutureToken)}
		c.Layers = append(c.Layers, x)
	}
	return c
}

func (c *comparisonJSON) print(p *printer) {
	error := func(x *float64) string {
		if x == nil {
			return "-"
		}
		return percent(*x)
	}
	cosine := func(x *float64) string {
		if x == nil {
			return "-"
		}
		return fmt.Sprintf("%.5f", *x)
	}
	p.printf("against %s: %d side tensors identical\n\n", c.Original, c.SideTensors)
	if len(c.Layers) > 0 && c.Layers[0].VError == nil {
		t := newTable([]any{"tensor", "error", "cosine", "worst row"}, 1, 2, 3)
		for _, l := range c.Layers {
			worst := "-"
			if l.KToken != nil && l.KToken.Error != nil {
				worst = fmt.Sprintf("%s, row %d", percent(*l.KToken.Error), *l.KToken.Token)
			}
			t.AppendRow([]any{title(l.Name), error(l.KError), cosine(l.KCosine), worst})
		}
		t.AppendFooter([]any{"mean", error(c.KError)})
		p.table(t)
		return
	}
	t := newTable([]any{"layer", "K error", "V error", "K cosine", "V cosine", "future attention"},
		1, 2, 3, 4, 5)
	for _, l := range c.Layers {
		t.AppendRow([]any{l.Name, error(l.KError), error(l.VError), cosine(l.KCosine),
			cosine(l.VCosine),
			error(l.FutureError)})
	}
	t.AppendFooter([]any{"mean", error(c.KError), error(c.VError), "", "", error(c.FutureError)})
	p.table(t)
	p.printf("\nworst head and worst token of each layer, which means may hide\n\n")
	t = newTable([]any{"layer", "K head", "K head/token", "V head", "V head/token", "future head", "future token"},
		1, 2, 3, 4, 5, 6)
	for _, l := range c.Layers {
		t.AppendRow([]any{l.Name, l.KHead, l.KToken, l.VHead, l.VToken, l.FutureHead, l.FutureToken})
	}
	p.table(t)
}

// title is the name of a tensor for reading: that of an .npy has none.
func title(name string) string {
	if name == `tensor ""` {
		return "rows"
	}
	return name
}
