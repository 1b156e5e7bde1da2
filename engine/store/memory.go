// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/kvist-project/kvist/engine/store/internal/expiry"
	"github.com/kvist-project/kvist/quant"
)

// Memory is a Store in the memory of the process.
type Memory struct {
	max int64
	now func() time.Time

	mu     sync.Mutex
	at     map[Key]stored
	held   int64
	closed bool
}

type stored struct {
	data    []byte
	expires int64
}

// MemoryOptions are those of NewMemory.
type MemoryOptions struct {
	MaxBytes int64            // that the store holds; 0: no limit
	Now      func() time.Time // nil: time.Now
}

// keyOverhead is what an entry is taken to hold beside its bytes.
const keyOverhead = 160

// NewMemory returns an empty store.
func NewMemory(o MemoryOptions) *Memory {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Memory{max: o.MaxBytes, now: o.Now, at: map[Key]stored{}}
}

// enter takes the lock and reports why no call can work.
func (m *Memory) enter(ctx context.Context) error {
	m.mu.Lock()
	if m.closed {
		return errClosed
	}
	return ctx.Err()
}

// Put is that of Store.
func (m *Memory) Put(ctx context.Context, k Key, data []byte, expires time.Time) error {
	defer m.mu.Unlock()
	if err := m.enter(ctx); err != nil {
		return wrap("put", k, err)
	}
	end := expiry.Nanos(expires)
	if e, ok := m.find(k); ok {
		if !bytes.Equal(e.data, data) {
			return wrap("put", k, errOther)
		}
		e.expires = expiry.Later(e.expires, end)
		m.at[k] = e
		return nil
	}
	n := int64(len(data)) + keyOverhead
	if m.max > 0 && n > m.max {
		return wrap("put", k, fmt.Errorf("%d bytes in a store of %d: %w", len(data), m.max, quant.ErrTooLarge))
	}
	if m.max > 0 && n > m.max-m.held {
		for k := range m.at {
			m.find(k)
		}
		if n > m.max-m.held {
			return wrap("put", k, fmt.Errorf("%d bytes beside %d of %d: %w", len(data), m.held, m.max, quant.ErrFull))
		}
	}
	m.at[k] = stored{bytes.Clone(data), end}
	m.held += n
	return nil
}

// find returns what is under a key, and removes it if it has expired.
func (m *Memory) find(k Key) (e stored, ok bool) {
	if e, ok = m.at[k]; ok && e.expires != 0 && e.expires <= m.now().UnixNano() {
		m.remove(k)
		return stored{}, false
	}
	return e, ok
}

func (m *Memory) remove(k Key) {
	if e, ok := m.at[k]; ok {
		m.held -= int64(len(e.data)) + keyOverhead
		delete(m.at, k)
	}
}

// Get is that of Store.
func (m *Memory) Get(ctx context.Context, k Key) ([]byte, error) {
	defer m.mu.Unlock()
	if err := m.enter(ctx); err != nil {
		return nil, wrap("get", k, err)
	}
	e, ok := m.find(k)
	if !ok {
		return nil, wrap("get", k, errAbsent)
	}
	return append(make([]byte, 0, len(e.data)), e.data...), nil
}

// Delete is that of Store.
func (m *Memory) Delete(ctx context.Context, k Key) error {
	defer m.mu.Unlock()
	if err := m.enter(ctx); err != nil {
		return wrap("delete", k, err)
	}
	m.remove(k)
	return nil
}

// List is that of Store.
func (m *Memory) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		infos, err := m.infos(ctx)
		if err != nil {
			yield(Info{}, wrap("list", Key{}, err))
			return
		}
		for _, x := range infos {
			if !yield(x, nil) {
				return
			}
		}
	}
}

func (m *Memory) infos(ctx context.Context) (infos []Info, err error) {
	defer m.mu.Unlock()
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	for k := range m.at {
		if e, ok := m.find(k); ok {
			infos = append(infos, Info{k, int64(len(e.data)), expiry.Time(e.expires)})
		}
	}
	return infos, nil
}

// Sweep is that of Sweeper.
func (m *Memory) Sweep(ctx context.Context) error {
	_, err := m.infos(ctx) // which looks for all of it
	return wrap("sweep", Key{}, err)
}

// Held returns the bytes that the store holds.
func (m *Memory) Held() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// Close is that of Store. What the store holds is gone.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed, m.at, m.held = true, nil, 0
	return nil
}
