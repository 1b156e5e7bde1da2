// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/kvist-project/kvist/quant"
)

// Context says for whom and for what a record is written. Records of different contexts are foreign to
// each other.
type Context struct {
	Salt    []byte // secret of those who may share
	Model   string
	Profile string
	Layout  string // geometry and settings that the payload depends on
	Version uint32 // of the payload's format
}

// SealBytes is the size of the header that Seal puts in front of a payload:
//
//	0    "\x93KVSEG\r\n"
//	8    u32 1, the version of the header
//	12   u32 version of the payload
//	16   u64 bytes of the payload
//	24   8 bytes: the salt; 32, 48, 64: 16 bytes each: the model, the profile, the layout, as digests
//	80   key
//	112  16 bytes: HMAC-SHA256 of all but itself, under the salt
const SealBytes = 128

const (
	sealMagic   = "\x93KVSEG\r\n"
	sealVersion = 1
	tagAt       = SealBytes - 16
)

// ForeignError says why a record is not for who reads it. It is not damaged. It matches quant.ErrVersion
// for another version and quant.ErrUnsupported for anything else.
type ForeignError struct {
	What string // "version", "salt", "model", "profile" or "layout"
	Err  error
}

// Error names what differs.
func (e *ForeignError) Error() string { return "a record of another " + e.What + ": " + e.Err.Error() }

// Unwrap returns the category.
func (e *ForeignError) Unwrap() error { return e.Err }

// mac returns an HMAC under the salt for one use.
func (c *Context) mac(use string) hash.Hash {
	h := hmac.New(sha256.New, c.Salt)
	h.Write([]byte("kvist store 1 " + use + "\x00"))
	return h
}

// Key returns the key of a record that is named by a kind and a name: an HMAC under the salt of both and
// of the context, without its version.
func (c *Context) Key(kind string, name []byte) (k Key) {
	h := c.mac("key")
	for _, s := range []string{c.Model, c.Profile, c.Layout, kind, string(name)} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	h.Sum(k[:0])
	return k
}

// header writes what the context has in a header: the bytes from 12 to 80 but the payload's length.
func (c *Context) header(p []byte) {
	binary.LittleEndian.PutUint32(p[12:], c.Version)
	copy(p[24:32], c.mac("salt").Sum(nil))
	for i, s := range []string{c.Model, c.Profile, c.Layout} {
		sum := sha256.Sum256([]byte(s))
		copy(p[32+16*i:48+16*i], sum[:])
	}
}

// tag returns the tag of a sealed record.
func (c *Context) tag(sealed []byte) []byte {
	h := c.mac("tag")
	h.Write(sealed[:tagAt])
	h.Write(sealed[SealBytes:])
	return h.Sum(nil)[:16]
}

// Seal makes a record of which the payload is in place: it writes the first SealBytes of sealed.
func (c *Context) Seal(k Key, sealed []byte) {
	p := sealed[:SealBytes]
	clear(p)
	copy(p, sealMagic)
	binary.LittleEndian.PutUint32(p[8:], sealVersion)
	binary.LittleEndian.PutUint64(p[16:], uint64(len(sealed)-SealBytes))
	c.header(p)
	copy(p[80:], k[:])
	copy(p[tagAt:], c.tag(sealed))
}

// Open checks a record and returns its payload, which aliases it.
//
// Errors: quant.ErrCorrupt; *ForeignError.
func (c *Context) Open(k Key, sealed []byte) ([]byte, error) {
	bad := func(what string) error { return fmt.Errorf("%s: %w", what, quant.ErrCorrupt) }
	if len(sealed) < SealBytes || string(sealed[:8]) != sealMagic {
		return nil, bad("no record")
	}
	le := binary.LittleEndian
	if v := le.Uint32(sealed[8:]); v != sealVersion {
		return nil, &ForeignError{"version", fmt.Errorf("header %d, want %d: %w", v, sealVersion, quant.ErrVersion)}
	}
	if n := le.Uint64(sealed[16:]); n != uint64(len(sealed)-SealBytes) {
		return nil, bad(fmt.Sprintf("%d bytes of a payload of %d", len(sealed)-SealBytes, n))
	}
	var want [SealBytes]byte
	c.header(want[:])
	for _, f := range []struct {
		what     string
		from, to int
	}{{"salt", 24, 32}, {"model", 32, 48}, {"profile", 48, 64}, {"layout", 64, 80}} {
		if string(want[f.from:f.to]) != string(sealed[f.from:f.to]) {
			return nil, &ForeignError{f.what, quant.ErrUnsupported}
		}
	}
	if subtle.ConstantTimeCompare(c.tag(sealed), sealed[tagAt:SealBytes]) != 1 {
		return nil, bad("the tag does not match")
	}
	if v := le.Uint32(sealed[12:]); v != c.Version {
		return nil, &ForeignError{"version", fmt.Errorf("payload %d, want %d: %w", v, c.Version, quant.ErrVersion)}
	}
	if Key(sealed[80:112]) != k {
		return nil, bad("the record of another key")
	}
	return sealed[SealBytes:], nil
}
