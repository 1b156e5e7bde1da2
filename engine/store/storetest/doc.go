// SPDX-License-Identifier: Apache-2.0

// Package storetest is the conformance suite of stores, and what injects faults into them.
//
// Run checks everything that package store promises of every Store. Folder is a folder in memory of which
// writes fail and the machine crashes at any byte. Faulty is a Store that fails and serves wrong bytes. RunFaults checks
// a store whose server is behind a Proxy that delays, cuts and corrupts.
package storetest
