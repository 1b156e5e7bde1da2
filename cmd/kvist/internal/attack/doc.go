// SPDX-License-Identifier: Apache-2.0

// Package attack makes files that mean harm, for tests: forged ones, whose checksums are right and whose
// contents are not, and damaged ones. Each is a function of a seed file and a number, so that what
// one broke can be made again.
//
// # Concepts
//
// Forge takes a .kvist or .kvprofile apart into its sections, changes some of their fields, and puts them
// together again with lengths, offsets and checksums that fit; at times one of those is changed last,
// with only the checksum made right. Damage changes any bytes of any file and repairs nothing.
//
// # Concurrency
//
// All functions may be called from many goroutines at once.
package attack
