// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// RetryUnpublish asks the store again for what it did not give up, as if it were time to.
func RetryUnpublish(r *Runner) error {
	return r.do(context.Background(), func() { retryUnpublish(r, time.Now()) })
}

// MarkErased makes a note what it is when a process ends while it deletes the conversation.
func MarkErased(t *testing.T, path string) {
	n, err := readNote(path)
	require.NoError(t, err)
	n.Erased = true
	n.Check, err = n.sum()
	require.NoError(t, err)
	b, err := json.Marshal(n)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b, 0o600))
}
