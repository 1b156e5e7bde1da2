// SPDX-License-Identifier: Apache-2.0

// Package s3 keeps objects in a bucket of S3 or of a service that speaks its protocol, by minio-go.
//
// The service must know conditional writes (If-None-Match and If-Match on PUT), as AWS, MinIO, Ceph and R2 do. It
// removes nothing by itself: a rule of the bucket, or remote.Store.Sweep, removes what has expired.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/quant"
)

// Options are those of Open.
type Options struct {
	Endpoint string // http://host:port or https://host; default that of AWS
	Region   string // default us-east-1
	Bucket   string // must exist
	// AccessKey and SecretKey; "": those of the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or of the
	// machine's role.
	AccessKey, SecretKey string
	MostBytes            int64 // of an object; answers are bounded to that and some
}

// Objects is remote.Objects in a bucket.
type Objects struct {
	c      *minio.Core
	bucket string
	http   *http.Transport
}

// Open returns the objects of a bucket. Nothing is connected yet.
//
// Errors: quant.ErrShape for an endpoint that is none.
func Open(o Options) (*Objects, error) {
	if o.Endpoint == "" {
		o.Endpoint = "https://s3.amazonaws.com"
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("kvist/stores/s3: endpoint %q, want http(s)://host: %w", o.Endpoint, quant.ErrShape)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost, transport.DisableCompression = 64, true
	creds := credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.IAM{}})
	if o.AccessKey != "" {
		creds = credentials.NewStaticV4(o.AccessKey, o.SecretKey, "")
	}
	c, err := minio.NewCore(u.Host, &minio.Options{Creds: creds, Secure: u.Scheme == "https", Region: o.Region,
		Transport: bounded{transport, o.MostBytes + answerBytes}, MaxRetries: 1})
	if err != nil {
		return nil, fmt.Errorf("kvist/stores/s3: %w: %w", quant.ErrShape, err)
	}
	return &Objects{c, o.Bucket, transport}, nil
}

// answerBytes is what an answer may take beside an object: a page of a listing, an error.
const answerBytes = 8 << 20

// bounded cuts answers off that are too long.
type bounded struct {
	http.RoundTripper
	most int64
}

// RoundTrip is that of http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	a, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		a.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(a.Body, b.most), a.Body}
	}
	return a, err
}

// category adds what an error means to remote.Store.
func category(err error) error {
	var said minio.ErrorResponse
	if err == nil || !errors.As(err, &said) {
		return err
	}
	is := map[string]error{
		minio.NoSuchKey:          fs.ErrNotExist,
		minio.PreconditionFailed: fs.ErrExist,
		"NoSuchBucket":           quant.ErrUnsupported, minio.InvalidBucketName: quant.ErrUnsupported,
		minio.AccessDenied: quant.ErrUnsupported, "InvalidAccessKeyId": quant.ErrUnsupported,
		minio.NotImplemented: quant.ErrUnsupported,
		"EntityTooLarge":     quant.ErrTooLarge,
		"QuotaExceeded":      quant.ErrFull, "XMinioAdminBucketQuotaExceeded": quant.ErrFull, "XMinioStorageFull": quant.ErrFull,
	}[said.Code]
	switch {
	case is != nil:
	case said.StatusCode == http.StatusPreconditionFailed:
		is = fs.ErrExist
	default:
		return err
	}
	return fmt.Errorf("%w: %w", is, err)
}

func (o *Objects) put(ctx context.Context, name string, object []byte, opts minio.PutObjectOptions) error {
	opts.DisableMultipart, opts.SendContentMd5 = true, true // the service refuses what was damaged on its way
	opts.ContentType = "application/octet-stream"
	_, err := o.c.Client.PutObject(ctx, o.bucket, name, bytes.NewReader(object), int64(len(object)), opts)
	return category(err)
}

// Create is that of remote.Objects.
func (o *Objects) Create(ctx context.Context, name string, object []byte, _ time.Duration) error {
	var opts minio.PutObjectOptions
	opts.SetMatchETagExcept("*")
	return o.put(ctx, name, object, opts)
}

// Replace is that of remote.Objects.
func (o *Objects) Replace(ctx context.Context, name string, object []byte, _ time.Duration, of remote.Version) error {
	var opts minio.PutObjectOptions
	opts.SetMatchETag(string(of))
	err := o.put(ctx, name, object, opts)
	if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
		return fs.ErrExist
	}
	return err
}

// Get is that of remote.Objects.
func (o *Objects) Get(ctx context.Context, name string, most int64) ([]byte, remote.Version, error) {
	return o.read(ctx, name, most, minio.GetObjectOptions{})
}

func (o *Objects) read(ctx context.Context, name string, most int64, opts minio.GetObjectOptions) ([]byte, remote.Version, error) {
	body, info, _, err := o.c.GetObject(ctx, o.bucket, name, opts)
	if err != nil {
		return nil, "", category(err)
	}
	defer body.Close() //nolint:errcheck // it is only read
	if info.Size > most {
		return nil, "", fmt.Errorf("an object of %d bytes, the most are %d: %w", info.Size, most, quant.ErrTooLarge)
	}
	p := bytes.NewBuffer(make([]byte, 0, max(info.Size, 0)+bytes.MinRead))
	if _, err := p.ReadFrom(io.LimitReader(body, most+1)); err != nil {
		return nil, "", err
	}
	if int64(p.Len()) > most {
		return nil, "", fmt.Errorf("an object of more than %d bytes: %w", most, quant.ErrTooLarge)
	}
	return p.Bytes(), remote.Version(info.ETag), nil
}

// Peek is that of remote.Objects.
func (o *Objects) Peek(ctx context.Context, name string, n int) ([]byte, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(0, int64(n)-1); err != nil {
		return nil, err
	}
	p, _, err := o.read(ctx, name, int64(n), opts)
	return p, err
}

// Delete is that of remote.Objects.
func (o *Objects) Delete(ctx context.Context, name string) error {
	err := category(o.c.RemoveObject(ctx, o.bucket, name, minio.RemoveObjectOptions{}))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// List is that of remote.Objects.
func (o *Objects) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the listing when the caller stops
		for x := range o.c.Client.ListObjects(ctx, o.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if !yield(x.Key, category(x.Err)) || x.Err != nil {
				return
			}
		}
	}
}

// Close is that of remote.Objects.
func (o *Objects) Close() error {
	o.http.CloseIdleConnections()
	return nil
}
