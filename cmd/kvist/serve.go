// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/cmd/kvist/internal/serve"
	"github.com/kvist-project/kvist/engine/runner"
)

type serveFlags struct {
	answerFlags
	addr, keys, name        string
	running, waiting, chunk int
	idle, connections       int
	fadeAfter, timeout      time.Duration
	drain                   time.Duration
	parkAfter               time.Duration
	fade, folder, folderMax string
	store                   string
	maxBody                 int64
}

func newServe(a *app) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve MODEL",
		Short: "Serve a model over HTTP, as OpenAI's API, with a cache that keeps a budget",
		Long: `serve answers chat and text completions over HTTP, as the clients of OpenAI's API ask for them, whole
or streamed. The KV cache of all conversations keeps --kv-budget: when that is used up, the detail of old tokens
fades where it costs least. / is a page that shows what is kept of each token; /metrics is for Prometheus;
/health says whether it can answer.

MODEL is a GGUF file, or smollm2: the SmolLM2-135M-Instruct that make model downloads, or gemma: the Gemma 3
270M of make model-gemma.

A prompt that begins with a conversation that the cache holds goes on from it. With --keys, every request under
/v1 needs one of the keys, and conversations and prefixes are shared within a key only. Half of the budget is divided
among the keys: what a key holds within its part is not taken for others.

With --conversations, conversations outlive the server: they are parked in the folder, with their rows as they
are, when they are idle, when memory is short and when the server ends, and go on from there. A request with
"kvist": {"save": true} is parked at once, and survives even if the server is killed. With --park-bits, rows that are still
exact are parked in archive form, in a fraction of the bytes and with an error, and idle conversations are parked before
the detail of any fades.

With --store, servers of the same model and settings share what they have computed: the first tokens of a prompt are
computed by one of them, whatever machine it is on, and found by the others under the same key. URL is
s3://BUCKET/PREFIX?endpoint=http://HOST:PORT, redis://HOST:PORT/DB, nats://HOST:PORT/BUCKET or file:///FOLDER. Rows are
verified, not encrypted: who reads the store reads them. They stay for a day, or until the conversation is deleted.
Beside --conversations, conversations are parked in the folder and shared in the store.

An interrupt or SIGTERM ends the server: it refuses new requests and gives the answers under way --drain to end. A
second one ends it at once.`,
		Example: `  kvist serve smollm2
  kvist serve model.gguf --kv-budget 2GiB --keys keys.txt --addr 0.0.0.0:8080
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"messages": [{"role": "user", "content": "Name three rivers."}]}'`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.serve(cmd.Context(), args[0], &f)
		}),
	}
	f.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.addr, "addr", "127.0.0.1:8080", "`HOST:PORT` to listen on; port 0 takes a free one")
	fs.StringVar(&f.keys, "keys", "", "`FILE` with API keys, one a line; lines that begin with # are comments")
	fs.StringVar(&f.name, "name", "", "`NAME` of the model in the API; by default that of the file")
	fs.IntVar(&f.running, "parallel", 8, "most answers at once; --kv-budget 12% is of the context of so many")
	fs.IntVar(&f.waiting, "queue", 64, "most requests that wait")
	fs.IntVar(&f.chunk, "chunk", 64, "most `tokens` of prompts in one step")
	fs.IntVar(&f.idle, "idle", 256, "most conversations that are kept after their answers")
	fs.IntVar(&f.connections, "connections", 1024, "most connections")
	fs.DurationVar(&f.fadeAfter, "fade-after", 0, "how long a conversation is idle until it gives up --fade of its bytes; 0: it does not")
	fs.StringVar(&f.fade, "fade", "50%", "`SHARE` that an idle conversation gives up")
	fs.StringVar(&f.folder, "conversations", "", "`FOLDER` that idle conversations are parked in; a server finds them again when it starts")
	fs.StringVar(&f.folderMax, "conversations-max", "", "most `BYTES` of rows in the folder; when it is full, what was parked for longest goes. Default: no limit")
	fs.StringVar(&f.store, "store", "", "`URL` of a store that servers share: what one computed of a prompt, the others find there")
	fs.Float64Var(&f.parkBits, "park-bits", 0, "`BITS` a value that parked conversations take, by the basis of --profile, 0.25 to 8; 0: as they are in memory")
	fs.DurationVar(&f.parkAfter, "park-after", time.Minute, "how long a conversation is idle until it is parked; 0: until memory is short or the server ends")
	fs.DurationVar(&f.timeout, "timeout", 10*time.Minute, "longest time of an answer")
	fs.DurationVar(&f.drain, "drain", 20*time.Second, "time that answers have to end when the server is told to")
	fs.Int64Var(&f.maxBody, "max-body", 4<<20, "most `BYTES` of a request")
	return cmd
}

func (f *serveFlags) check() (fade float64, err error) {
	for _, x := range []struct {
		flag string
		ok   bool
		want string
	}{
		{"parallel", f.running >= 1 && f.running <= 256, "1 to 256"},
		{"queue", f.waiting >= 1 && f.waiting <= 1<<16, "1 to 65536"},
		{"chunk", f.chunk >= 1 && f.chunk <= 2048, "1 to 2048"},
		{"idle", f.idle >= 0 && f.idle <= 1<<16, "0 to 65536"},
		{"connections", f.connections >= 1 && f.connections <= 1<<16, "1 to 65536"},
		{"fade-after", f.fadeAfter >= 0, "0 or more"},
		{"park-after", f.parkAfter >= 0, "0 or more"},
		{"park-bits", f.parkBits == 0 || f.parkBits >= 0.25 && f.parkBits <= 8, "0, or 0.25 to 8"},
		{"timeout", f.timeout > 0, "more than 0"},
		{"drain", f.drain >= 0, "0 or more"},
		{"max-body", f.maxBody >= 1, "1 or more"},
	} {
		if !x.ok {
			return 0, usagef("--%s: want %s", x.flag, x.want)
		}
	}
	if fade, err = parseShare(f.fade); err != nil {
		return 0, usagef("--fade %q: %v", f.fade, err)
	}
	return fade, nil
}

// readKeys reads the API keys of a file.
func readKeys(path string) (keys []string, err error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no key: without one nobody could ask, and without --keys everybody can", path)
	}
	return keys, nil
}

// loopback reports whether an address is reached from this machine only.
func loopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

func (a *app) serve(ctx context.Context, name string, f *serveFlags) (err error) {
	fade, err := f.check()
	if err != nil {
		return err
	}
	keys, err := readKeys(f.keys)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", f.addr) // before the model is loaded: a port in use is told at once
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // it is closed by the server
	log := slog.New(slog.NewTextHandler(a.stderr, nil))
	o := runner.Options{Running: f.running, Waiting: f.waiting, Chunk: f.chunk, Idle: f.idle, FadeAfter: f.fadeAfter,
		Fade: fade, Folder: f.folder, ParkAfter: f.parkAfter, Logger: a.logger()}
	if f.idle == 0 {
		o.Idle = -1
	}
	if f.folderMax != "" {
		if o.FolderBytes, _, err = parseBudget(f.folderMax); err != nil || o.FolderBytes < 1<<20 {
			return usagef("--conversations-max %q: want at least 1 MiB", f.folderMax)
		}
	}
	if len(keys) > 1 {
		o.Tenants, o.TenantOf = len(keys), serve.KeyOf
	}
	if f.parkBits != 0 && (f.folder == "" || f.profile == "") {
		return usagef("--park-bits: want --conversations, and --profile with a basis (kvist calibrate makes one)")
	}
	if f.store != "" {
		if o.Store, err = openShared(ctx, f.store, a.logger()); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.Store.Close()) }()
		defer sweepShared(ctx, o.Store, sweepEvery, log)()
	}
	w, err := f.open(a, name, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if f.name == "" {
		f.name = strings.TrimSuffix(filepath.Base(name), ".gguf")
	}
	f.name = strings.ToValidUTF8(f.name, "\ufffd") // what JSON and labels of metrics can hold
	h := serve.New(serve.Config{Runner: w.r, Model: f.name, Keys: keys, Loopback: loopback(l.Addr()), MaxBody: f.maxBody,
		Timeout: f.timeout, Version: buildVersion().Version, Log: log})
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	a.complain("%s", w.about())
	if len(keys) == 0 && !loopback(l.Addr()) {
		a.complain("warning: everybody who reaches %s can ask, and see all conversations (--keys sets keys)", l.Addr().String())
	}
	a.complain("listening on http://%s", l.Addr().String())
	return serveUntil(ctx, srv, h, limitTo(l, f.connections), f.drain)
}

// serveUntil serves until a signal or the end of ctx, and then gives answers under way some time to end.
func serveUntil(ctx context.Context, srv *http.Server, h *serve.Server, l net.Listener, drain time.Duration) error {
	asked := make(chan struct{})
	var told bool
	defer onSignal(ctx, func(os.Signal) bool { // a second one is not taken
		first := !told
		if told = true; first {
			close(asked)
		}
		return first
	})()
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		drain = 0
	case <-asked:
	}
	h.Drain()
	to, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel) // a second signal
	defer stop()
	if err := srv.Shutdown(to); err != nil {
		return errors.Join(ctx.Err(), srv.Close())
	}
	return ctx.Err()
}

// limitListener holds no more than some connections at a time; others wait in the system's queue.
type limitListener struct {
	net.Listener
	slots chan struct{}
}

func limitTo(l net.Listener, n int) net.Listener { return &limitListener{l, make(chan struct{}, n)} }

// Accept implements net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

type limitConn struct {
	net.Conn
	free func() // once: a server that ends closes connections beside those who serve them
}

// Close implements net.Conn.
func (c *limitConn) Close() error {
	err := c.Conn.Close()
	c.free()
	return err
}
