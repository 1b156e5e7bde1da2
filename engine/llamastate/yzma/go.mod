module github.com/kvist-project/kvist/engine/llamastate/yzma

go 1.26.0

require (
	github.com/hybridgroup/yzma v1.29.1
	github.com/kvist-project/kvist v0.0.0
)

require (
	github.com/ebitengine/purego v0.11.3 // indirect
	github.com/jupiterrider/ffi v0.8.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)

replace github.com/kvist-project/kvist => ../../..
