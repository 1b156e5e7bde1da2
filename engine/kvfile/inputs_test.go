// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

const inputRows, inputDim = 300, 32

// arrayFile makes an .npy of [inputRows, inputDim]. put appends one value.
func arrayFile(descr string, fortran bool, x quant.Rows, put func([]byte, float32) []byte) []byte {
	order := map[bool]string{false: "False", true: "True"}[fortran]
	head := fmt.Sprintf("{'descr': '%s', 'fortran_order': %s, 'shape': (%d, %d), }\n", descr, order,
		inputRows, inputDim)
	b := binary.LittleEndian.AppendUint16([]byte("\x93NUMPY\x01\x00"), uint16(len(head)))
	b = append(b, head...)
	for i := range x.Data {
		at := i
		if fortran {
			at = i%inputRows*inputDim + i/inputRows
		}
		b = put(b, x.Data[at])
	}
	return b
}

func f32Little(b []byte, v float32) []byte {
	return binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
}

func f64Big(b []byte, v float32) []byte {
	return binary.BigEndian.AppendUint64(b, math.Float64bits(float64(v)))
}

func opened(t *testing.T, b []byte) *capture.Source {
	t.Helper()
	src, err := capture.New("input", bytes.NewReader(b), int64(len(b)), capture.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, src.Close()) })
	return src
}

// tensorFile makes a safetensors file of one tensor "x", [inputRows, inputDim].
func tensorFile(t *testing.T, dtype string, data []byte) []byte {
	t.Helper()
	var m memory
	w, err := capture.NewWriter(&m, []capture.Decl{{Name: "x", DTypeName: dtype,
		Shape: []int64{inputRows, inputDim}}}, nil)
	require.NoError(t, err)
	require.NoError(t, w.WriteAt("x", 0, data))
	require.NoError(t, w.Close())
	return m.b
}

func npzFile(t *testing.T, method uint16, member []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: "x.npy", Method: method})
	require.NoError(t, err)
	_, err = w.Write(member)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

// ggufFile makes a GGUF of one tensor "x" of F32.
func ggufFile(data []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte("GGUF"), 3)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = binary.LittleEndian.AppendUint64(b, 0)
	b = append(binary.LittleEndian.AppendUint64(b, 1), 'x')
	b = binary.LittleEndian.AppendUint32(b, 2)
	b = binary.LittleEndian.AppendUint64(b, inputDim)
	b = binary.LittleEndian.AppendUint64(b, inputRows)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, 0)
	return append(append(b, make([]byte, -len(b)&31)...), data...)
}

// However the same values are stored, the same file comes of them, in every form.
func TestCompress_InputsOfOneMeaning(t *testing.T) {
	be := openCPU(t)
	x := quanttest.Rows(quanttest.Gaussian, inputRows, inputDim, 5)
	plain := arrayFile("<f4", false, x, f32Little)
	data := plain[len(plain)-4*len(x.Data):]
	odd := arrayFile(">f8", true, x, f64Big)
	var eight, e5m2, half, small []byte
	for i := range x.Data {
		v := int8(i*7 + i/32)
		eight = append(eight, byte(v))
		half = binary.LittleEndian.AppendUint16(half, quant.F32ToF16(float32(v)))
		e5m2 = append(e5m2, byte(i*5+i/32)&^0x40) // no exponent that is all ones
		small = binary.LittleEndian.AppendUint16(small, uint16(e5m2[i])<<8)
	}
	for _, same := range [][]struct {
		name string
		data []byte
	}{
		{{"npy", plain}, {"f8 big-endian Fortran npy", odd}},
		{{"F32 safetensors", tensorFile(t, "F32", data)}, {"GGUF", ggufFile(data)},
			{"stored npz", npzFile(t, zip.Store, odd)}, {"deflated npz", npzFile(t, zip.Deflate, odd)}},
		{{"F16 safetensors", tensorFile(t, "F16", half)}, {"I8 safetensors", tensorFile(t, "I8", eight)}},
		{{"F16 of FP8", tensorFile(t, "F16", small)}, {"F8_E5M2", tensorFile(t, "F8_E5M2", e5m2)}},
	} {
		for _, c := range []string{"form=hot bits=4", "form=archive bits=3", "form=archive lossless=true"} {
			cfg := config(t, c)
			want, _ := compress(t, opened(t, same[0].data), be, cfg)
			for _, other := range same[1:] {
				src := opened(t, other.data)
				got, _ := compress(t, src, be, cfg)
				require.Equal(t, want, got, "%s of %s against %s", c, other.name, same[0].name)
				cmp := measure(t, src, be, got)
				require.Less(t, cmp.KError, 0.2, "%s of %s", c, other.name)
			}
		}
	}
}

// Lossless mode keeps what float32 holds of F64 and refuses the rest; other modes round it.
func TestCompress_LosslessF64(t *testing.T) {
	be := openCPU(t)
	x := quanttest.Rows(quanttest.Gaussian, inputRows, inputDim, 6)
	file := func(at int, v float64) *capture.Source {
		var data []byte
		for _, f := range x.Data {
			data = binary.LittleEndian.AppendUint64(data, math.Float64bits(float64(f)))
		}
		binary.LittleEndian.PutUint64(data[8*at:], math.Float64bits(v))
		return opened(t, tensorFile(t, "F64", data))
	}
	lossless := config(t, "form=archive lossless=true")
	b, _ := compress(t, file(0, float64(x.Data[0])), be, lossless)
	back := raw(t, decompress(t, b), "x")
	for i, v := range x.Data {
		require.Equal(t, math.Float32bits(v), binary.LittleEndian.Uint32(back[4*i:]))
	}
	for _, c := range []struct {
		v    float64
		text string
	}{{0.1, `"x" at byte`}, {1e300, "row 2 value 3, 1e+300, is not a float32"}, {1e-300, "row 2 value 3"}} {
		src := file(2*inputDim+3, c.v)
		_, err := kvfile.Compress(context.Background(), src, new(bytes.Buffer), kvfile.Options{Config: &lossless, Backend: be})
		require.ErrorIs(t, err, quant.ErrRange)
		require.ErrorContains(t, err, c.text)
		for _, form := range []string{"form=archive bits=3", "form=hot bits=4"} {
			_, err = kvfile.Compress(context.Background(), src, new(bytes.Buffer), kvfile.Options{Config: settings(t, form), Backend: be})
			if c.v < 1 {
				require.NoError(t, err)
				continue
			}
			require.ErrorIs(t, err, quant.ErrRange)
			require.ErrorContains(t, err, "row 2 value 3, 1e+300, is beyond float32")
		}
	}
	// A target that is enough for every bit keeps every bit, where float32 has them.
	for v, want := range map[float64]bool{0.5: true, 0.1: false} {
		_, res := compress(t, file(0, v), be, config(t, "form=archive bits=33"))
		require.Equal(t, want, res.Lossless, "%v", v)
	}
}

// Segments with NaN are kept as they are read, also where that is not as they are stored.
func TestCompress_NaNBesideF64(t *testing.T) {
	x := quanttest.Rows(quanttest.Gaussian, inputRows, inputDim, 6)
	var data []byte
	for _, f := range x.Data {
		data = binary.LittleEndian.AppendUint64(data, math.Float64bits(float64(f)+1e-12))
	}
	binary.LittleEndian.PutUint64(data[8*40:], math.Float64bits(math.NaN()))
	src := opened(t, tensorFile(t, "F64", data))
	b, _ := compress(t, src, openCPU(t), config(t, "form=archive bits=30 allow-nonfinite=true"))
	back := raw(t, decompress(t, b), "x")
	require.True(t, math.IsNaN(float64(math.Float32frombits(binary.LittleEndian.Uint32(back[4*40:])))))
	require.Equal(t, float32(float64(x.Data[41])+1e-12), math.Float32frombits(binary.LittleEndian.Uint32(back[4*41:])))
}

// What is finite comes back finite or is refused, whatever its size.
func TestCompress_FiniteStaysFinite(t *testing.T) {
	be := openCPU(t)
	scales := []float32{1e-42, 1e-30, 1e10, 1e19, 1e30, 3e37}
	if testing.Short() {
		scales = []float32{1e-42, 1e19}
	}
	kept := 0
	for _, dt := range []quant.DType{quant.Float32, quant.BFloat16} {
		for _, scale := range scales {
			for _, q := range []bool{false, true} {
				src := synthetic(t, shape{4, 2, 130, 64, 64, dt, q}, quanttest.Gaussian, func(k quant.Rows) {
					for i := range k.Data {
						k.Data[i] *= scale
					}
				})
				for _, c := range []string{"form=hot bits=3", "form=hot bits=2 levels=auto", "form=archive bits=2"} {
					var out bytes.Buffer
					_, err := kvfile.Compress(context.Background(), src, &out, kvfile.Options{Config: settings(t, c), Backend: be})
					if err != nil {
						require.ErrorIs(t, err, quant.ErrRange, "%s scale=%g dtype=%s: %v", c, scale, dt, err)
						continue
					}
					kept++
					requireFinite(t, decompress(t, out.Bytes()), fmt.Sprintf("%s scale=%g dtype=%s", c, scale, dt))
				}
			}
		}
	}
	require.Greater(t, kept, len(scales)*6)
}

func requireFinite(t *testing.T, src *capture.Source, what string) {
	t.Helper()
	for _, p := range []capture.Part{capture.K, capture.V} {
		x, _ := src.KV(2, p)
		rows := make([]float32, x.Rows()*x.Dim())
		for h := range x.Heads() {
			require.NoError(t, x.ReadF32(h, 0, x.Rows(), rows))
			for i, v := range rows {
				require.True(t, v-v == 0, "%s: %s head %d value %d is %v", what, x.Name(), h, i, v)
			}
		}
	}
	bias := make([]float32, src.Info().Tokens)
	for h := range src.Info().Geometry.KVHeads {
		require.NoError(t, src.ReadBias(2, h, 0, bias))
		for i, v := range bias {
			require.True(t, v-v == 0, "%s: bias of head %d token %d is %v", what, h, i, v)
		}
	}
}

// A file without rows is refused with the reason of its first tensor.
func TestCompress_NoRows(t *testing.T) {
	var m memory
	w, err := capture.NewNpyWriter(&m, capture.Decl{DTypeName: "F32", Shape: []int64{0, 64}})
	require.NoError(t, err)
	require.NoError(t, w.Close())
	_, err = kvfile.Compress(context.Background(), opened(t, m.b), new(bytes.Buffer), kvfile.Options{Config: settings(t, "bits=4"), Backend: openCPU(t)})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, "not supported: shape [0 64] holds no values")
}
