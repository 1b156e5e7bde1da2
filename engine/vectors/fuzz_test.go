// SPDX-License-Identifier: Apache-2.0

package vectors_test

import (
	"context"
	"testing"

	"github.com/kvist-project/kvist/engine/vectors"
)

// FuzzRead: any bytes give an index that can be searched, or a typed error.
func FuzzRead(f *testing.F) {
	for _, b := range small(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := vectors.Read("fuzz", b, vectors.LoadOptions{})
		if err != nil {
			if !typed(err) {
				t.Fatal(err)
			}
			return
		}
		if x.Dim() == 20 {
			if _, err := x.Search(context.Background(), clustered(1, 20, 1), 3, vectors.SearchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
