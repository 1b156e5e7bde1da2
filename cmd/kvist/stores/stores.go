// SPDX-License-Identifier: Apache-2.0

// Package stores opens a store beyond the machine by its URL. It is what the command's --store takes; programs may call
// it too, or the packages below it, which name one service each. Nothing in engine imports them: who does not name a
// service does not link its client.
//
//	s3://BUCKET[/PREFIX][?endpoint=http://HOST:PORT&region=REGION]
//	redis://[USER:PASSWORD@]HOST[:PORT][/DB][?prefix=PREFIX]     Redis, Valkey; rediss:// with TLS
//	nats://[USER:PASSWORD@]HOST[:PORT]/BUCKET[?prefix=PREFIX]    JetStream; tls:// with TLS
//	file:///FOLDER                                               store.Disk
//
// S3 takes its keys from the environment, as its own tools do: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
package stores

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/kvist-project/kvist/cmd/kvist/stores/nats"
	"github.com/kvist-project/kvist/cmd/kvist/stores/redis"
	"github.com/kvist-project/kvist/cmd/kvist/stores/s3"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/quant"
)

// Open opens the store of a URL. A prefix of the URL stands before that of the options, which files leave aside.
//
// Errors: quant.ErrShape for a URL that is none of the above; those of remote.Open and store.OpenDisk.
func Open(ctx context.Context, rawURL string, o remote.Options) (store.Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// Not the error of url.Parse, which shows the password.
		return nil, fmt.Errorf("kvist/stores: no URL of a store: %w", quant.ErrShape)
	}
	if u.Scheme == "file" && u.Host == "" {
		return store.OpenDisk(u.Path, store.DiskOptions{MaxBytes: o.MaxBytes})
	}
	if o.Prefix == "" {
		o.Prefix = remote.DefaultPrefix
	}
	if o.ObjectBytes == 0 {
		o.ObjectBytes = remote.DefaultObjectBytes
	}
	objects, prefix, err := objects(ctx, u, o.ObjectBytes+remote.FrameBytes)
	if err != nil {
		return nil, err
	}
	o.Prefix = prefix + o.Prefix
	s, err := remote.Open(ctx, objects, o)
	if err != nil {
		return nil, errors.Join(err, objects.Close())
	}
	return s, nil
}

// objects opens the service of a URL.
func objects(ctx context.Context, u *url.URL, most int64) (o remote.Objects, prefix string, err error) {
	q, path := u.Query(), strings.Trim(u.Path, "/")
	take := func(name string) string {
		defer q.Del(name)
		return q.Get(name)
	}
	switch u.Scheme {
	case "s3":
		o, err = s3.Open(s3.Options{Endpoint: take("endpoint"), Region: take("region"), Bucket: u.Host, MostBytes: most})
		prefix = path
	case "redis", "rediss":
		prefix = take("prefix")
		o, err = redis.Open((&url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host, Path: u.Path}).String(), most)
	case "nats", "tls":
		prefix = take("prefix")
		o, err = nats.Open(ctx, nats.Options{Bucket: path, URL: (&url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host}).String()})
	default:
		err = fmt.Errorf("kvist/stores: %s:// is no store, want s3, redis, rediss, nats, tls or file: %w", u.Scheme, quant.ErrShape)
	}
	if err != nil {
		return nil, "", err
	}
	if len(q) > 0 {
		return nil, "", errors.Join(fmt.Errorf("kvist/stores: the query of a URL of %s has %s: %w", u.Scheme, q.Encode(), quant.ErrShape),
			o.Close())
	}
	if prefix != "" {
		prefix += "/"
	}
	return o, prefix, nil
}
