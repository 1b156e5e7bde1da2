// SPDX-License-Identifier: Apache-2.0

package perf

import "fmt"

// Shape is what a kernel sees of a model: the size of a row, the query heads of a KV head, and the KV heads of a
// layer.
type Shape struct{ HeadDim, GQA, KVHeads int }

func (s Shape) String() string {
	return fmt.Sprintf("head_dim=%d/gqa=%d/kv_heads=%d", s.HeadDim, s.GQA, s.KVHeads)
}

// Model is a well-known model, by the numbers of its config file.
type Model struct {
	Name   string
	Layers int
	Shape
	// Windowed of the layers see the last Window tokens only.
	Windowed, Window int
}

// Models are those that tables speak of. Several may share a shape.
func Models() []Model {
	return []Model{
		{Name: "SmolLM2-135M", Layers: 30, Shape: Shape{64, 3, 3}},
		{Name: "Gemma 3 270M", Layers: 18, Shape: Shape{256, 4, 1}, Windowed: 15, Window: 512},
		{Name: "Llama-3.1-8B", Layers: 32, Shape: Shape{128, 4, 8}},
		{Name: "Qwen3-8B", Layers: 36, Shape: Shape{128, 4, 8}},
		{Name: "Llama-3.1-70B", Layers: 80, Shape: Shape{128, 8, 8}},
		{Name: "Llama-2-7B", Layers: 32, Shape: Shape{128, 1, 32}},
	}
}

// shapes are the different shapes of the models.
func shapes(quick bool) []Shape {
	if quick {
		return []Shape{{64, 3, 3}, {128, 4, 8}}
	}
	var all []Shape
	seen := map[Shape]bool{}
	for _, m := range Models() {
		if !seen[m.Shape] {
			seen[m.Shape] = true
			all = append(all, m.Shape)
		}
	}
	return all
}

// Pairs are the row pairs of all layers and KV heads that a query reads behind so many tokens, and that a cache
// of so many tokens holds.
func (m Model) Pairs(tokens int64) int64 {
	return int64(m.KVHeads) * (int64(m.Layers-m.Windowed)*tokens + int64(m.Windowed)*min(tokens, int64(m.Window)))
}
