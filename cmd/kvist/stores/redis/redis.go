// SPDX-License-Identifier: Apache-2.0

// Package redis keeps objects in a Redis or Valkey server, by go-redis.
//
// An object is one string with the server's own expiry. Immutability is SET NX, and a script of the server that compares
// the first bytes before it replaces. The server must not evict keys of its own choice where they are to stay:
// maxmemory-policy noeviction turns a full server into quant.ErrFull.
package redis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"strings"
	"time"

	client "github.com/redis/go-redis/v9"

	"github.com/kvist-project/kvist/cmd/kvist/internal/guard"
	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/quant"
)

// Objects is remote.Objects in a server.
type Objects struct{ c *client.Client }

// headBytes is what tells an object from others: a frame, and some.
const headBytes = 128

// Open returns the objects of a server: redis://[user:password@]host[:port][/db], or rediss:// for TLS. Replies are
// bounded to mostBytes and some. Nothing is connected yet.
//
// Errors: quant.ErrShape for a URL that is none.
func Open(url string, mostBytes int64) (*Objects, error) {
	o, err := client.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("kvist/stores/redis: %w: %w", quant.ErrShape, err)
	}
	o.MaxRetries = -1 // remote.Store tries again
	o.ContextTimeoutEnabled = true
	o.ReadTimeout, o.WriteTimeout = -1, -1 // that of the context
	o.Protocol, o.DisableIdentity = 2, true
	if o.TLSConfig == nil {
		var d net.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return guard.New(c, guard.Redis(mostBytes+headBytes, 1<<20)), nil
		}
	}
	return &Objects{client.NewClient(o)}, nil
}

// replace stores a string in the place of one that begins with some bytes. ARGV: those, the string, milliseconds.
var replace = client.NewScript(`
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1`)

// category adds what an error means to remote.Store.
func category(err error) error {
	if err == nil {
		return nil
	}
	for _, c := range []struct {
		starts string
		is     error
	}{{"OOM", quant.ErrFull}, {"NOAUTH", quant.ErrUnsupported}, {"WRONGPASS", quant.ErrUnsupported},
		{"NOPERM", quant.ErrUnsupported}, {"WRONGTYPE", quant.ErrCorrupt}} {
		var said client.Error // by the server
		if errors.As(err, &said) && strings.HasPrefix(said.Error(), c.starts) {
			return fmt.Errorf("%w: %w", c.is, err)
		}
	}
	return err
}

// Expires is that of remote.Expirer.
func (o *Objects) Expires() bool { return true }

// Create is that of remote.Objects.
func (o *Objects) Create(ctx context.Context, name string, object []byte, ttl time.Duration) error {
	ok, err := o.c.SetNX(ctx, name, object, ttl).Result()
	if err == nil && !ok {
		return fs.ErrExist
	}
	return category(err)
}

// Replace is that of remote.Objects.
func (o *Objects) Replace(ctx context.Context, name string, object []byte, ttl time.Duration, of remote.Version) error {
	n, err := replace.Run(ctx, o.c, []string{name}, string(of), object, ttl.Milliseconds()).Int()
	if err == nil && n == 0 {
		return fs.ErrExist
	}
	return category(err)
}

// Get is that of remote.Objects.
func (o *Objects) Get(ctx context.Context, name string, most int64) ([]byte, remote.Version, error) {
	p, err := o.c.GetRange(ctx, name, 0, most).Bytes() // one byte more
	switch {
	case err != nil:
		return nil, "", category(err)
	case len(p) == 0: // an object is never empty
		return nil, "", fs.ErrNotExist
	case int64(len(p)) > most:
		return nil, "", fmt.Errorf("a string of more than %d bytes: %w", most, quant.ErrTooLarge)
	}
	return p, remote.Version(p[:min(len(p), headBytes)]), nil
}

// Peek is that of remote.Objects.
func (o *Objects) Peek(ctx context.Context, name string, n int) ([]byte, error) {
	p, err := o.c.GetRange(ctx, name, 0, int64(n)-1).Bytes()
	if err == nil && len(p) == 0 {
		return nil, fs.ErrNotExist
	}
	return p, category(err)
}

// Delete is that of remote.Objects. The server frees the memory beside its work.
func (o *Objects) Delete(ctx context.Context, name string) error {
	return category(o.c.Unlink(ctx, name).Err())
}

// List is that of remote.Objects.
func (o *Objects) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	pattern := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(prefix) + "*"
	return func(yield func(string, error) bool) {
		for cursor := uint64(0); ; {
			names, next, err := o.c.Scan(ctx, cursor, pattern, 1000).Result()
			if err != nil {
				yield("", category(err))
				return
			}
			for _, n := range names {
				if !yield(n, nil) {
					return
				}
			}
			if cursor = next; cursor == 0 {
				return
			}
		}
	}
}

// Close is that of remote.Objects.
func (o *Objects) Close() error { return o.c.Close() }
