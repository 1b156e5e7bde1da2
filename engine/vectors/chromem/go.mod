module github.com/kvist-project/kvist/engine/vectors/chromem

go 1.25.0

require (
	github.com/kvist-project/kvist v0.0.0
	github.com/philippgille/chromem-go v0.7.0
)

require golang.org/x/sys v0.47.0 // indirect

replace github.com/kvist-project/kvist => ../../..
