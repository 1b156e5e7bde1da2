// SPDX-License-Identifier: Apache-2.0

// Package memo keeps results by key, so that work on the same input is not done again.
//
// # Concurrency
//
// A Memo may be used by many goroutines.
package memo

import "sync"

// Memo holds results. Each caller has a type of keys of its own, so that keys of two callers are never equal.
type Memo struct {
	mu   sync.Mutex
	held map[any]any
}

// Of returns what the memo holds for a key, or else what f returns. A nil memo holds nothing, and an error
// is not held. Two goroutines that ask at the same time may both call f.
func Of[V any](m *Memo, key any, f func() (V, error)) (V, error) {
	if m == nil {
		return f()
	}
	m.mu.Lock()
	v, ok := m.held[key]
	m.mu.Unlock()
	if ok {
		return v.(V), nil
	}
	made, err := f()
	if err != nil {
		return made, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held == nil {
		m.held = map[any]any{}
	}
	m.held[key] = made
	return made, nil
}
