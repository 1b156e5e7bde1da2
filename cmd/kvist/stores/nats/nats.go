// SPDX-License-Identifier: Apache-2.0

// Package nats keeps objects in a NATS server with JetStream, by nats.go.
//
// A bucket of its key-value store says what is under a name: a small object itself, or the first bytes of a large one
// and where it is in the object store of the same name. So an object is created and replaced by the revision of its
// entry, which the object store alone does not offer. What an entry no longer names is removed; a process that ends
// between the two leaves an object that nobody names until the bucket's own limits remove it.
package nats

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"strings"
	"sync"
	"time"

	client "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kvist-project/kvist/cmd/kvist/internal/guard"
	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/quant"
)

// Options are those of Open.
type Options struct {
	URL    string // nats://[user:password@]host[:port], or tls://
	Bucket string // of letters, digits, - and _; made if it is not there
	// MaxBytes bounds the bucket, if this call makes it. 0: no limit.
	MaxBytes int64
	// TTL is how long the server keeps anything, if this call makes the bucket. 0: for ever.
	TTL time.Duration
}

// Objects is remote.Objects in a bucket.
type Objects struct {
	o      Options
	mu     sync.Mutex
	at     *session
	begun  time.Time // of the session
	closed bool
}

// session is a connection and what it knows of the bucket. The client mends connections that break, but gives one up for
// good on which it has read something that is no message.
type session struct {
	bucket  string
	conn    *client.Conn
	js      jetstream.JetStream
	kv      jetstream.KeyValue
	large   jetstream.ObjectStore
	streams [2]jetstream.Stream // of the two buckets
}

const (
	inlineBytes = 64 << 10 // larger objects are in the object store
	headBytes   = 128      // of a large object, in its entry
	mostConnect = 5 * time.Second
	mostMessage = 64 << 20 // that a server may send; its own default is 1 MiB
)

// The kinds of entries: the object; or u64 its bytes, u8 the length of its name in the object store, the name, its head.
const (
	kindInline = 1
	kindLarge  = 2
)

type dialer struct{}

// Dial is that of client.CustomDialer.
func (dialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.DialTimeout(network, address, mostConnect)
	if err != nil {
		return nil, err
	}
	return guard.New(c, guard.NATS(mostMessage)), nil
}

// Open connects to a server and makes the bucket if it is not there.
//
// Errors: quant.ErrShape for options that make no sense; those of the server, with quant.ErrUnavailable.
func Open(ctx context.Context, o Options) (*Objects, error) {
	at, err := connect(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("kvist/stores/nats: %w", err)
	}
	return &Objects{o: o, at: at, begun: time.Now()}, nil
}

// session returns the session, a new one if that was given up.
func (s *Objects) session(ctx context.Context) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.at.conn.IsClosed() {
		return s.at, nil
	}
	at, err := connect(ctx, s.o)
	if err == nil {
		s.at, s.begun = at, time.Now()
	}
	return s.at, err
}

// renewAfter is how old a session is at least that is given up.
const renewAfter = time.Second

// with calls f with a session. One in which a call has waited in vain is given up: after a damaged length each side may
// wait for bytes that never come.
func (s *Objects) with(ctx context.Context, f func(o *session) error) error {
	o, err := s.session(ctx)
	if err != nil {
		return err
	}
	if err = f(o); errors.Is(err, context.DeadlineExceeded) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.at == o && time.Since(s.begun) > renewAfter {
			o.conn.Close()
		}
	}
	return err
}

func connect(ctx context.Context, o Options) (_ *session, err error) {
	wait := mostConnect
	if end, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(end)), time.Millisecond)
	}
	conf := []client.Option{client.Name("kvist"), client.MaxReconnects(-1), client.ReconnectWait(100 * time.Millisecond),
		client.ReconnectBufSize(-1), client.Timeout(wait)}
	if strings.HasPrefix(o.URL, "nats://") {
		conf = append(conf, client.SetCustomDialer(dialer{}))
	}
	x := &session{bucket: o.Bucket}
	if x.conn, err = client.Connect(o.URL, conf...); err != nil {
		return nil, away(err)
	}
	if x.js, err = jetstream.New(x.conn); err == nil {
		err = x.openBuckets(ctx, o)
	}
	if err != nil {
		x.conn.Close()
		return nil, err
	}
	return x, nil
}

// away says that a server does not answer, without the words of quant.ErrUnavailable about devices.
func away(err error) error { return &awayError{err} }

type awayError struct{ cause error }

// Error is the cause.
func (e *awayError) Error() string { return e.cause.Error() }

// Unwrap returns the category and the cause.
func (e *awayError) Unwrap() []error { return []error{quant.ErrUnavailable, e.cause} }

func (o *session) openBuckets(ctx context.Context, opts Options) (err error) {
	if o.kv, err = o.js.KeyValue(ctx, opts.Bucket); errors.Is(err, jetstream.ErrBucketNotFound) {
		o.kv, err = o.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: opts.Bucket, TTL: opts.TTL})
	}
	if err != nil {
		return opened(err)
	}
	if o.large, err = o.js.ObjectStore(ctx, opts.Bucket); errors.Is(err, jetstream.ErrBucketNotFound) {
		o.large, err = o.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: opts.Bucket, MaxBytes: opts.MaxBytes,
			TTL: opts.TTL})
	}
	for i, name := range []string{"KV_", "OBJ_"} {
		if err == nil {
			o.streams[i], err = o.js.Stream(ctx, name+opts.Bucket)
		}
	}
	return opened(err)
}

// opened adds why a bucket could not be opened.
func opened(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrInvalidBucketName), errors.Is(err, jetstream.ErrInvalidStoreName):
		return fmt.Errorf("%w: %w", quant.ErrShape, err)
	}
	return away(err)
}

// Create is that of remote.Objects.
func (s *Objects) Create(ctx context.Context, name string, object []byte, _ time.Duration) error {
	return s.with(ctx, func(o *session) error { return o.create(ctx, name, object) })
}

// Replace is that of remote.Objects.
func (s *Objects) Replace(ctx context.Context, name string, object []byte, _ time.Duration, of remote.Version) error {
	return s.with(ctx, func(o *session) error { return o.replace(ctx, name, object, of) })
}

// Get is that of remote.Objects.
func (s *Objects) Get(ctx context.Context, name string, most int64) (p []byte, v remote.Version, err error) {
	err = s.with(ctx, func(o *session) (err error) {
		p, v, err = o.read(ctx, name, most)
		return err
	})
	return p, v, err
}

// Peek is that of remote.Objects.
func (s *Objects) Peek(ctx context.Context, name string, n int) (p []byte, err error) {
	err = s.with(ctx, func(o *session) error {
		x, _, err := o.get(ctx, name)
		p = x.head[:min(n, len(x.head))]
		return err
	})
	return p, err
}

// Delete is that of remote.Objects.
func (s *Objects) Delete(ctx context.Context, name string) error {
	return s.with(ctx, func(o *session) error { return o.remove(ctx, name) })
}

// List is that of remote.Objects.
func (s *Objects) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		err := s.with(ctx, func(o *session) error {
			return o.names(ctx, prefix, func(n string) bool { return yield(n, nil) })
		})
		if err != nil {
			yield("", err)
		}
	}
}

// Close is that of remote.Objects.
func (s *Objects) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.at.conn.Close()
	return nil
}
