// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/runner"
)

// metrics are the figures for Prometheus. Where vLLM has a figure of the same meaning, it has the same name.
type metrics struct {
	handler                        http.Handler
	first, between, whole, queued  prometheus.Observer
	promptTokens, generationTokens prometheus.Observer
}

func newMetrics(r *runner.Runner, model string) *metrics {
	reg := prometheus.NewRegistry()
	labels := prometheus.Labels{"model_name": model}
	with := prometheus.WrapRegistererWith(labels, reg)
	histogram := func(name, help string, buckets []float64) prometheus.Observer {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		with.MustRegister(h)
		return h
	}
	seconds := prometheus.ExponentialBuckets(0.001, 2, 18)
	tokens := prometheus.ExponentialBuckets(1, 2, 18)
	m := &metrics{
		first:   histogram("vllm:time_to_first_token_seconds", "Time to the first token of an answer.", seconds),
		between: histogram("vllm:inter_token_latency_seconds", "Time from token to token of an answer.", seconds),
		whole:   histogram("vllm:e2e_request_latency_seconds", "Time of whole answers.", seconds),
		queued:  histogram("vllm:request_queue_time_seconds", "Time until a request was admitted.", seconds),
		promptTokens: histogram("vllm:request_prompt_tokens", "Tokens of the prompts of finished requests.",
			tokens),
		generationTokens: histogram("vllm:request_generation_tokens", "Tokens of the answers of finished requests.",
			tokens),
	}
	with.MustRegister(newCollector(r))
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError,
		MaxRequestsInFlight: 4})
	return m
}

// timer times one answer.
type timer struct {
	m    *metrics
	last time.Time
	n    int
}

func (m *metrics) start() *timer { return &timer{m: m, last: time.Now()} }

func (t *timer) token() {
	now := time.Now()
	if t.n > 0 {
		t.m.between.Observe(now.Sub(t.last).Seconds())
	}
	t.n, t.last = t.n+1, now
}

func (t *timer) end(res runner.Result, err error) {
	if err != nil {
		return
	}
	t.m.first.Observe(res.First.Seconds())
	t.m.whole.Observe(res.Total.Seconds())
	t.m.queued.Observe(res.Queued.Seconds())
	t.m.promptTokens.Observe(float64(res.Prompt))
	t.m.generationTokens.Observe(float64(res.Answer))
}

// collector reads the figures that the runner and its cache count themselves.
type collector struct {
	r     *runner.Runner
	mu    sync.Mutex
	read  time.Time
	count runner.Counts
	cache engine.Stats
	err   error

	gauges   []figure
	counters []figure
	finished *prometheus.Desc
	sides    *prometheus.Desc
}

// figure is one number of the runner or its cache.
type figure struct {
	desc *prometheus.Desc
	get  func(*runner.Counts, *engine.Stats) float64
}

func newCollector(r *runner.Runner) *collector {
	c := &collector{r: r,
		finished: prometheus.NewDesc("vllm:request_success_total", "Requests by why they ended.",
			[]string{"finished_reason"}, nil),
		sides: prometheus.NewDesc("kvist_cache_sides", "K and V of blocks of 32 rows by their coding.",
			[]string{"coding"}, nil)}
	f := func(list *[]figure, name, help string, get func(*runner.Counts, *engine.Stats) float64) {
		*list = append(*list, figure{prometheus.NewDesc(name, help, nil, nil), get})
	}
	type (
		rc = runner.Counts
		es = engine.Stats
	)
	g, n := &c.gauges, &c.counters
	f(g, "vllm:num_requests_running", "Answers under way.", func(r *rc, _ *es) float64 { return float64(r.Running) })
	f(g, "vllm:num_requests_waiting", "Requests in the queue.", func(r *rc, _ *es) float64 { return float64(r.Waiting) })
	f(g, "vllm:kv_cache_usage_perc", "Bytes that the cache holds over its budget, 0 to 1.", func(_ *rc, s *es) float64 {
		return float64(s.HeldBytes) / float64(s.BudgetBytes)
	})
	f(n, "vllm:prompt_tokens_total", "Tokens of admitted prompts.", func(r *rc, _ *es) float64 { return float64(r.PromptTokens) })
	f(n, "vllm:generation_tokens_total", "Tokens of answers.", func(r *rc, _ *es) float64 { return float64(r.AnswerTokens) })
	f(n, "vllm:num_preemptions_total", "Answers put back into the queue for want of memory.", func(r *rc, _ *es) float64 { return float64(r.Preempted) })
	f(n, "vllm:prefix_cache_queries_total", "Tokens of prompts that were looked for in the cache.", func(r *rc, _ *es) float64 { return float64(r.PromptTokens) })
	f(n, "vllm:prefix_cache_hits_total", "Tokens of prompts that the cache held.", func(r *rc, _ *es) float64 { return float64(r.CachedTokens) })
	f(g, "kvist_conversations_idle", "Conversations kept without an answer under way.", func(r *rc, _ *es) float64 { return float64(r.Idle) })
	f(g, "kvist_conversations_parked", "Conversations in the folder.", func(r *rc, _ *es) float64 { return float64(r.Parked) })
	f(n, "kvist_conversations_resumed_total", "Parked conversations brought back.", func(r *rc, _ *es) float64 { return float64(r.Resumed) })
	f(g, "kvist_cache_budget_bytes", "Bytes that the cache may hold.", func(_ *rc, s *es) float64 { return float64(s.BudgetBytes) })
	f(g, "kvist_cache_held_bytes", "Bytes that the cache holds.", func(_ *rc, s *es) float64 { return float64(s.HeldBytes) })
	f(g, "kvist_cache_peak_bytes", "The most bytes that the cache has held.", func(_ *rc, s *es) float64 { return float64(s.PeakBytes) })
	f(g, "kvist_cache_row_bytes", "Bytes of K, V and positions.", func(_ *rc, s *es) float64 { return float64(s.RowBytes) })
	f(g, "kvist_cache_tokens", "Tokens of all sequences.", func(_ *rc, s *es) float64 { return float64(s.Tokens) })
	f(n, "kvist_steps_total", "Steps of the model.", func(r *rc, _ *es) float64 { return float64(r.Steps) })
	f(n, "kvist_pressure_units_total", "Sides of blocks recoded or dropped under pressure.", func(_ *rc, s *es) float64 { return float64(s.Units) })
	f(n, "kvist_blocks_dropped_total", "Blocks dropped under pressure.", func(_ *rc, s *es) float64 { return float64(s.Dropped) })
	f(n, "kvist_conversations_closed_total", "Idle conversations closed for want of memory.", func(r *rc, _ *es) float64 { return float64(r.Closed) })
	f(n, "kvist_conversations_faded_total", "Idle conversations that gave up bytes.", func(r *rc, _ *es) float64 { return float64(r.Faded) })
	f(n, "kvist_windows_folded_total", "Times that the window of an idle conversation was closed under pressure.", func(_ *rc, s *es) float64 { return float64(s.Folded) })
	f(n, "kvist_pins_loosened_total", "Pinned conversations that pressure may take from, because nothing else was left.", func(r *rc, _ *es) float64 { return float64(r.Loosened) })
	f(n, "kvist_requests_refused_total", "Requests that found the queue full.", func(r *rc, _ *es) float64 { return float64(r.Refused) })
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, list := range [][]figure{c.gauges, c.counters} {
		for _, f := range list {
			ch <- f.desc
		}
	}
	ch <- c.finished
	ch <- c.sides
}

// Collect implements prometheus.Collector. It asks the runner once a second at most: counting blocks takes the
// time of a step.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.read) > time.Second {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c.count, c.cache, c.err = c.r.Stats(ctx)
		c.read = time.Now()
	}
	if c.err != nil {
		ch <- prometheus.NewInvalidMetric(c.finished, errors.Join(errors.New("read the runner"), c.err))
		return
	}
	for _, f := range c.gauges {
		ch <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, f.get(&c.count, &c.cache))
	}
	for _, f := range c.counters {
		ch <- prometheus.MustNewConstMetric(f.desc, prometheus.CounterValue, f.get(&c.count, &c.cache))
	}
	for reason, n := range c.count.Finished {
		ch <- prometheus.MustNewConstMetric(c.finished, prometheus.CounterValue, float64(n), reason)
	}
	for coding, n := range c.cache.Sides {
		ch <- prometheus.MustNewConstMetric(c.sides, prometheus.GaugeValue, float64(n), coding)
	}
}
