// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/cmd/kvist/internal/resp"
)

type storeFlags struct {
	listen, max, valueMax string
	password, events      string
	connections           int
	idle                  time.Duration
	raw                   bool
}

func newStore(a *app) *cobra.Command {
	var f storeFlags
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Hold values for other servers over Redis' protocol, packed without loss",
		Long: `store is a remote store for caches of K and V, such as LMCache's, over the protocol of Redis: GET, SET, EXISTS,
DEL, STRLEN, MGET, PING, AUTH, INFO. Values are opaque. Those of 16-bit numbers are packed without loss, bfloat16 K and
V about 1.5 times; others are kept as they are. Values that were unused for longest go when --max is reached.

Everything is in memory, and gone when the verb ends.`,
		Example: `  kvist store --max 8GiB
  kvist store --listen 0.0.0.0:6379 --password-file secret --events events.jsonl
  redis-cli info memory`,
		Args: cobra.NoArgs,
		RunE: a.verb(func(cmd *cobra.Command, _ []string) error { return a.store(cmd.Context(), &f) }),
	}
	fs := cmd.Flags()
	fs.StringVar(&f.listen, "listen", "127.0.0.1:6379", "`HOST:PORT` to listen on; port 0 takes a free one")
	fs.StringVar(&f.max, "max", "1GiB", "most `BYTES` of packed values")
	fs.StringVar(&f.valueMax, "value-max", "64MiB", "most `BYTES` of a value")
	fs.StringVar(&f.password, "password-file", "", "`FILE` with the password that clients must say")
	fs.StringVar(&f.events, "events", "", "`FILE` that gets a line of JSON for every key that is stored or removed; - is standard output")
	fs.IntVar(&f.connections, "connections", 1024, "most connections")
	fs.DurationVar(&f.idle, "idle", 10*time.Minute, "how long a connection may be silent")
	fs.BoolVar(&f.raw, "raw", false, "keep values as they are")
	return cmd
}

// options reads the flags.
func (f *storeFlags) options() (o resp.Options, err error) {
	o = resp.Options{Connections: f.connections, Idle: f.idle, Raw: f.raw, Version: buildVersion().Version}
	for _, b := range []struct {
		flag, value string
		to          *int64
	}{{"max", f.max, &o.MaxBytes}, {"value-max", f.valueMax, &o.ValueBytes}} {
		if *b.to, _, err = parseBudget(b.value); err != nil || *b.to < 1 {
			return o, usagef("--%s %q: want a number of bytes, as 8GiB", b.flag, b.value)
		}
	}
	if f.connections < 1 || f.idle <= 0 {
		return o, usagef("--connections %d, --idle %v: want more than 0", f.connections, f.idle)
	}
	o.Password, err = readPassword(f.password)
	return o, err
}

// readPassword reads the password of a file. No file, no password.
func readPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	p, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	password := strings.TrimSpace(string(p))
	if password == "" {
		return "", usagef("--password-file %s: it is empty", path)
	}
	return password, nil
}

func (a *app) store(ctx context.Context, f *storeFlags) (err error) {
	o, err := f.options()
	if err != nil {
		return err
	}
	events, err := a.eventsTo(f.events)
	if err != nil {
		return err
	}
	if events != nil {
		o.Events = events
		defer func() { err = errors.Join(err, events.Close()) }()
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	if o.Password == "" && !loopback(l.Addr()) {
		a.complain("warning: everybody who reaches %s can read and write (--password-file sets a password)", l.Addr().String())
	}
	s := resp.New(o)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	a.complain("listening on redis://%s", l.Addr().String())
	asked := make(chan struct{}, 1)
	defer onSignal(ctx, func(os.Signal) bool {
		select {
		case asked <- struct{}{}:
		default:
		}
		return true
	})()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	case <-asked:
	}
	return errors.Join(l.Close(), <-ended)
}

// eventsTo opens where events go. nil: nowhere.
func (a *app) eventsTo(name string) (io.WriteCloser, error) {
	switch name {
	case "":
		return nil, nil
	case "-":
		return nopCloser{a.binary}, nil
	}
	return os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

type nopCloser struct{ io.Writer }

// Close does nothing.
func (nopCloser) Close() error { return nil }
