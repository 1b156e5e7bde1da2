// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// FrameBytes is the size of the frame in front of the bytes of an object. See the package comment.
const FrameBytes = 96

const (
	frameMagic   = "\x93KVOBJ\r\n"
	frameVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is the header of an object.
type frame struct {
	key     store.Key
	bytes   int64
	expires int64 // nanoseconds since 1970; 0: never
	sum     [sha256.Size]byte
}

// seal returns an object of data.
func seal(k store.Key, data []byte, expires int64) []byte {
	p := make([]byte, FrameBytes+len(data))
	copy(p[FrameBytes:], data)
	sum := sha256.Sum256(data)
	copy(p[64:], sum[:])
	copy(p[16:], k[:])
	binary.LittleEndian.PutUint64(p[48:], uint64(len(data)))
	restamp(p, expires)
	return p
}

// restamp gives an object another expiry.
func restamp(p []byte, expires int64) {
	copy(p, frameMagic)
	binary.LittleEndian.PutUint32(p[8:], frameVersion)
	binary.LittleEndian.PutUint64(p[56:], uint64(expires))
	binary.LittleEndian.PutUint32(p[12:], headerSum(p))
}

func headerSum(p []byte) uint32 {
	return crc32.Update(crc32.Checksum(p[:12], castagnoli), castagnoli, p[16:FrameBytes])
}

// expiryOf returns the expiry in a frame.
func expiryOf(p []byte) int64 { return int64(binary.LittleEndian.Uint64(p[56:])) }

// parse reads the frame that p begins with.
func parse(p []byte) (f frame, err error) {
	if len(p) < FrameBytes || string(p[:8]) != frameMagic {
		return f, fmt.Errorf("no object of this store: %w", quant.ErrCorrupt)
	}
	le := binary.LittleEndian
	if v := le.Uint32(p[8:]); v != frameVersion {
		return f, fmt.Errorf("an object of version %d, want %d: %w", v, frameVersion, quant.ErrVersion)
	}
	if le.Uint32(p[12:]) != headerSum(p) {
		return f, fmt.Errorf("checksum of the frame: %w", quant.ErrCorrupt)
	}
	f.key, f.bytes, f.expires = store.Key(p[16:48]), int64(le.Uint64(p[48:])), int64(le.Uint64(p[56:]))
	copy(f.sum[:], p[64:])
	return f, nil
}

// open checks an object and returns its bytes, which alias it.
func open(k store.Key, p []byte) (frame, []byte, error) {
	f, err := parse(p)
	if err != nil {
		return f, nil, err
	}
	data := p[FrameBytes:]
	switch {
	case f.key != k:
		return frame{}, nil, fmt.Errorf("the object of key %s: %w", f.key.String()[:16], quant.ErrCorrupt)
	case f.bytes != int64(len(data)):
		return frame{}, nil, fmt.Errorf("%d bytes of %d: %w", len(data), f.bytes, quant.ErrCorrupt)
	case sha256.Sum256(data) != f.sum:
		return f, nil, fmt.Errorf("checksum: %w", quant.ErrCorrupt)
	}
	return f, data, nil
}
