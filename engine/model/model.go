// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// Options configure how a model runs. The zero value selects the defaults.
type Options struct {
	// ISA is the instruction set of the matrix products, named as in matmul.Options. Default "":
	// the best of the machine.
	ISA string
	// Workers is the number of threads. Default 0: GOMAXPROCS.
	Workers int
	// Fast quantizes activations to int8 for the matrix products with quantized weights.
	// Default false: float32 activations, which measurements of quality need.
	Fast bool
	// Context is the number of positions that will be run. Only models with longrope look at it: up to
	// their original context they turn K by other frequencies than beyond, and one cache cannot hold
	// both. Default 0: the original context, which is then the model's Context.
	Context int
}

// Model is a loaded model. It is immutable and may be used from many goroutines at once, each
// with a KVStore of its own.
type Model struct {
	Config
	opts Options
	tok  *Tokenizer

	par *matmul.Engine // runs one product on all workers
	one *matmul.Engine // runs one product on the calling goroutine

	embed   matrix
	output  matrix // embed if they are tied
	outNorm []float32
	layers  []layerWeights
	scratch sync.Pool // *scratch
}

// layerWeights are the weights of a layer. A vector that the layer does not have is nil.
type layerWeights struct {
	attnNorm, ffnNorm         []float32
	attnPostNorm, ffnPostNorm []float32
	qNorm, kNorm              []float32 // [head_dim], for every head
	qkv                       *stack    // q [heads*head_dim], k [kv_heads*head_dim], v [kv_heads*head_dim_v]
	qkvBias, oBias            []float32 // as qkv; [hidden]
	o                         matrix    // [hidden, heads*head_dim_v]
	gateUp                    *stack    // gate [ffn], up [ffn]
	down                      matrix    // [hidden, ffn]
}

// Open loads the model at path with its tokenizer.
//
// Errors: *gguf.FileError wrapping ErrCorrupt, ErrVersion, ErrTooLarge, or ErrUnsupported for a
// model that this package does not run (see the package comment).
func Open(path string, opts Options) (*Model, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tok, err := NewTokenizer(f)
	if err != nil {
		return nil, err
	}
	m, err := Load(f, opts)
	if err != nil {
		return nil, err
	}
	if tok.Vocab() != m.Vocab {
		return nil, f.KeyError("tokenizer.ggml.tokens",
			corruptf("%d tokens, token_embd.weight has %d rows", tok.Vocab(), m.Vocab))
	}
	m.tok = tok
	return m, nil
}

// ReadConfig reads the shape of the model at path, without its weights. positions is Options.Context.
//
// Errors: those of Open, except those of weights and tokenizer.
func ReadConfig(path string, positions int) (Config, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	return readConfig(f, positions)
}

// Load loads the weights of an open file, without its tokenizer. The file may be closed after.
// Quantized matrices stay quantized in memory, at about the bytes of the file; F16 and BF16 ones are
// widened to float32.
//
// Errors: those of Open, except those of the tokenizer.
func Load(f *gguf.File, opts Options) (*Model, error) {
	if opts.Workers < 0 || opts.Context < 0 {
		return nil, shapef("load model", "%d workers and %d positions, want 0 or more", opts.Workers, opts.Context)
	}
	c, err := readConfig(f, opts.Context)
	if err != nil {
		return nil, err
	}
	if opts.Workers == 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	m := &Model{Config: c, opts: opts}
	if m.par, err = matmul.Open(matmul.Options{ISA: opts.ISA, Workers: opts.Workers}); err != nil {
		return nil, fmt.Errorf("kvist/model: load model: %w", err)
	}
	if m.one, err = matmul.Open(matmul.Options{ISA: opts.ISA, Workers: 1}); err != nil {
		return nil, fmt.Errorf("kvist/model: load model: %w", err)
	}
	if err := m.load(f); err != nil {
		return nil, err
	}
	m.scratch.New = func() any { return new(scratch) }
	return m, nil
}

func (m *Model) load(f *gguf.File) error {
	for _, t := range f.Tensors() { // first, or a tensor is reported missing for the same reason
		if what, refused := m.arch.tensorFeature(t.Name); refused {
			return f.TensorError(t, unsupportedf("%s", what))
		}
	}
	l := &loader{f: f, used: map[string]bool{"rope_freqs.weight": true,
		"rope_factors_long.weight": true, "rope_factors_short.weight": true}}
	var err error
	m.embed, err = l.matrix1("token_embd.weight", m.Vocab, m.Hidden)
	if err != nil {
		return err
	}
	m.output = m.embed
	if _, ok := f.Tensor("output.weight"); ok {
		if m.output, err = l.matrix1("output.weight", m.Vocab, m.Hidden); err != nil {
			return err
		}
	}
	if m.outNorm, err = l.vector("output_norm.weight", m.Hidden); err != nil {
		return err
	}
	m.layers = make([]layerWeights, 0, min(m.Layers, len(f.Tensors())))
	for i := range m.Layers {
		w, err := m.loadLayer(l, fmt.Sprintf("blk.%d.", i))
		if err != nil {
			return err
		}
		m.layers = append(m.layers, w)
	}
	for _, t := range f.Tensors() {
		if !l.used[t.Name] {
			return f.TensorError(t, unsupportedf("a tensor that this version does not know"))
		}
	}
	return nil
}

// Geometry returns the shape of the model's KV cache: K with RoPE applied, half-split layout. If the
// layers do not share one RoPE, its layout is RopeNone; Attention has that of each layer.
func (m *Model) Geometry() quant.Geometry { return m.geometry() }

// NewKV makes an empty cache for one sequence, with the model's ISA, Workers and attention.
//
// Errors: those of NewExactKV.
func (m *Model) NewKV(o KVOptions) (*ExactKV, error) {
	if o.ISA == "" {
		o.ISA = m.opts.ISA
	}
	if o.Workers == 0 {
		o.Workers = m.opts.Workers
	}
	o.Attention = m.layerAttention
	return NewExactKV(m.Geometry(), o)
}

// Tokenizer returns the model's tokenizer; nil for a model from Load.
func (m *Model) Tokenizer() *Tokenizer { return m.tok }

// OutputWeight decodes the attention output projection of a layer, [hidden, heads*head_dim_v].
//
// Errors: ErrShape if the model has no such layer.
func (m *Model) OutputWeight(layer int) ([]float32, error) {
	if layer < 0 || layer >= m.Layers {
		return nil, shapef("read o_weight", "layer %d, want 0 to %d", layer, m.Layers-1)
	}
	k := m.Heads * m.HeadDimV
	w := make([]float32, m.Hidden*k)
	for i := range m.Hidden {
		m.layers[layer].o.row(i, w[i*k:(i+1)*k])
	}
	return w, nil
}
