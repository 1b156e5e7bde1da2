// SPDX-License-Identifier: Apache-2.0

// Command serveload measures kvist serve on loopback: the time to the first token and from token to token at
// several numbers of clients, with and without compression, both servers in turn in one run.
//
//	go build -o bin/kvist ./cmd/kvist && go run ./bench/serveload -kvist bin/kvist
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kvist-project/kvist/bench/quality/texts"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// settings are those of the run.
type settings struct {
	binary, model          string
	clients                []int
	turns, answer, context int
	rounds                 int
}

func run() error {
	var s settings
	flag.StringVar(&s.binary, "kvist", "bin/kvist", "the command")
	flag.StringVar(&s.model, "model", "smollm2", "the model")
	flag.IntVar(&s.turns, "turns", 3, "turns of each client")
	flag.IntVar(&s.answer, "answer", 32, "tokens of an answer")
	flag.IntVar(&s.context, "context", 2048, "tokens of a conversation")
	flag.IntVar(&s.rounds, "rounds", 2, "times that both servers take their turn at each number of clients")
	clients := flag.String("clients", "1,4,16", "numbers of clients")
	budgets := flag.String("budgets", "100%,12.5%", "budgets of the servers")
	conversations := flag.Int("hold", 0, "in place of the load, fill a server with so many conversations and ask each for a fact")
	holdBudget := flag.String("hold-budget", "64MiB", "budget of that server")
	only := flag.String("hold-only", "", "only that of its servers: exact, compressed or killed")
	window := flag.String("window", "64", "exact window of that server")
	flag.Parse()
	if *conversations > 0 {
		return hold(s, *conversations, *holdBudget, *only, []string{"--window", *window})
	}
	for _, c := range strings.Split(*clients, ",") {
		n, err := strconv.Atoi(c)
		if err != nil {
			return err
		}
		s.clients = append(s.clients, n)
	}
	var servers []*server
	defer func() {
		for _, v := range servers {
			v.stop()
		}
	}()
	for _, b := range strings.Split(*budgets, ",") {
		v, err := start(s, b)
		if err != nil {
			return err
		}
		servers = append(servers, v)
	}
	fmt.Printf("%s, %s/%s, %d cores, %s; %d turns a client, prompts of about 300 tokens and 40 more a turn, answers of %d tokens\n\n",
		time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), s.model, s.turns, s.answer)
	fmt.Println("| clients | budget | answers | first token p50, ms | p99 | token to token p50, ms | p99 | tokens/s | CPU ms a token | resident, MB |")
	fmt.Println("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, n := range s.clients {
		sums := make([]sample, len(servers))
		for round := range s.rounds {
			for i := range servers {
				v := servers[(i+round)%len(servers)]
				x, err := v.load(s, n, round)
				if err != nil {
					return fmt.Errorf("%d clients, budget %s: %w", n, v.budget, err)
				}
				sums[(i+round)%len(servers)].add(x)
			}
		}
		for i, v := range servers {
			x := &sums[i]
			fmt.Printf("| %d | %s | %d | %.0f | %.0f | %.1f | %.1f | %.1f | %.1f | %.0f |\n", n, v.budget, len(x.first),
				quantile(x.first, .5), quantile(x.first, .99), quantile(x.between, .5), quantile(x.between, .99),
				float64(x.tokens)/x.wall.Seconds(), 1000*x.cpu.Seconds()/float64(x.tokens), v.resident())
		}
	}
	return nil
}

// sample is what was measured, in milliseconds.
type sample struct {
	first, between []float64
	tokens         int
	wall, cpu      time.Duration
}

func (s *sample) add(x sample) {
	s.first, s.between = append(s.first, x.first...), append(s.between, x.between...)
	s.tokens, s.wall, s.cpu = s.tokens+x.tokens, s.wall+x.wall, s.cpu+x.cpu
}

// quantile returns the value below which a share of x lies.
func quantile(x []float64, q float64) float64 {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	return x[min(len(x)-1, int(q*float64(len(x))))]
}

// server is a kvist serve of its own process.
type server struct {
	budget, url string
	cmd         *exec.Cmd
}

func start(s settings, budget string, extra ...string) (*server, error) {
	most := slices.Max(s.clients)
	cmd := exec.Command(s.binary, append([]string{"serve", s.model, "--addr", "127.0.0.1:0", "--context", strconv.Itoa(s.context),
		"--kv-budget", budget, "--parallel", strconv.Itoa(most), "--queue", "256"}, extra...)...)
	errs, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	v := &server{budget: budget, cmd: cmd}
	for sc := bufio.NewScanner(errs); sc.Scan(); {
		fmt.Fprintln(os.Stderr, sc.Text())
		if _, url, ok := strings.Cut(sc.Text(), "listening on "); ok {
			v.url = url
			go io.Copy(io.Discard, errs) //nolint:errcheck // it ends with the process
			return v, nil
		}
	}
	v.stop()
	return nil, fmt.Errorf("serveload: the server did not start: %w", errAnswer)
}

func (v *server) stop() {
	_ = v.cmd.Process.Signal(syscall.SIGTERM)
	_ = v.cmd.Wait()
}

// load has so many clients talk at once.
func (v *server) load(s settings, clients, round int) (sample, error) {
	var (
		mu   sync.Mutex
		all  sample
		errs error
		wg   sync.WaitGroup
	)
	cpu, begin := v.cpu(), time.Now()
	for c := range clients {
		wg.Go(func() {
			x, err := v.talk(s, fmt.Sprintf("client %d of %d, round %d", c, clients, round), c)
			mu.Lock()
			defer mu.Unlock()
			all.add(x)
			errs = errors.Join(errs, err)
		})
	}
	wg.Wait()
	all.wall, all.cpu = time.Since(begin), v.cpu()-cpu
	return all, errs
}

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// talk has one client take its turns.
func (v *server) talk(s settings, name string, c int) (all sample, err error) {
	list := texts.All()
	words := strings.Fields(list[c%len(list)].Body)
	take := func(n int) string {
		n = min(n, len(words))
		var some []string
		some, words = words[:n], words[n:]
		return strings.Join(some, " ")
	}
	said := []message{{"user", name + ". Read this and say what it is about: " + take(190)}}
	for range s.turns {
		reply, x, err := v.ask(s, said)
		if err != nil {
			return all, err
		}
		all.add(x)
		said = append(said, message{"assistant", reply}, message{"user", "And this: " + take(25)})
	}
	return all, nil
}

// errAnswer is an answer that is not what was asked for.
var errAnswer = errors.New("not an answer")

// ask streams one answer.
func (v *server) ask(s settings, said []message) (reply string, x sample, err error) {
	body, err := json.Marshal(map[string]any{"messages": said, "stream": true, "temperature": 0, "max_tokens": s.answer,
		"ignore_eos": true, "stream_options": map[string]bool{"include_usage": true}})
	if err != nil {
		return "", x, err
	}
	begin := time.Now()
	res, err := http.Post(v.url+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return "", x, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		return "", x, fmt.Errorf("serveload: status %d: %s: %w", res.StatusCode, b, errAnswer)
	}
	last := begin
	for sc := bufio.NewScanner(res.Body); sc.Scan(); {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var e struct {
			Choices []struct {
				Delta struct{ Content string }
			}
			Usage *struct {
				Completion int `json:"completion_tokens"`
			}
			Error *struct{ Message string }
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return "", x, err
		}
		switch {
		case e.Error != nil:
			return "", x, fmt.Errorf("serveload: %s: %w", e.Error.Message, errAnswer)
		case e.Usage != nil:
			x.tokens = e.Usage.Completion
		case len(e.Choices) == 1 && e.Choices[0].Delta.Content != "":
			now := time.Now()
			if ms := float64(now.Sub(last).Microseconds()) / 1000; reply == "" {
				x.first = append(x.first, ms)
			} else {
				x.between = append(x.between, ms)
			}
			reply += e.Choices[0].Delta.Content
			last = now
		}
	}
	if x.tokens != s.answer {
		return "", x, fmt.Errorf("serveload: %d tokens, want %d: %w", x.tokens, s.answer, errAnswer)
	}
	return reply, x, nil
}

// cpu returns the processor time of the server; 0 where /proc does not tell.
func (v *server) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // of 100 a second
}

// resident returns the resident memory of the server in megabytes; 0 where /proc does not tell.
func (v *server) resident() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kb, _ := strconv.ParseFloat(f[0], 64)
	return kb * 1024 / 1e6
}
