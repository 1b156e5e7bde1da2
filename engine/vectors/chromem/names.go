// SPDX-License-Identifier: Apache-2.0

package chromem

import (
	"fmt"
	"sync"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

// names gives documents the numbers that an index wants. A number is never given again.
type names struct {
	mu     sync.RWMutex
	number map[string]uint64
	list   []string
}

// enter numbers new names.
func (n *names) enter(ids []string) ([]uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]uint64, 0, len(ids))
	for i, id := range ids {
		if old, ok := n.number[id]; ok {
			for _, back := range ids[:i] {
				delete(n.number, back)
			}
			return nil, fmt.Errorf("chromem: document %q: %w", id, &vectors.IDError{ID: old, Twice: true})
		}
		n.number[id] = uint64(len(n.list))
		out = append(out, n.number[id])
		n.list = append(n.list, id)
	}
	return out, nil
}

func (n *names) forget(ids []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		delete(n.number, id)
	}
}

func (n *names) numbers(ids []string) ([]uint64, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := make([]uint64, 0, len(ids))
	for _, id := range ids {
		number, ok := n.number[id]
		if !ok {
			return nil, fmt.Errorf("chromem: document %q is not indexed: %w", id, quant.ErrShape)
		}
		out = append(out, number)
	}
	return out, nil
}

func (n *names) name(number uint64) string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.list[number]
}
