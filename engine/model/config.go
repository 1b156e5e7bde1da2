// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// Config is the shape of a model as stored in its file.
type Config struct {
	Name     string  // general.name; the name of the file if there is none
	Arch     string  // general.architecture
	Layers   int     // transformer layers
	Hidden   int     // components of the residual stream
	FFN      int     // components within the feed-forward network
	Heads    int     // query heads
	KVHeads  int     // key/value heads
	HeadDim  int     // components of a query and of a row of K
	HeadDimV int     // components of a row of V
	Vocab    int     // tokens
	Context  int     // largest number of positions
	Eps      float64 // added to the mean square in RMS norms

	arch           *architecture
	embedScale     float64 // factor of embeddings; 1: none
	residualScale  float64 // factor of what a layer adds to the residual stream; 1: none
	logitScale     float64 // divisor of logits; 1: none
	logitSoftcap   float64 // logits become cap*tanh(logit/cap); 0: none
	ropes          []*rope // the different embeddings of the layers
	layerRope      []int   // [layers] index within ropes; -1: the layer has none
	layerAttention []LayerAttention
}

// Bounds on a Config. Every matrix must be in the file, so these only keep products within an int.
const (
	maxHidden  = 1 << 20
	maxContext = 1 << 24
)

// readConfig reads the configuration. It rejects models that the forward pass cannot run. positions is
// Options.Context.
//
// Errors: *gguf.FileError wrapping ErrUnsupported or ErrCorrupt.
func readConfig(f *gguf.File, positions int) (Config, error) {
	var c Config
	var err error
	if c.arch, c.Arch, err = findArchitecture(f); err != nil {
		return c, err
	}
	if err := refuseKeys(f, c.Arch, c.arch); err != nil {
		return c, err
	}
	m := &metaReader{f: f, prefix: c.Arch + "."}
	if err := c.readShape(m); err != nil {
		return c, err
	}
	c.readScales(m)
	if m.err != nil {
		return c, m.err
	}
	if err := c.readRopes(m, positions); err != nil {
		return c, err
	}
	if err := c.readAttention(m); err != nil {
		return c, err
	}
	emb, ok := f.Tensor("token_embd.weight")
	if !ok || len(emb.Dims) != 2 {
		return c, &gguf.FileError{File: f.Name, Section: `tensor "token_embd.weight"`, Offset: -1,
			Err: corruptf("missing, or not a matrix")}
	}
	if emb.Rows() > 1<<24 {
		return c, f.TensorError(emb, unsupportedf("%d rows, want at most 2^24", emb.Rows()))
	}
	c.Vocab = int(emb.Rows())
	return c, c.geometry().Validate()
}

func (c *Config) readShape(m *metaReader) error {
	c.Name = m.name(m.f.Name)
	c.Layers = m.int("block_count", -1, 1, quant.MaxLayers)
	c.Context = m.int("context_length", -1, 1, maxContext)
	c.Hidden = m.int("embedding_length", -1, 1, maxHidden)
	c.FFN = m.int("feed_forward_length", -1, 1, maxHidden)
	c.Heads = m.int("attention.head_count", -1, 1, quant.MaxHeads)
	c.KVHeads = m.int("attention.head_count_kv", c.Heads, 1, quant.MaxHeads)
	c.Eps = m.float("attention.layer_norm_rms_epsilon", 1e-5)
	if m.err != nil {
		return m.err
	}
	c.HeadDim = m.int("attention.key_length", c.Hidden/c.Heads, 1, quant.MaxDim)
	c.HeadDimV = m.int("attention.value_length", c.Hidden/c.Heads, 1, quant.MaxDim)
	switch {
	case m.err != nil:
		return m.err
	case c.Heads%c.KVHeads != 0:
		return m.wrong("attention.head_count_kv",
			corruptf("%d kv_heads, want a divisor of %d heads", c.KVHeads, c.Heads))
	case !(c.Eps >= 0):
		return m.wrong("attention.layer_norm_rms_epsilon", corruptf("%v, want 0 or more", c.Eps))
	case c.Eps >= 1:
		return m.wrong("attention.layer_norm_rms_epsilon", unsupportedf("%v, want less than 1", c.Eps))
	}
	return nil
}

// readScales reads the factors of embeddings, residuals and logits, which some architectures have.
func (c *Config) readScales(m *metaReader) {
	c.embedScale, c.residualScale, c.logitScale = 1, 1, 1
	switch {
	case c.arch.rootEmbed:
		c.embedScale = float64(float32(math.Sqrt(float64(c.Hidden))))
	case c.arch.scales:
		c.embedScale = m.factor("embedding_scale")
		c.residualScale = m.factor("residual_scale")
		c.logitScale = m.factor("logit_scale")
	}
	if c.arch.logitSoftcap {
		c.logitSoftcap = m.softcap("final_logit_softcapping", c.arch.defaultLogitCap)
	}
}

// readAttention sets the attention of every layer; ropes are read.
func (c *Config) readAttention(m *metaReader) error {
	windows, err := c.arch.windows(m, c.Layers, c.Context)
	if err != nil {
		return err
	}
	a := plain(c.geometry())
	switch {
	case c.arch.attentionScale:
		if s := m.float("attention.scale", 0); s != 0 {
			a.Scale = s
		}
	case c.Layers == c.arch.rootScaleLayers:
		a.Scale = 1 / math.Sqrt(float64(c.Hidden/c.Heads))
	}
	if c.arch.scoreSoftcap {
		a.Softcap = m.softcap("attn_logit_softcapping", defaultScoreCap)
	}
	if m.err == nil && !(a.Scale > 0 && a.Scale < 1e6) {
		return m.wrong("attention.scale", unsupportedf("%v, want more than 0 and less than 1e6", a.Scale))
	}
	c.layerAttention = make([]LayerAttention, c.Layers)
	for l := range c.layerAttention {
		a.Window, a.Rope, a.RopeScale = windows[l], quant.Rope{}, 1
		if r := c.layerRope[l]; r >= 0 {
			a.Rope, a.RopeScale = c.ropes[r].geometry(), c.ropes[r].mscale
		}
		c.layerAttention[l] = a
	}
	return m.err
}

// geometry has the RoPE of the layers if they share one. If not, its layout is RopeNone, so that
// nobody takes K for something that it is not.
func (c Config) geometry() quant.Geometry {
	g := quant.Geometry{Layers: c.Layers, Heads: c.Heads, KVHeads: c.KVHeads,
		HeadDim: c.HeadDim, HeadDimV: c.HeadDimV}
	if len(c.ropes) == 1 && !slices.Contains(c.layerRope, -1) {
		g.Rope = c.ropes[0].geometry()
	}
	return g
}
