// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// EvictionPolicy is the rule by which an [Eviction] keeps rows.
type EvictionPolicy uint8

// The policies. n is the number of rows that a KV head keeps on average, round(Keep * tokens).
const (
	// EvictionInvalid is the zero value.
	EvictionInvalid EvictionPolicy = iota
	// SnapKV keeps the rows that the last 64 queries attend to most (mean probability, averaged
	// over 5 neighbours), and the last rows.
	// Source: SnapKV (2024, arXiv 2404.14469); pooling and window as in its code.
	SnapKV
	// H2O keeps the n/2 rows with the largest sum of attention over all queries, and the n/2
	// most recent.
	// Source: H2O (2023, arXiv 2306.14048). Deviation: rows are scored once, after the context;
	// the paper evicts greedily while decoding.
	H2O
	// SinksRecent keeps the first 4 rows and the most recent.
	// Source: StreamingLLM (2023, arXiv 2309.17453). Deviation: rows keep their positions; the
	// paper renumbers them within the cache.
	SinksRecent
	// ExpectedAttention keeps the first 4 rows and those with the largest expected attention
	// times |v|. The expectation is over Gaussian queries at the next 512 positions, with mean and
	// covariance of the context's queries.
	// Source: Expected Attention (2025, arXiv 2510.00636), as kvpress implements it.
	ExpectedAttention
	// AdaKV distributes the rows of a layer over its heads by the scores of SnapKV. A head keeps at
	// least n/5.
	// Source: Ada-KV (2024, arXiv 2407.11550).
	AdaKV
	// PyramidKV gives the first layers more rows and the last ones fewer, linearly (beta 20). Scores
	// are those of SnapKV.
	// Source: PyramidKV (2024, arXiv 2406.02069).
	PyramidKV
	// EMS keeps rows by local plus global attention. It merges an evicted row into the kept row with
	// the most similar K, weighted by score, if their cosine is at least 0.6; otherwise it drops the
	// row. The count of merged rows enters attention as log(count).
	// Source: EMS (2024, arXiv 2412.08521). Deviation: a fixed threshold (see DESIGN.md), K after
	// RoPE, and a bias by count in place of the paper's head-wise schedule.
	EMS
	// KVzip keeps the rows with the largest probability under any query of the second half that is
	// at least 32 tokens later. Heads of a layer share one budget.
	// Source: KVzip (2025, arXiv 2505.23416). Deviation: the paper runs the model again and asks it
	// to repeat the context; here the second half of the context takes the place of that run (see
	// DESIGN.md).
	KVzip
)

var evictionPolicies = [...]struct{ name, source string }{
	SnapKV:            {"snapkv", "SnapKV, arXiv 2404.14469; one choice per KV head"},
	H2O:               {"h2o", "H2O, arXiv 2306.14048; scored once, after the context"},
	SinksRecent:       {"sinks-recent", "StreamingLLM, arXiv 2309.17453; positions kept"},
	ExpectedAttention: {"expected", "Expected Attention, arXiv 2510.00636, as in kvpress"},
	AdaKV:             {"adakv", "Ada-KV, arXiv 2407.11550, on the scores of SnapKV"},
	PyramidKV:         {"pyramidkv", "PyramidKV, arXiv 2406.02069, on the scores of SnapKV"},
	EMS:               {"ems", "EMS, arXiv 2412.08521; fixed similarity threshold, bias by count"},
	KVzip:             {"kvzip", "KVzip, arXiv 2505.23416; later queries, no second pass"},
}

// String returns the policy's name: "snapkv", "h2o", "sinks-recent", "expected", "adakv",
// "pyramidkv", "ems" or "kvzip".
func (p EvictionPolicy) String() string {
	if p > EvictionInvalid && int(p) < len(evictionPolicies) {
		return evictionPolicies[p].name
	}
	return "EvictionPolicy(" + strconv.Itoa(int(p)) + ")"
}

// Eviction keeps a share of the rows at f16 and drops the others. The scores of a KV head are those of
// all its query heads.
//
// Bytes: 2 a value of the kept rows; 4 a KV head for its number of rows if heads differ
// (AdaKV, KVzip); 2 a kept row for its count (EMS). Attention needs no positions, so none are
// counted.
type Eviction struct {
	Policy EvictionPolicy
	Keep   float64 // share of the rows, (0, 1]
	Window int     // last queries that score, and last rows kept; 0: 64 (KVzip: 32)
	Pool   int     // neighbours that scores are averaged over, odd; 0: 5
}

const (
	evictionSinks  = 4 // of SinksRecent, ExpectedAttention and EMS
	snapWindow     = 64
	snapPool       = 5
	zipWindow      = 32
	adaSafeguard   = 0.2
	pyramidBeta    = 20
	emsSimilarity  = 0.6
	futureHorizon  = 512 // positions after the context that ExpectedAttention averages over
	attentionChunk = 64  // queries scored together
)

// Name returns "snapkv:25%" and the options that differ from the defaults.
func (e Eviction) Name() string {
	args := []string{formatShare(e.Keep)}
	if e.Window != 0 {
		args = append(args, "window="+strconv.Itoa(e.Window))
	}
	if e.Pool != 0 {
		args = append(args, "pool="+strconv.Itoa(e.Pool))
	}
	return withArgs(e.Policy.String(), args)
}

// formatShare formats a share as ByName reads it: "12.5%".
func formatShare(x float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(100*x, 'g', 6, 64), ".") + "%"
}

// Source names the paper.
func (e Eviction) Source() string {
	if e.Policy > EvictionInvalid && int(e.Policy) < len(evictionPolicies) {
		return evictionPolicies[e.Policy].source
	}
	return ""
}

// window returns the length of the observation window.
func (e Eviction) window(tokens int) int {
	w := e.Window
	switch {
	case w != 0:
	case e.Policy == KVzip:
		w = zipWindow
	default:
		w = snapWindow
	}
	return min(w, tokens)
}

func (e Eviction) validate() error {
	bad := func(format string, args ...any) error {
		args = append(append([]any{e.Name()}, args...), quant.ErrUnsupported)
		return fmt.Errorf("kvist/methods: %s: "+format+": %w", args...)
	}
	switch {
	case e.Source() == "":
		return bad("not a policy")
	case !(e.Keep > 0 && e.Keep <= 1):
		return bad("share of rows %g, want (0, 1]", e.Keep)
	case e.Window < 0:
		return bad("window of %d tokens, want none below 0", e.Window)
	case e.Pool < 0 || (e.Pool > 0 && e.Pool%2 == 0):
		return bad("pooling over %d rows, want an odd number", e.Pool)
	}
	return nil
}

// Compress implements Method.
//
// Errors: quant.ErrUnsupported for parameters out of range; quant.ErrShape, also for a context without
// the queries that the policy needs; quant.ErrRange.
func (e Eviction) Compress(ctx context.Context, c *Context) (*Cache, error) {
	if err := e.validate(); err != nil {
		return nil, err
	}
	needQ := e.Policy != SinksRecent
	return eachLayer(ctx, e, c, needQ, func(j *job, layer int, out *CacheLayer) (int64, error) {
		n := e.budgets(len(c.Layers), j.tokens)[layer]
		scores, err := e.scores(ctx, j, layer, n)
		if err != nil {
			return 0, err
		}
		kept := e.choose(scores, n)
		if e.Policy == EMS {
			return e.merge(j, layer, out, scores, kept)
		}
		return e.store(j, layer, out, kept)
	})
}

// budgets returns the number of rows per KV head of every layer. Their mean is round(Keep * tokens).
func (e Eviction) budgets(layers, tokens int) []int {
	n := min(max(int(math.Round(e.Keep*float64(tokens))), 1), tokens)
	b := make([]int, layers)
	for i := range b {
		b[i] = n
	}
	if e.Policy != PyramidKV || layers == 1 {
		return b
	}
	w := min(e.window(tokens), n/2)
	least := float64(n-w) / pyramidBeta
	most := 2*float64(n-w) - least
	if most > float64(tokens-w) {
		most = float64(tokens - w)
		least = 2*float64(n-w) - most
	}
	// The rounding keeps the mean at exactly n.
	var exact float64
	done := 0
	for i := range b {
		exact += most + (least-most)*float64(i)/float64(layers-1)
		b[i] = int(math.Round(exact)) - done + w
		done += b[i] - w
	}
	return b
}

// choose returns the rows that every KV head keeps by their scores, ascending.
func (e Eviction) choose(scores [][]float64, n int) [][]int {
	kept := make([][]int, len(scores))
	if e.Policy != AdaKV && e.Policy != KVzip {
		for h := range scores {
			kept[h] = topRows(scores[h], n)
		}
		return kept
	}
	// One budget for all heads of the layer.
	tokens := len(scores[0])
	all := make([]float64, 0, len(scores)*tokens)
	for h := range scores {
		at := len(all)
		all = append(all, scores[h]...)
		if e.Policy == AdaKV {
			for _, t := range topRows(scores[h], int(adaSafeguard*float64(n))) {
				all[at+t] = math.Inf(1)
			}
		}
	}
	for _, i := range topRows(all, n*len(scores)) {
		kept[i/tokens] = append(kept[i/tokens], i%tokens)
	}
	return kept
}

// store keeps the chosen rows at f16.
func (e Eviction) store(j *job, layer int, out *CacheLayer, kept [][]int) (int64, error) {
	out.Keep = make([]bool, j.kvHeads*j.tokens)
	var bytes int64
	for h, rows := range kept {
		k, v := j.k(j.c.Layers[layer].K, h), j.v(j.c.Layers[layer].V, h)
		toK, toV := j.k(out.K, h), j.v(out.V, h)
		for _, t := range rows {
			out.Keep[h*j.tokens+t] = true
			n, err := keepF16(cut(toK, t, t+1), cut(k, t, t+1))
			if err != nil {
				return 0, fmt.Errorf("rows of K, kv_head %d, token %d: %w", h, t, err)
			}
			m, err := keepF16(cut(toV, t, t+1), cut(v, t, t+1))
			if err != nil {
				return 0, fmt.Errorf("rows of V, kv_head %d, token %d: %w", h, t, err)
			}
			bytes += n + m
		}
		if e.Policy == AdaKV || e.Policy == KVzip {
			bytes += 4
		}
	}
	return bytes, nil
}
