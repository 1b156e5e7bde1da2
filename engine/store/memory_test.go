// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"testing"
	"time"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(_ *testing.T, now func() time.Time, most int64) store.Store {
		return store.NewMemory(store.MemoryOptions{MaxBytes: most, Now: now})
	})
}
