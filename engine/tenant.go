// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// Tenant is one of those who share a cache. What others ask for is not taken from its conversations when they
// hold no more than its floor.
type Tenant struct {
	c     *Cache
	floor int64
	held  int64 // bytes of rows when pressure last looked, less what it took since
}

// setLimits sets the tenant of a sequence and the most bytes that it may hold, after checking both.
func setLimits(s *Sequence, t *Tenant, most int64) error {
	if t != nil && t.c != s.c {
		return fmt.Errorf("the tenant is of another cache: %w", quant.ErrShape)
	}
	if most < 0 {
		return fmt.Errorf("at most %d bytes: %w", most, quant.ErrShape)
	}
	s.tenant, s.most = t, most
	return nil
}

// countTenants measures what tenants hold, a shared segment once for each.
func (p *pressure) countTenants() {
	if p.c.floors == 0 {
		return
	}
	for _, q := range p.c.seqs {
		if q.tenant != nil {
			q.tenant.held = 0
		}
	}
	p.visited++
	for _, q := range p.c.seqs {
		for _, g := range q.segs {
			if q.tenant != nil && g.visited != p.visited {
				g.visited = p.visited
				q.tenant.held += p.c.segmentBytes(g)
			}
		}
	}
}

// mayTake reports whether n bytes may be taken from a sequence.
func (p *pressure) mayTake(q *Sequence, n int64) bool {
	return p.only != nil || q == nil || q.tenant == nil || q.tenant.floor == 0 || q.tenant.held-n >= q.tenant.floor
}

// took says that n bytes were taken from a sequence.
func (p *pressure) took(q *Sequence, n int64) {
	if q != nil && q.tenant != nil {
		q.tenant.held -= n
	}
}

// keepLimits makes room in the sequences of a step that may hold only so much.
func (p *pressure) keepLimits(s *step) error {
	for i := range s.rows {
		r := &s.rows[i]
		q := r.seq
		if q.most == 0 {
			continue
		}
		if q.rowBytes()+r.grows > q.most {
			p.only = q
			err := p.demoteUntil(func() int64 { return q.rowBytes() + r.grows - q.most }, maxUnits*(len(q.segs)+1))
			p.only = nil
			if err != nil {
				return p.c.broken(err)
			}
		}
		if n := q.rowBytes() + r.grows; n > q.most {
			return fmt.Errorf("sequence %d would hold %d bytes of rows and may hold %d: %w", q.id, n, q.most, quant.ErrFull)
		}
	}
	return nil
}
