// SPDX-License-Identifier: Apache-2.0

// Package packed stores bytes that are mostly 16-bit floating-point numbers in fewer bytes, without loss and without
// knowing their shape.
//
// Of each number, turned left by one bit, the upper byte is the exponent of a bfloat16, or the exponent and three bits of
// a binary16. It is coded by its frequency behind the upper byte of the number some numbers before: in K and V that is
// the same channel of the token before. How far before is tried out on a part of the bytes. The lower byte, sign and
// mantissa, is as good as random and stored as it is. Bytes that gain nothing are stored as they are.
//
// # Format
//
//	0   "KVPK"
//	4   u8 1, the version
//	5   u8 0: the bytes follow; 1: numbers
//	6   u16 0
//	8   u64 bytes
//	16  u32 CRC32C of the bytes
//	20  u32 how many numbers before; 0: none
//	24  u16 number of tables; of each: u8 the upper byte before, u8 symbols - 1, of each u8 upper byte, u16 frequency
//	    the lower bytes
//	    u32 number of u16 words; 4 u32 states; the words
//	    the last byte, if their number is odd
//
// Frequencies of a table add up to 4096. Number i is decoded by state i mod 4: upper bytes are those of a range coder of
// asymmetric numeral systems, with 32-bit states that words of 16 bits refill.
package packed

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/kvist-project/kvist/quant"
)

const (
	magic       = "KVPK"
	version     = 1
	headerBytes = 24

	methodRaw     = 0
	methodNumbers = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// leastNumbers is how many numbers are worth tables.
const leastNumbers = 1024

// Pack returns the packed bytes: at most 24 more than they are.
func Pack(src []byte) []byte {
	if n := len(src) / 2; n >= leastNumbers && n <= mostNumbers {
		if p := packNumbers(src); len(p) < len(src) {
			return p
		}
	}
	return Raw(src)
}

// Raw returns packed bytes that are as they were, behind a header.
func Raw(src []byte) []byte { return append(header(src, methodRaw, 0, headerBytes+len(src)), src...) }

// header begins packed bytes with room for n.
func header(src []byte, method byte, stride, n int) []byte {
	p := make([]byte, headerBytes, n)
	copy(p, magic)
	p[4], p[5] = version, method
	binary.LittleEndian.PutUint64(p[8:], uint64(len(src)))
	binary.LittleEndian.PutUint32(p[16:], crc32.Checksum(src, castagnoli))
	binary.LittleEndian.PutUint32(p[20:], uint32(stride))
	return p
}

// Size returns how many bytes were packed.
//
// Errors: quant.ErrCorrupt; quant.ErrVersion.
func Size(p []byte) (int64, error) {
	if len(p) < headerBytes || string(p[:4]) != magic {
		return 0, corrupt("no packed bytes")
	}
	if p[4] != version {
		return 0, fmt.Errorf("kvist/packed: version %d, want %d: %w", p[4], version, quant.ErrVersion)
	}
	n := binary.LittleEndian.Uint64(p[8:])
	if n > 1<<40 {
		return 0, corrupt("packed bytes that say they are %d", n)
	}
	return int64(n), nil
}

// Unpack returns the bytes that were packed, up to most.
//
// Errors: quant.ErrCorrupt for what Pack has not made; quant.ErrVersion; quant.ErrTooLarge.
func Unpack(p []byte, most int64) ([]byte, error) {
	n, err := Size(p)
	if err != nil {
		return nil, err
	}
	if n > most {
		return nil, fmt.Errorf("kvist/packed: %d bytes, the most are %d: %w", n, most, quant.ErrTooLarge)
	}
	var out []byte
	switch p[5] {
	case methodRaw:
		if int64(len(p)-headerBytes) != n {
			return nil, corrupt("%d bytes of %d", len(p)-headerBytes, n)
		}
		out = append(make([]byte, 0, n), p[headerBytes:]...)
	case methodNumbers:
		if out, err = unpackNumbers(p, int(n)); err != nil {
			return nil, err
		}
	default:
		return nil, corrupt("method %d", p[5])
	}
	if crc32.Checksum(out, castagnoli) != binary.LittleEndian.Uint32(p[16:]) {
		return nil, corrupt("checksum")
	}
	return out, nil
}

func corrupt(format string, a ...any) error {
	return fmt.Errorf("kvist/packed: "+format+": %w", append(a, quant.ErrCorrupt)...)
}
