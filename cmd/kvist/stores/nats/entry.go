// SPDX-License-Identifier: Apache-2.0

package nats

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	client "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/quant"
)

// Codes of errors of JetStream that say that there is no room.
var full = []jetstream.ErrorCode{10023, 10028, 10047, 10077, 10122}

// category adds what an error means to remote.Store.
func category(err error) error {
	var said *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case errors.Is(err, jetstream.ErrKeyExists):
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	case errors.As(err, &said) && said.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	case errors.Is(err, client.ErrMaxPayload):
		return fmt.Errorf("%w: %w", quant.ErrTooLarge, err)
	}
	for _, c := range full {
		if said != nil && said.ErrorCode == c {
			return fmt.Errorf("%w: %w", quant.ErrFull, err)
		}
	}
	return err
}

// entry makes the entry of an object, and stores the object where it is large. undo removes that again.
func (o *session) entry(ctx context.Context, object []byte) (entry []byte, undo func(), err error) {
	if len(object) <= inlineBytes {
		return append([]byte{kindInline}, object...), func() {}, nil
	}
	name := nuid.Next()
	undo = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = o.removeLarge(ctx, name)
	}
	if _, err := o.large.PutBytes(ctx, name, object); err != nil {
		undo()
		return nil, nil, err
	}
	entry = binary.LittleEndian.AppendUint64([]byte{kindLarge}, uint64(len(object)))
	entry = append(append(entry, byte(len(name))), name...)
	return append(entry, object[:headBytes]...), undo, nil
}

// parsed is an entry.
type parsed struct {
	head  []byte // all of an inline object
	large string // "" for an inline one
	bytes int64
}

func parse(p []byte) (x parsed, err error) {
	if len(p) > 0 && p[0] == kindInline {
		return parsed{head: p[1:], bytes: int64(len(p) - 1)}, nil
	}
	if len(p) < 10 || p[0] != kindLarge || len(p) < 10+int(p[9]) {
		return x, fmt.Errorf("an entry of %d bytes: %w", len(p), quant.ErrCorrupt)
	}
	n := 10 + int(p[9])
	return parsed{p[n:], string(p[10:n]), int64(binary.LittleEndian.Uint64(p[1:]))}, nil
}

// removeLarge removes an object of the object store, and what says that it was there.
func (o *session) removeLarge(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	err := o.large.Delete(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil
	}
	mark := "$O." + o.bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
	return errors.Join(err, o.streams[1].Purge(ctx, jetstream.WithPurgeSubject(mark)))
}

// create is Create of a session.
func (o *session) create(ctx context.Context, name string, object []byte) error {
	if _, err := o.kv.Get(ctx, name); err == nil {
		return fs.ErrExist // before a large object is sent
	}
	return o.put(ctx, object, func(entry []byte) error {
		_, err := o.kv.Create(ctx, name, entry)
		return err
	})
}

// put stores an object by a call that makes its entry.
func (o *session) put(ctx context.Context, object []byte, make func(entry []byte) error) error {
	entry, undo, err := o.entry(ctx, object)
	if err == nil {
		err = category(make(entry))
		if errors.Is(err, fs.ErrExist) { // of other errors nobody knows whether the entry is there
			undo()
		}
	}
	return category(err)
}

// replace is Replace of a session.
func (o *session) replace(ctx context.Context, name string, object []byte, of remote.Version) error {
	revision, err := strconv.ParseUint(string(of), 10, 64)
	if err != nil {
		return fs.ErrExist
	}
	was, err := o.kv.Get(ctx, name)
	if err != nil && !errors.Is(category(err), fs.ErrNotExist) {
		return category(err)
	}
	if err != nil || was.Revision() != revision {
		return fs.ErrExist
	}
	err = o.put(ctx, object, func(entry []byte) error {
		_, err := o.kv.Update(ctx, name, entry, revision)
		return err
	})
	if err != nil {
		return err
	}
	if old, e := parse(was.Value()); e == nil {
		return o.removeLarge(ctx, old.large)
	}
	return nil
}

// get returns the entry of a name.
func (o *session) get(ctx context.Context, name string) (parsed, uint64, error) {
	e, err := o.kv.Get(ctx, name)
	if err != nil {
		return parsed{}, 0, category(err)
	}
	x, err := parse(e.Value())
	return x, e.Revision(), err
}

// read is Get of a session.
func (o *session) read(ctx context.Context, name string, most int64) ([]byte, remote.Version, error) {
	x, revision, err := o.get(ctx, name)
	version := remote.Version(strconv.FormatUint(revision, 10))
	switch {
	case err != nil:
		return nil, version, err
	case x.bytes > most || x.bytes < 0:
		return nil, "", fmt.Errorf("an object of %d bytes, the most are %d: %w", x.bytes, most, quant.ErrTooLarge)
	case x.large == "":
		return x.head, version, nil
	}
	r, err := o.large.Get(ctx, x.large)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, version, fmt.Errorf("the object of an entry is gone: %w", quant.ErrCorrupt)
	}
	if err != nil {
		return nil, version, category(err)
	}
	defer r.Close() //nolint:errcheck // it is only read
	p := make([]byte, x.bytes)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, version, fmt.Errorf("read an object of %d bytes: %w", len(p), err)
	}
	return p, version, nil
}

// remove is Delete of a session. The entry goes without leaving a mark: names do not come again.
func (o *session) remove(ctx context.Context, name string) error {
	x, revision, err := o.get(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, quant.ErrCorrupt) {
		return err
	}
	err = o.streams[0].Purge(ctx, jetstream.WithPurgeSubject("$KV."+o.bucket+"."+name),
		jetstream.WithPurgeSequence(revision+1))
	return errors.Join(category(err), o.removeLarge(ctx, x.large))
}

// names is List of a session.
func (o *session) names(ctx context.Context, prefix string, yield func(string) bool) error {
	all, err := o.kv.ListKeys(ctx)
	if err != nil {
		return category(err)
	}
	defer all.Stop() //nolint:errcheck // it ends with the connection at the latest
	for n := range all.Keys() {
		if strings.HasPrefix(n, prefix) && !yield(n) {
			return nil
		}
	}
	return ctx.Err()
}
