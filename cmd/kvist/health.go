// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
)

func newHealth(a *app) *cobra.Command {
	var timeout time.Duration
	var password string
	cmd := &cobra.Command{
		Use:   "health [URL]",
		Short: "Ask a server whether it can answer",
		Long: `health asks kvist serve, by http:// or https://, or kvist store, Redis or Valkey, by redis:// or rediss://,
whether it can answer. The exit status is 0 if it can and 1 if it cannot, or does not say so in time: what a container
that has no shell needs for its health check.

Without a path an http URL gets /health, which needs no key.`,
		Example: `  kvist health
  kvist health redis://127.0.0.1:6379 --password-file secret`,
		Args: cobra.MaximumNArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			at := "http://127.0.0.1:8080"
			if len(args) > 0 {
				at = args[0]
			}
			if timeout <= 0 {
				return usagef("--timeout: want more than 0")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return a.health(ctx, at, password)
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long the server may take")
	cmd.Flags().StringVar(&password, "password-file", "", "`FILE` with the password of a store")
	return cmd
}

func (a *app) health(ctx context.Context, at, passwordFile string) error {
	u, err := url.Parse(at)
	if err != nil || u.Host == "" {
		return usagef("no URL of a server: want http://HOST:PORT or redis://HOST:PORT") // not the URL: it may hold a password
	}
	password, err := readPassword(passwordFile)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "http", "https":
		if password != "" {
			return usagef("--password-file: only stores ask for one")
		}
		err = healthHTTP(ctx, u)
	case "redis", "rediss":
		err = healthRedis(ctx, u, password)
	default:
		return usagef("%s://: want http, https, redis or rediss", u.Scheme)
	}
	if err != nil {
		return fmt.Errorf("%s does not answer as it should: %w", u.Host, err)
	}
	_, err = fmt.Fprintln(a.stdout, "ok")
	return err
}

// healthHTTP asks a server over HTTP.
func healthHTTP(ctx context.Context, u *url.URL) error {
	if u.Path == "" || u.Path == "/" {
		u.Path = "/health"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	// No proxy of the environment: what is asked is this server. A redirect is not its word.
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		var said struct{ Error struct{ Message string } }
		_ = json.Unmarshal(body, &said) // another server's error page says nothing
		return fmt.Errorf("%s %s", res.Status, said.Error.Message)
	}
	return nil
}

// healthRedis asks a server of Redis' protocol.
func healthRedis(ctx context.Context, u *url.URL, password string) error {
	o, err := redis.ParseURL(u.String())
	if err != nil {
		return err
	}
	if password != "" {
		o.Password = password
	}
	conn, err := o.NewDialer()(ctx, "tcp", o.Addr) // not by the client, which dials five times and logs
	if err != nil {
		return err
	}
	o.Dialer = func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	o.MaxRetries, o.ContextTimeoutEnabled, o.DisableIdentity, o.Protocol = -1, true, true, 2
	c := redis.NewClient(o)
	defer c.Close() //nolint:errcheck // it has said what it had to say
	return c.Ping(ctx).Err()
}
