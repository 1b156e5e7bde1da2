// SPDX-License-Identifier: Apache-2.0

package selftest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/selftest"
)

func open(t *testing.T) *cpu.Backend {
	t.Helper()
	be, err := cpu.Open(cpu.Options{Workers: 1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, be.Close()) })
	return be
}

func TestRun_CPUPasses(t *testing.T) {
	be := open(t)
	checks := selftest.Run(context.Background(), be)
	require.Len(t, checks, 3*len(selftest.Codings())+8)
	for _, c := range checks {
		require.True(t, c.OK, "%s: %s", c.Name, c.Detail)
	}
	require.Zero(t, be.LiveBytes(), "buffers left")
}

// broken is a backend with one wrong method.
type broken struct {
	backend.Backend
	op backend.Op
}

func (b broken) Encode(ctx context.Context, jobs []backend.EncodeJob) error {
	err := b.Backend.Encode(ctx, jobs)
	if b.op == backend.OpEncode {
		spoil(jobs[0].Dst.Data)
	}
	return err
}

func (b broken) Decode(ctx context.Context, jobs []backend.DecodeJob) error {
	err := b.Backend.Decode(ctx, jobs)
	if b.op == backend.OpDecode {
		spoil(jobs[0].Dst)
	}
	return err
}

func (b broken) Attend(ctx context.Context, q *backend.Queries, v backend.View,
	to backend.Attention) error {
	err := b.Backend.Attend(ctx, q, v, to)
	if b.op == backend.OpAttend {
		to.Out[len(to.Out)-1] += 0.01
	}
	return err
}

// spoil flips the last bit of a span.
func spoil(s backend.Span) {
	var b [1]byte
	if s.Buf.Download(s.Off+s.Len-1, b[:]) == nil {
		b[0] ^= 1
		_ = s.Buf.Upload(s.Off+s.Len-1, b[:])
	}
}

func TestRun_FindsABrokenVerb(t *testing.T) {
	for _, op := range []backend.Op{backend.OpEncode, backend.OpDecode, backend.OpAttend} {
		for _, c := range selftest.Run(context.Background(), broken{open(t), op}) {
			wrong := strings.HasPrefix(c.Name, op.String())
			require.Equal(t, !wrong, c.OK, "%s: %s", c.Name, c.Detail)
			require.Equal(t, wrong, c.Detail != "", c.Name)
		}
	}
}
