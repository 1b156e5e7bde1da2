// SPDX-License-Identifier: Apache-2.0

// Package remote makes a store.Store of a service beyond the machine.
//
// # Concepts
//
// A service implements Objects: create, replace, get and delete bytes under names. Open adds what store.Store
// promises and services do not:
//
//   - a frame around the bytes with their key, expiry and SHA-256, so that what a service or a wire has changed, cut or
//     mixed up is never returned;
//   - immutability: an object is created where none is, or replaced where it is still the one that was read;
//   - expiry by the clock of the reader, also where the service removes late or never;
//   - tries with pauses that double, each with a timeout, and an end to them: when a call has used them up, calls fail
//     at once for Options.Rest, so that a dead service does not stall who serves without it;
//   - bounds on memory: objects in transit, and bytes of each.
//
// Names are Options.Prefix and the 64 hexadecimal digits of a key. List leaves out other names, and objects without a
// frame of this version; Options.Logger hears of them.
//
// # Frame
//
//	0    "\x93KVOBJ\r\n"
//	8    u32 1, the version
//	12   u32 CRC32C of the frame's other bytes
//	16   key
//	48   u64 bytes
//	56   i64 expiry, nanoseconds since 1970; 0: never
//	64   SHA-256 of the bytes
//	96   the bytes
//
// # Errors
//
// Those of package store. Moreover quant.ErrUnavailable, with the last cause, when the service did not answer in
// time or refused; quant.ErrVersion for an object of another version of the frame. A Put that is damaged on its way
// may succeed: the Get finds it. Options.ReadBack finds it in Put.
package remote
