// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
)

// modelProfile is the profile of the test model, from the calibration texts.
const modelProfile = "../../testdata/smollm2.kvprofile"

// TestArchive_InTheModel tests on a shorter context of an eval text that an archive at 1.8 bits diverges
// less than TurboQuant at 4.25.
func TestArchive_InTheModel(t *testing.T) {
	m := modeltest.SmolLM2(t)
	o := Options{Context: 320, Next: 64}
	in := evalInput(t, m, 4, o)
	res, err := EvaluateText(context.Background(), m, in, []methods.Method{named(t, "tqmse4"),
		named(t, "kvist-archive:1.8,profile="+modelProfile)}, o)
	require.NoError(t, err)
	ref, archive := res.Prefill[0], res.Prefill[1]
	t.Logf("%s: KL %.5f at %.3f bits/value, %.5f at %.3f", in.Name, ref.KL, ref.BitsPerValue, archive.KL,
		archive.BitsPerValue)
	require.LessOrEqual(t, archive.BitsPerValue, 1.8)
	require.Less(t, archive.KL, ref.KL)
}

// Capture, compress, decompress and continue: files on disk give the result of the method in memory.
func TestKvist_FilesEqualTheMethodInMemory(t *testing.T) {
	m := modeltest.SmolLM2(t)
	const length, next = 128, 32
	o := Options{Context: length, Next: next}
	in := evalInput(t, m, 4, o)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	c, kv, err := Prefill(context.Background(), m, in.Tokens[:length], false)
	require.NoError(t, err)
	ref := newReference(m.Vocab, in.Tokens[length:])
	_, err = m.Forward(in.Tokens[length:], kv, length,
		model.ForwardOptions{Logits: model.LogitsAll, OnLogits: ref.add})
	require.NoError(t, err)
	const config = "k=lm4+len+s8 v=lm3+len+s8 sinks=4"
	// The method writes its capture in f16.
	path := filepath.Join(t.TempDir(), "cap.safetensors")
	require.NoError(t, m.WriteCapture(path, in.Tokens[:length], model.CaptureOptions{}))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	src, err := capture.New(path, f, st.Size(), capture.Limits{})
	require.NoError(t, err)
	cfg, err := kvfile.ParseConfig(config)
	require.NoError(t, err)
	var file bytes.Buffer
	_, err = kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &cfg, Backend: be})
	require.NoError(t, err)
	r, err := container.Open("x.kvist", bytes.NewReader(file.Bytes()), int64(file.Len()),
		container.Limits{})
	require.NoError(t, err)
	fromFiles := continued(t, m, ref, in.Tokens[length:], length, restored(t, m.Geometry(), r))
	method, err := methods.NewKvist(config)
	require.NoError(t, err)
	inMemory, bytesInMemory, err := Compressed(context.Background(), m, c, method)
	require.NoError(t, err)
	fromMemory := continued(t, m, ref, in.Tokens[length:], length, inMemory)
	require.Positive(t, fromFiles.KL)
	require.InDelta(t, fromMemory.KL, fromFiles.KL, 1e-9)
	// The capture on disk has tokens and surprisal as well, which the file keeps exactly.
	require.LessOrEqual(t, bytesInMemory, r.Size())
	require.Less(t, r.Size()-bytesInMemory, int64(8*length+1024))
}
