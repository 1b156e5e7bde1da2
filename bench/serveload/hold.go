// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
)

// held is what became of conversations that a server holds.
type held struct {
	found, cached    int
	fresh, continued []float64 // time to the first token, ms
	resident         float64
	bytes            int64 // of all rows
}

// hold fills a server with conversations that each state a fact, and then asks each for its fact: from memory, and
// after the server was killed and started again.
func hold(s settings, conversations int, budget, only string, extra []string) error {
	fmt.Printf("%s, %s: %d conversations of about %d tokens, one after the other, each with a fact in its middle that is asked for when all were told\n\n",
		time.Now().UTC().Format("2006-01-02"), s.model, conversations, s.context-64)
	fmt.Println("| server | budget | facts found | conversations still there | first token by prefill p50, ms | gone on p50, ms | ratio | bytes of rows, MB | resident, MB |")
	fmt.Println("|---|---|---:|---:|---:|---:|---:|---:|---:|")
	path, err := model.Find()
	if err != nil {
		return err
	}
	f, err := gguf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it is only read
	t, err := model.NewTokenizer(f)
	if err != nil {
		return err
	}
	s.clients = []int{1}
	exact := strconv.Itoa(conversations*s.context/32) + "MiB" // that the cache holds all of them in f16
	for _, c := range []struct {
		name, budget string
		kill         bool
	}{{"exact", exact, false}, {"compressed", budget, false}, {"killed and restarted", budget, true}} {
		if only != "" && !strings.HasPrefix(c.name, only) {
			continue
		}
		h, err := holdIn(t, s, conversations, c.budget, c.kill, extra)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fresh, continued := quantile(h.fresh, .5), quantile(h.continued, .5)
		fmt.Printf("| %s | %s | %d of %d | %d | %.0f | %.0f | %.1f | %.1f | %.0f |\n", c.name, c.budget, h.found, conversations, h.cached,
			fresh, continued, fresh/continued, float64(h.bytes)/1e6, h.resident)
	}
	return nil
}

func holdIn(t *model.Tokenizer, s settings, conversations int, budget string, kill bool, extra []string) (h held, err error) {
	folder := ""
	if kill {
		if folder, err = os.MkdirTemp("", "serveload"); err != nil {
			return h, err
		}
		defer os.RemoveAll(folder) //nolint:errcheck // it is in the system's folder for such
		extra = append(append([]string{}, extra...), "--conversations", filepath.Join(folder, "c"), "--park-after", "0")
	}
	v, err := start(s, budget, extra...)
	if err != nil {
		return h, err
	}
	defer func() { v.stop() }()
	var docs [][]int32
	for i := range conversations {
		doc, err := document(t, s.context-64, i)
		if err != nil {
			return h, err
		}
		_, ms, _, err := v.complete(doc, 1, kill)
		if err != nil {
			return h, err
		}
		docs = append(docs, doc)
		h.fresh = append(h.fresh, ms)
	}
	if kill {
		_ = v.cmd.Process.Signal(syscall.SIGKILL)
		_ = v.cmd.Wait()
		if v, err = start(s, budget, extra...); err != nil {
			return h, err
		}
	}
	for i := range conversations {
		ask, err := question(t, i)
		if err != nil {
			return h, err
		}
		_, code := fact(i)
		text, ms, cached, err := v.complete(append(docs[i], ask...), 8, false)
		if err != nil {
			return h, err
		}
		if strings.Contains(text, code) {
			h.found++
		}
		if cached > s.context/2 {
			h.cached++
		}
		h.continued = append(h.continued, ms)
	}
	h.resident = v.resident()
	h.bytes, err = v.rows()
	return h, err
}

// fact is what a conversation states.
func fact(i int) (name, code string) {
	names := []string{"Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jonas", "Karin", "Lucas"}
	return names[i%len(names)] + " " + string(rune('A'+i/len(names))), strconv.Itoa(1000 + (i*7919+2357)%9000)
}

// document is a text of so many tokens, with a fact in the middle.
func document(t *model.Tokenizer, tokens, i int) ([]int32, error) {
	list := texts.All()
	name, code := fact(i)
	said, err := t.Continue(" The access code of "+name+" is "+code+".", false)
	if err != nil {
		return nil, err
	}
	half := (tokens - len(said)) / 2
	var all []int32
	for j := range 2 {
		part, err := t.Start(list[(i+j)%len(list)].Body, false)
		if err != nil {
			return nil, err
		}
		if j == 1 {
			all = append(all, said...)
		}
		all = append(all, part[:min(half, len(part))]...)
	}
	return all, nil
}

// question asks for the fact behind a document.
func question(t *model.Tokenizer, i int) ([]int32, error) {
	name, _ := fact(i)
	return t.Continue("\n\nQuestion: What is the access code of "+name+"?\nAnswer: The access code of "+name+" is", false)
}

// complete continues a text and times the first token.
func (v *server) complete(prompt []int32, tokens int, save bool) (text string, first float64, cached int, err error) {
	body, err := json.Marshal(map[string]any{"prompt": prompt, "stream": true, "temperature": 0, "max_tokens": tokens, "ignore_eos": true,
		"stream_options": map[string]bool{"include_usage": true}, "kvist": map[string]bool{"save": save}})
	if err != nil {
		return "", 0, 0, err
	}
	begin := time.Now()
	res, err := http.Post(v.url+"/v1/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return "", 0, 0, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		return "", 0, 0, fmt.Errorf("serveload: status %d: %s: %w", res.StatusCode, b, errAnswer)
	}
	for sc := bufio.NewScanner(res.Body); sc.Scan(); {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var e struct {
			Choices []struct{ Text string }
			Usage   *struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
			Error *struct{ Message string }
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return "", 0, 0, err
		}
		if e.Error != nil {
			return "", 0, 0, fmt.Errorf("serveload: %s: %w", e.Error.Message, errAnswer)
		}
		if e.Usage != nil {
			cached = e.Usage.Details.Cached
		}
		if len(e.Choices) == 1 {
			if first == 0 {
				first = float64(time.Since(begin).Microseconds()) / 1000
			}
			text += e.Choices[0].Text
		}
	}
	return text, first, cached, nil
}

// rows returns the bytes of the rows of all conversations.
func (v *server) rows() (n int64, err error) {
	res, err := http.Get(v.url + "/v1/kvist/conversations")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	var list struct{ Data []struct{ Bytes int64 } }
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		return 0, err
	}
	for _, c := range list.Data {
		n += c.Bytes
	}
	return n, nil
}
