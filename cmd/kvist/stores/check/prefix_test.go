// SPDX-License-Identifier: Apache-2.0

package check

import (
	"encoding/json"
	"flag"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/stores"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/engine/store/remote"
)

// job is what a process of these tests does: it finds the first tokens in a store or computes them, publishes them, and
// goes on with the others.
type job struct {
	Model, Store string
	Window       int
	Segment      int
	Share        float64 // of the bytes of all tokens in f16 that the rows may take; 0: all of them
	Prefix       int     // tokens that are computed, in chunks
	Tokens       []int32 // those and the ones after
	Salt         string
}

// done is what came of it.
type done struct {
	Found, Published int
	Logits           [][]float32 // after each of the tokens that follow
}

var jobFile = flag.String("job", "", "file with the job of TestJob; set by processes of these tests")

// kv is a sequence as a model sees it.
type kv struct {
	c      *engine.Cache
	seq    *engine.Sequence
	tokens []int32
	layers int
	step   engine.Step
}

func (s *kv) Append(layer, pos int, k, v []float32, n int) (err error) {
	if layer == 0 {
		s.step, err = s.c.Begin(ctx, []engine.Row{{Seq: s.seq, Tokens: n, IDs: s.tokens[pos : pos+n]}})
		if err != nil {
			return err
		}
	}
	return s.step.Append(layer, k, v)
}

func (s *kv) Attend(layer, _ int, q []float32, n int, out []float32) error {
	err := s.step.Attend(layer, q, out)
	if err == nil && layer == s.layers-1 {
		err = s.step.Commit(n)
	}
	return err
}

// work does a job.
func work(t *testing.T, j job) (d done) {
	m, err := model.Open(j.Model, model.Options{})
	require.NoError(t, err)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	st, err := stores.Open(ctx, j.Store, remote.Options{})
	require.NoError(t, err)
	defer st.Close()
	all := runner.ExactBytes(m, len(j.Tokens))
	c, err := engine.Open(be, m.Geometry(), engine.Config{Budget: 4*all + 64<<20, Window: j.Window, Segment: j.Segment,
		Store: st, Model: m.Name})
	require.NoError(t, err)
	defer c.Close()
	seq, err := c.RecallPrefix(ctx, []byte(j.Salt), j.Tokens[:j.Prefix])
	require.NoError(t, err)
	d.Found = int(seq.Len())
	require.NoError(t, seq.Limit(nil, int64(j.Share*float64(all))))
	s := &kv{c: c, seq: seq, tokens: j.Tokens, layers: m.Geometry().Layers}
	run := func(lo, hi int) []float32 {
		logits, err := m.Forward(j.Tokens[lo:hi], s, lo, model.ForwardOptions{Logits: model.LogitsLast})
		require.NoError(t, err)
		return logits
	}
	for p := d.Found; p < j.Prefix; {
		n := min(16-p%16, j.Prefix-p)
		run(p, p+n)
		p += n
	}
	require.NoError(t, seq.Publish(ctx, []byte(j.Salt), time.Time{}))
	for p := j.Prefix; p < len(j.Tokens); p++ {
		d.Logits = append(d.Logits, slices.Clone(run(p, p+1)))
	}
	return d
}

// TestJob is what processes of these tests run.
func TestJob(t *testing.T) {
	if *jobFile == "" {
		t.Skip("run in a process of its own by the other tests")
	}
	var j job
	p, err := os.ReadFile(*jobFile)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(p, &j))
	p, err = json.Marshal(work(t, j))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(*jobFile+".done", p, 0o600))
}

// process does a job in a process of its own.
func process(t *testing.T, j job) (d done) {
	file := filepath.Join(t.TempDir(), "job")
	p, err := json.Marshal(j)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, p, 0o600))
	out, err := exec.Command(os.Args[0], "-test.run", "^TestJob$", "-job", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	p, err = os.ReadFile(file + ".done")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(p, &d))
	return d
}

// divergence returns the mean KL divergence of predictions, in nats.
func divergence(exact, got [][]float32) (mean float64) {
	for i := range exact {
		mean += kl(exact[i], got[i]) / float64(len(exact))
	}
	return mean
}

func kl(p, q []float32) (d float64) {
	lp, lq := logSum(p), logSum(q)
	for i := range p {
		a, b := float64(p[i])-lp, float64(q[i])-lq
		d += math.Exp(a) * (a - b)
	}
	return d
}

func logSum(x []float32) float64 {
	most, sum := slices.Max(x), 0.0
	for _, v := range x {
		sum += math.Exp(float64(v - most))
	}
	return float64(most) + math.Log(sum)
}

// shares runs two processes on one store with all bits, and two with a share of them, and compares the predictions.
func shares(t *testing.T, url func(prefix string) string, j job, found int, share float64) {
	j.Store, j.Salt = url("exact"), "ours"
	a := process(t, j)
	require.Zero(t, a.Found)
	b := process(t, j)
	require.GreaterOrEqual(t, b.Found, found)
	require.Equal(t, a.Logits, b.Logits, "what was attended is what was computed, to the last bit")

	j.Store, j.Share = url("compressed"), share
	c := process(t, j)
	require.Zero(t, c.Found)
	d := process(t, j)
	require.GreaterOrEqual(t, d.Found, found)
	t.Logf("%d of %d tokens found. KL, nats, of %d predictions with %.0f %% of the bytes of f16: where they were computed %.2g, where they were found %.2g",
		d.Found, j.Prefix, len(a.Logits), 100*share, divergence(a.Logits, c.Logits), divergence(a.Logits, d.Logits))
	require.Less(t, divergence(a.Logits, d.Logits), max(2*divergence(a.Logits, c.Logits), 1e-3))
}

// urls returns the stores that two processes can share.
func urls(t *testing.T) map[string]func(prefix string) string {
	r, s := miniredis.RunT(t).Addr(), s3Server(t)
	u := map[string]func(prefix string) string{
		"redis": func(prefix string) string { return redisURL(r) + "?prefix=" + prefix },
		"s3":    func(prefix string) string { return strings.Replace(s.url(s.addr), "?", "/"+prefix+"?", 1) },
	}
	n := natsServer(t)
	u["nats"] = func(prefix string) string { return n.url(n.addr) + "?prefix=" + prefix }
	return u
}

func TestPrefix_TwoProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, os.WriteFile(path, gguftest.Tiny(1).Bytes(), 0o600))
	m, err := model.Open(path, model.Options{})
	require.NoError(t, err)
	tokens, err := m.Tokenizer().Encode(strings.Repeat("what two machines are asked ", 80), true)
	require.NoError(t, err)
	for name, url := range urls(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := job{Model: path, Prefix: 1800, Tokens: tokens[:1820], Window: 32, Segment: 64}
			shares(t, url, j, 1664, 0.6)
			j.Store, j.Salt = url("exact"), "theirs"
			require.Zero(t, process(t, j).Found)
		})
	}
}

// The same with SmolLM2: 1,024 tokens that one process has computed.
func TestPrefix_Model(t *testing.T) {
	m := modeltest.SmolLM2(t)
	path, err := model.Find()
	require.NoError(t, err)
	text, err := os.ReadFile("../../../../bench/quality/texts/eval-encyclopedia.txt")
	require.NoError(t, err)
	tokens, err := m.Tokenizer().Encode(string(text), true)
	require.NoError(t, err)
	for _, name := range []string{"redis", "s3"} {
		t.Run(name, func(t *testing.T) {
			shares(t, urls(t)[name], job{Model: path, Prefix: 1152, Tokens: tokens[:1216], Window: 64, Segment: 256}, 1024, 0.7)
		})
	}
}
