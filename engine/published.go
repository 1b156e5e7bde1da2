// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"time"

	"github.com/kvist-project/kvist/engine/store"
)

// publish puts the segments of a sequence that others may share, and where they are found.
func (m *mover) publish(s *Sequence, expires time.Time) error {
	c := m.c
	free, buf, named, err := m.hold(s, "published")
	if err == nil {
		err = m.putShared(s, buf, named, expires)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if free != nil && !c.closed {
		_ = m.lend(0)
		free()
		for i, g := range s.segs {
			if err == nil && named[i].shared {
				g.name = named[i].name
			}
		}
	}
	return err
}

// putShared puts the segments that are not in the store yet, and marks all of them if there were any.
func (m *mover) putShared(s *Sequence, buf []byte, named []segmentState, expires time.Time) error {
	fresh := false
	for i, g := range s.segs {
		x := &named[i]
		whole := false
		_ = m.locked(func() error {
			whole = g.refs > 1 && g.whole(s.n)
			x.name, x.shared = g.name, whole && g.name != (store.Key{})
			return nil
		})
		if !whole || x.shared {
			continue
		}
		if err := m.name(s, g, x, store.Key{}, i, buf); err != nil {
			return err
		}
		err := m.eachPart(s, g, buf, func(j int, image []byte) error {
			k := m.partKey(x.name, j)
			m.under.Seal(k, image)
			return m.st.Put(m.ctx, k, image, expires)
		})
		if err != nil {
			return err
		}
		fresh = true
	}
	if !fresh {
		return nil
	}
	return m.putMarks(s, named, expires)
}
