// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/serve"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
)

// server is one with a random model on a port of its own.
type server struct {
	t   *testing.T
	r   *runner.Runner
	h   *serve.Server
	url string
	key string
}

func start(t *testing.T, cfg serve.Config, o runner.Options) *server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, os.WriteFile(path, gguftest.Tiny(4).Bytes(), 0o600))
	m, err := model.Open(path, model.Options{})
	require.NoError(t, err)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	if o.Cache.Budget == 0 {
		o.Cache = engine.Config{Budget: 16 << 20, Window: 32, Segment: 64}
	}
	r, err := runner.New(m, be, o)
	require.NoError(t, err)
	cfg.Runner, cfg.Model, cfg.Version = r, "tiny", "test"
	h := serve.New(cfg)
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ReadHeaderTimeout, srv.Config.ReadTimeout = 300*time.Millisecond, 600*time.Millisecond
	srv.Start()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		require.NoError(t, r.Close())
		require.NoError(t, be.Close())
	})
	return &server{t: t, r: r, h: h, url: srv.URL}
}

// do sends a request and returns the status and the body.
func (s *server) do(method, path, body string, change ...func(*http.Request)) (int, map[string]any) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	require.NoError(s.t, err)
	req.Header.Set("Content-Type", "application/json")
	if s.key != "" {
		req.Header.Set("Authorization", "Bearer "+s.key)
	}
	for _, f := range change {
		f(req)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer res.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(res.Body)
	require.NoError(s.t, err)
	var out map[string]any
	require.NoError(s.t, json.Unmarshal(b, &out), string(b))
	return res.StatusCode, out
}

const said = `{"messages":[{"role":"user","content":"%s"}],"max_tokens":%d,"temperature":0,"ignore_eos":true%s}`

// at descends into JSON.
func at(x any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			x = x.(map[string]any)[p]
		case int:
			x = x.([]any)[p]
		}
	}
	return x
}

// events reads the events of a stream.
func (s *server) events(path, body string) (list []map[string]any) {
	s.t.Helper()
	req, err := http.NewRequest("POST", s.url+path, strings.NewReader(body))
	require.NoError(s.t, err)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer res.Body.Close() //nolint:errcheck // it was read
	require.Equal(s.t, 200, res.StatusCode)
	require.Equal(s.t, "text/event-stream", res.Header.Get("Content-Type"))
	end := false
	for sc := bufio.NewScanner(res.Body); sc.Scan(); {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if !ok {
			require.Empty(s.t, sc.Text())
			continue
		}
		require.False(s.t, end, "after [DONE]")
		if end = data == "[DONE]"; end {
			continue
		}
		var e map[string]any
		require.NoError(s.t, json.Unmarshal([]byte(data), &e))
		list = append(list, e)
	}
	require.True(s.t, end)
	return list
}

// A streamed answer is the whole one in parts, and both have the fields of OpenAI's API.
func TestChat_WholeAndStreamed(t *testing.T) {
	s := start(t, serve.Config{}, runner.Options{})
	code, whole := s.do("POST", "/v1/chat/completions", fmt.Sprintf(said, "hello", 20, `,"logprobs":true,"top_logprobs":2`))
	require.Equal(t, 200, code, whole)
	require.Equal(t, "chat.completion", whole["object"])
	require.Equal(t, "length", at(whole, "choices", 0, "finish_reason"))
	require.Equal(t, 20.0, at(whole, "usage", "completion_tokens"))
	require.Len(t, at(whole, "choices", 0, "logprobs", "content"), 20)
	require.Len(t, at(whole, "choices", 0, "logprobs", "content", 3, "top_logprobs"), 2)
	list := s.events("/v1/chat/completions", fmt.Sprintf(said, "hello", 20, `,"stream":true,"stream_options":{"include_usage":true}`))
	var text strings.Builder
	for i, e := range list[:len(list)-1] {
		require.Equal(t, "chat.completion.chunk", e["object"])
		delta := at(e, "choices", 0, "delta").(map[string]any)
		require.Equal(t, i == 0, delta["role"] == "assistant")
		if c, ok := delta["content"].(string); ok {
			text.WriteString(c)
		}
	}
	require.Equal(t, at(whole, "choices", 0, "message", "content"), text.String())
	require.Equal(t, "length", at(list[len(list)-2], "choices", 0, "finish_reason"))
	require.Equal(t, 20.0, at(list[len(list)-1], "usage", "completion_tokens"))

	code, text1 := s.do("POST", "/v1/completions", `{"prompt":"abc","temperature":0,"ignore_eos":true,"logprobs":1}`)
	require.Equal(t, 200, code, text1)
	require.Equal(t, "text_completion", text1["object"])
	require.Equal(t, 16.0, at(text1, "usage", "completion_tokens"))
	require.Len(t, at(text1, "choices", 0, "logprobs", "tokens"), 16)
	code, text2 := s.do("POST", "/v1/completions", `{"prompt":[[99,100,101]],"temperature":0,"ignore_eos":true}`)
	require.Equal(t, 200, code, text2)
	require.Equal(t, at(text1, "choices", 0, "text"), at(text2, "choices", 0, "text"), "tokens are bytes, two on")

	full := at(text1, "choices", 0, "text").(string)
	if i := strings.IndexFunc(full[1:], func(r rune) bool { return r < 128 }); i >= 0 {
		stop := full[1+i : 2+i]
		quoted, _ := json.Marshal([]string{stop})
		code, text3 := s.do("POST", "/v1/completions", `{"prompt":"abc","temperature":0,"ignore_eos":true,"stop":`+string(quoted)+`}`)
		require.Equal(t, 200, code)
		require.Equal(t, full[:strings.Index(full, stop)], at(text3, "choices", 0, "text"))
		require.Equal(t, "stop", at(text3, "choices", 0, "finish_reason"))
	}
}

// Every refusal is an error as OpenAI gives it, with the parameter, and leaves the server healthy.
func TestRefusals(t *testing.T) {
	s := start(t, serve.Config{MaxBody: 50_000}, runner.Options{})
	hi := `"messages":[{"role":"user","content":"hi"}]`
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"POST", "/v1/chat/completions", `{`, 400, "invalid_json"},
		{"POST", "/v1/chat/completions", `{}{}`, 400, "invalid_json"},
		{"POST", "/v1/chat/completions", `[]`, 400, "invalid_type"},
		{"POST", "/v1/chat/completions", `{"messages":"hi"}`, 400, "invalid_type"},
		{"POST", "/v1/chat/completions", `{}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"messages":[{"role":"king","content":"hi"}]}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"messages":[{"role":"tool","content":"hi"}]}`, 400, "unsupported"},
		{"POST", "/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400, "unsupported"},
		{"POST", "/v1/chat/completions", `{"messages":[{"role":"user","content":7}]}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"model":"gpt-9",` + hi + `}`, 404, "model_not_found"},
		{"POST", "/v1/chat/completions", `{"n":2,` + hi + `}`, 400, "unsupported"},
		{"POST", "/v1/chat/completions", `{"tools":[{}],` + hi + `}`, 400, "unsupported"},
		{"POST", "/v1/chat/completions", `{"response_format":{"type":"json_object"},` + hi + `}`, 400, "unsupported"},
		{"POST", "/v1/chat/completions", `{"temperature":99,` + hi + `}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"temperature":"hot",` + hi + `}`, 400, "invalid_type"},
		{"POST", "/v1/chat/completions", `{"max_tokens":0,` + hi + `}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"stop":[1],` + hi + `}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"logit_bias":{"x":1},` + hi + `}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"logit_bias":{"99999":1},` + hi + `}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"top_logprobs":3,` + hi + `}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", `{"kvist":{"fade":3},` + hi + `}`, 400, "invalid_value"},
		{"POST", "/v1/chat/completions", fmt.Sprintf(said, strings.Repeat("x", 3000), 4, ""), 400, "context_length_exceeded"},
		{"POST", "/v1/chat/completions", fmt.Sprintf(said, strings.Repeat("x", 60_000), 4, ""), 413, "too_large"},
		{"POST", "/v1/completions", `{}`, 400, "invalid_value"},
		{"POST", "/v1/completions", `{"prompt":["a","b"]}`, 400, "unsupported"},
		{"POST", "/v1/completions", `{"prompt":[1,999999]}`, 400, "invalid_value"},
		{"POST", "/v1/completions", `{"prompt":"a","echo":true}`, 400, "unsupported"},
		{"POST", "/v1/completions", `{"prompt":"a","best_of":3}`, 400, "unsupported"},
		{"POST", "/v1/embeddings", `{"input":"a"}`, 404, "not_found"},
		{"GET", "/v1/chat/completions", ``, 405, "method"},
		{"GET", "/v1/models/other", ``, 404, "model_not_found"},
		{"GET", "/v1/kvist/conversations/nope", ``, 404, "not_found"},
		{"DELETE", "/v1/kvist/conversations/nope", ``, 404, "not_found"},
		{"POST", "/v1/kvist/conversations/nope/fade", `{}`, 400, "invalid_value"},
		{"POST", "/v1/kvist/conversations/nope/pin", `{}`, 400, "invalid_value"},
		{"GET", "/../../etc/passwd", ``, 404, "not_found"},
	} {
		code, body := s.do(c.method, c.path, c.body)
		require.Equal(t, c.status, code, "%s %.80s: %v", c.path, c.body, body)
		require.Equal(t, c.code, at(body, "error", "code"), "%s %.80s: %v", c.path, c.body, body)
		require.NotEmpty(t, at(body, "error", "message"))
		require.NotEmpty(t, at(body, "error", "type"))
		require.NotContains(t, at(body, "error", "message"), "kvist/")
	}
	code, body := s.do("POST", "/v1/chat/completions", `{}`, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") })
	require.Equal(t, 415, code, body)
	s.healthy()
}

func (s *server) healthy() {
	s.t.Helper()
	code, body := s.do("GET", "/health", "")
	require.Equal(s.t, 200, code, body)
	code, body = s.do("POST", "/v1/chat/completions", fmt.Sprintf(said, "still there?", 3, ""))
	require.Equal(s.t, 200, code, body)
	require.Equal(s.t, 3.0, at(body, "usage", "completion_tokens"))
}

// With two keys neither prefixes, nor conversations, nor the inspector of one reach the other; without a key, or
// with a part of one, nothing does.
func TestKeys_KeepApart(t *testing.T) {
	s := start(t, serve.Config{Keys: []string{"key-of-a", "key-of-b"}}, runner.Options{})
	for _, key := range []string{"", "key-of-", "key-of-a-", "KEY-OF-A"} {
		s.key = key
		for _, path := range []string{"/v1/models", "/v1/kvist/conversations", "/v1/kvist/conversations/x"} {
			code, body := s.do("GET", path, "")
			require.Equal(t, 401, code, body)
			require.Equal(t, "invalid_api_key", at(body, "error", "code"))
		}
	}
	secret := "the secret of a, which is long enough to be shared: " + strings.Repeat("very ", 60)
	body := fmt.Sprintf(said, secret, 3, "")
	ask := func(key, more string) (cached float64, id string) {
		s.key = key
		code, out := s.do("POST", "/v1/chat/completions", strings.Replace(body, `"max_tokens"`, more+`"max_tokens"`, 1))
		require.Equal(t, 200, code, out)
		return at(out, "usage", "prompt_tokens_details", "cached_tokens").(float64), at(out, "kvist", "conversation").(string)
	}
	cached, id := ask("key-of-a", "")
	require.Zero(t, cached)
	cached, _ = ask("key-of-b", "")
	require.Zero(t, cached, "b finds what a said")
	cached, _ = ask("key-of-a", `"cache_salt":"other",`)
	require.Zero(t, cached)
	cached, _ = ask("key-of-a", "")
	require.Greater(t, cached, 300.0)

	s.key = "key-of-b"
	for _, c := range [][3]string{{"GET", "", ""}, {"DELETE", "", ""}, {"POST", "/fade", `{"share":1}`}, {"POST", "/pin", `{"on":true}`}} {
		code, out := s.do(c[0], "/v1/kvist/conversations/"+id+c[1], c[2])
		require.Equal(t, 404, code, out)
	}
	code, out := s.do("GET", "/v1/kvist/conversations", "")
	require.Equal(t, 200, code)
	require.Len(t, out["data"], 1)
	require.NotEqual(t, id, at(out, "data", 0, "id"))
	s.key = "key-of-a"
	code, out = s.do("GET", "/v1/kvist/conversations/"+id, "")
	require.Equal(t, 200, code)
	var all strings.Builder
	for _, x := range out["text"].([]any) {
		all.WriteString(x.(string))
	}
	require.Contains(t, all.String(), "the secret of a")
	res, err := http.Get(s.url + "/metrics")
	require.NoError(t, err)
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.NotContains(t, string(b), "secret")
	require.NotContains(t, string(b), "key-of")
}

// The inspector's calls: what is kept of each token, and hints that change it.
func TestConversations(t *testing.T) {
	s := start(t, serve.Config{}, runner.Options{})
	code, out := s.do("POST", "/v1/chat/completions", fmt.Sprintf(said, strings.Repeat("much was said ", 40), 30, ""))
	require.Equal(t, 200, code, out)
	id := at(out, "kvist", "conversation").(string)
	code, d := s.do("GET", "/v1/kvist/conversations/"+id, "")
	require.Equal(t, 200, code)
	n := int(d["tokens"].(float64))
	for _, field := range []string{"text", "bits", "weight", "faded_at", "bits_before"} {
		require.Len(t, d[field], n, field)
	}
	require.Equal(t, 16.0, at(d, "bits", 100))
	code, _ = s.do("POST", "/v1/kvist/conversations/"+id+"/fade", `{"share":0.7}`)
	require.Equal(t, 200, code)
	code, after := s.do("GET", "/v1/kvist/conversations/"+id, "")
	require.Equal(t, 200, code)
	require.Less(t, after["bytes"], d["bytes"].(float64)/2)
	require.NotEmpty(t, after["moments"])
	code, _ = s.do("POST", "/v1/kvist/conversations/"+id+"/pin", `{"on":true}`)
	require.Equal(t, 200, code)
	code, list := s.do("GET", "/v1/kvist/conversations", "")
	require.Equal(t, 200, code)
	require.Equal(t, true, at(list, "data", 0, "pinned"))
	code, _ = s.do("DELETE", "/v1/kvist/conversations/"+id, "")
	require.Equal(t, 200, code)
	code, _ = s.do("GET", "/v1/kvist/conversations/"+id, "")
	require.Equal(t, 404, code)
	for path, kind := range map[string]string{"/": "text/html", "/inspector.js": "text/javascript", "/inspector.css": "text/css"} {
		res, err := http.Get(s.url + path)
		require.NoError(t, err)
		require.Contains(t, res.Header.Get("Content-Type"), kind)
		require.Contains(t, res.Header.Get("Content-Security-Policy"), "default-src 'none'")
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.NotContains(t, string(b), "http://c", "a page that asks another host")
		require.NotContains(t, string(b), "https://")
	}
}

// On a loopback address without keys, names of other hosts are refused.
func TestHosts(t *testing.T) {
	s := start(t, serve.Config{Loopback: true}, runner.Options{})
	for host, want := range map[string]int{"": 200, "localhost:8080": 200, "[::1]:80": 200, "127.0.0.9": 200,
		"evil.example": 403, "127.0.0.1.evil.example:8080": 403} {
		code, body := s.do("GET", "/health", "", func(r *http.Request) { r.Host = host })
		require.Equal(t, want, code, "%s: %v", host, body)
	}
}

// Clients that are slow, leave, or send what is no request do not stop others.
func TestHostileClients(t *testing.T) {
	s := start(t, serve.Config{WriteTimeout: 200 * time.Millisecond}, runner.Options{Running: 2})
	addr := strings.TrimPrefix(s.url, "http://")
	var wg sync.WaitGroup
	raw := func(send string, then func(net.Conn)) {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close() //nolint:errcheck // that is the test
			if _, err := io.WriteString(c, send); err != nil {
				t.Error(err)
			}
			then(c)
		})
	}
	// gone waits for the server to close a connection.
	gone := func(c net.Conn) {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("the server kept the connection: %v", err)
		}
	}
	post := "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	body := fmt.Sprintf(said, "long", 1500, `,"stream":true`)
	for range 8 {
		raw("GET / HT", gone)                                       // headers that do not end
		raw(post+"Content-Length: 500\r\n\r\n{\"messages\":", gone) // a body that does not
		raw("\x16\x03\x01 no HTTP\r\n\r\n", gone)
		raw(post+"Content-Length: -1\r\n\r\n", gone)
		raw(post+"Transfer-Encoding: chunked\r\n\r\nzz\r\n", gone)
		raw(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", post, len(body), body), func(c net.Conn) {
			_, _ = c.Read(make([]byte, 64)) // leaves in the middle of an answer
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool {
		c, _, err := s.r.Stats(context.Background())
		return err == nil && c.Running == 0 && c.Waiting == 0
	}, 10*time.Second, 5*time.Millisecond, "answers that nobody reads go on")
	s.healthy()
}

// The queue is bounded; those that find it full are told to come again.
func TestOverload(t *testing.T) {
	s := start(t, serve.Config{}, runner.Options{Running: 1, Waiting: 2})
	var mu sync.Mutex
	codes := map[int]int{}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			req, err := http.NewRequest("POST", s.url+"/v1/chat/completions", strings.NewReader(fmt.Sprintf(said, "many", 60, "")))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close() //nolint:errcheck // nothing is read
			mu.Lock()
			defer mu.Unlock()
			codes[res.StatusCode]++
			if res.StatusCode == 429 && res.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
	}
	wg.Wait()
	require.GreaterOrEqual(t, codes[200], 3, codes)
	require.Positive(t, codes[429], codes)
	require.Equal(t, 16, codes[200]+codes[429], codes)
	s.healthy()
	s.h.Drain()
	code, _ := s.do("GET", "/health", "")
	require.Equal(t, 503, code)
	code, _ = s.do("POST", "/v1/chat/completions", fmt.Sprintf(said, "late", 3, ""))
	require.Equal(t, 503, code)
}

// Many clients talk for many turns in a cache that does not hold them: each goes on with its own words.
func TestTurns(t *testing.T) {
	s := start(t, serve.Config{}, runner.Options{Running: 4, Cache: engine.Config{Budget: 700 << 10, Window: 32, Segment: 64}})
	var wg sync.WaitGroup
	for client := range 8 {
		wg.Go(func() {
			var history []map[string]string
			for turn := range 5 {
				history = append(history, map[string]string{"role": "user", "content": fmt.Sprintf("client %d, turn %d, ", client, turn)})
				b, _ := json.Marshal(map[string]any{"messages": history, "max_tokens": 12, "temperature": 0, "ignore_eos": true})
				res, err := http.Post(s.url+"/v1/chat/completions", "application/json", bytes.NewReader(b))
				if err != nil {
					t.Error(err)
					return
				}
				var out struct {
					Choices []struct{ Message struct{ Content string } }
					Usage   struct {
						Completion int `json:"completion_tokens"`
					}
				}
				err = json.NewDecoder(res.Body).Decode(&out)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != 200 || out.Usage.Completion != 12 {
					t.Errorf("client %d, turn %d: %d, %v, %+v", client, turn, res.StatusCode, err, out)
					return
				}
				history = append(history, map[string]string{"role": "assistant", "content": out.Choices[0].Message.Content})
			}
		})
	}
	wg.Wait()
	_, st, err := s.r.Stats(context.Background())
	require.NoError(t, err)
	require.LessOrEqual(t, st.PeakBytes, st.BudgetBytes)
	s.healthy()
}
