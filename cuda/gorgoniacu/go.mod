module github.com/kvist-project/kvist/cuda/gorgoniacu

go 1.25.0

require (
	github.com/kvist-project/kvist v0.0.0
	gorgonia.org/cu v0.9.6
)

require (
	github.com/ebitengine/purego v0.11.3 // indirect
	github.com/google/uuid v1.1.1 // indirect
	github.com/pkg/errors v0.9.1 // indirect
)

replace github.com/kvist-project/kvist => ../..
