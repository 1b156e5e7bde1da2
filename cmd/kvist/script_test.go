// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/kernels/emu"
)

// TestMain lets scripts, and tests that kill the process, run the program as "kvist".
func TestMain(m *testing.M) {
	runChild()
	testscript.Main(m, map[string]func(){"kvist": main})
}

// The real captures, relative to this folder.
const (
	kvCapture  = "../../testdata/smollm2-sqlite-1k.safetensors"
	npyCapture = "../../testdata/minilm-base-4096x384.npy"
	corruptDir = "../../testdata/corrupt"
)

// TestScripts runs testdata/script. Beside the standard commands scripts have:
//
//	status N COMMAND...   COMMAND exits with status N
//	flip FILE OFFSET      inverts a byte; a negative offset counts from the end
//	cut FILE N            keeps the first N bytes
//	fits FILE BITS VALUES the file takes at most BITS bits a value, and at least 99 % of that
//	json FILE KEY...      FILE ("stdout", "stderr") is one JSON object that has the keys
//	jsonis FILE KEY VALUE its field KEY ("a.b" descends) prints as VALUE
//	atmost FILE KEY X     its field KEY is a number of at most X
//	weights FILE DIM...   FILE is an .npy of F32 of that shape: weights that fall and rise
//	input KIND FILE       FILE is an input that people have, or one that is not read: see cmdInput
//	clean DIR             DIR holds no temporary file of ours
func TestScripts(t *testing.T) { runScripts(t, "testdata/script", nil) }

// TestScripts_CUDA runs testdata/script-cuda with the stand-in for libcuda.so.1 where the loader
// finds it; the variable KVIST_EMU gives it faults.
func TestScripts_CUDA(t *testing.T) {
	dir := filepath.Dir(emu.Build(t))
	runScripts(t, "testdata/script-cuda", map[string]string{"LD_LIBRARY_PATH": dir})
}

func runScripts(t *testing.T, dir string, environment map[string]string) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			for name, value := range environment {
				env.Setenv(name, value)
			}
			for name, path := range map[string]string{"KV": kvCapture, "NPY": npyCapture,
				"CORRUPT": corruptDir, "GOLDEN": "../../testdata/golden/v1",
				"NUMPY":   "../../engine/capture/testdata/numpy",
				"STATES":  "../../engine/llamastate/testdata",
				"MODELS":  "../../engine/model/testdata/models",
				"SHIPPED": "../../testdata/smollm2.kvprofile"} {
				abs, err := filepath.Abs(path)
				if err != nil {
					return err
				}
				env.Setenv(name, abs)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": cmdStatus, "flip": cmdFlip, "cut": cmdCut, "fits": cmdFits, "json": cmdJSON,
			"jsonis": cmdJSONIs, "clean": cmdClean, "weights": cmdWeights, "atmost": cmdAtMost,
			"input": cmdInput,
		},
	})
}

func usage(ts *testscript.TestScript, neg bool, args []string, n int, text string) {
	if neg || len(args) < n {
		ts.Fatalf("usage: %s", text)
	}
}

func atoi(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "status N COMMAND...")
	want, got := atoi(ts, args[0]), 0
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "flip FILE OFFSET")
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	at := atoi(ts, args[1])
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0xff
	ts.Check(os.WriteFile(path, b, 0o644))
}

func cmdCut(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "cut FILE N")
	ts.Check(os.Truncate(ts.MkAbs(args[0]), int64(atoi(ts, args[1]))))
}

func cmdFits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 3, "fits FILE BITS VALUES")
	bits, err := strconv.ParseFloat(args[1], 64)
	ts.Check(err)
	st, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	limit := bits * float64(atoi(ts, args[2])) / 8
	if n := float64(st.Size()); n > limit || n < 0.99*limit {
		ts.Fatalf("%s has %g bytes, want (%.0f, %.0f]", args[0], n, 0.99*limit, limit)
	}
}

// object reads a file that must be exactly one JSON object without NaN, which JSON cannot hold.
func object(ts *testscript.TestScript, name string) map[string]any {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(name)))
	d.UseNumber()
	var v map[string]any
	ts.Check(d.Decode(&v))
	if d.More() {
		ts.Fatalf("%s holds more than one JSON value", name)
	}
	return v
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, "json FILE KEY...")
	v := object(ts, args[0])
	for _, k := range args[1:] {
		if _, ok := v[k]; !ok {
			ts.Fatalf("%s has no field %q", args[0], k)
		}
	}
}

// field finds a field of the object in a file; "a.b" descends, numbers index, "len" counts.
func field(ts *testscript.TestScript, name, path string) any {
	var v any = object(ts, name)
	for _, k := range strings.Split(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[k]
		case []any:
			if k == "len" {
				v = len(x)
				break
			}
			i := atoi(ts, k)
			if i >= len(x) {
				ts.Fatalf("%s: %s has %d elements", name, path, len(x))
			}
			v = x[i]
		default:
			ts.Fatalf("%s: %s leads nowhere at %q", name, path, k)
		}
	}
	return v
}

func cmdJSONIs(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, false, args, 3, "[!] jsonis FILE KEY VALUE")
	got, err := json.Marshal(field(ts, args[0], args[1]))
	ts.Check(err)
	if s := strings.Trim(string(got), `"`); (s == args[2]) == neg {
		ts.Fatalf("%s: %s is %s, which %s was not to be (negated: %v)", args[0], args[1], s,
			args[2], neg)
	}
}

func cmdAtMost(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 3, "atmost FILE KEY NUMBER")
	n, ok := field(ts, args[0], args[1]).(json.Number)
	if !ok {
		ts.Fatalf("%s: %s is no number", args[0], args[1])
	}
	x, err := n.Float64()
	ts.Check(err)
	limit, err := strconv.ParseFloat(args[2], 64)
	ts.Check(err)
	if !(x <= limit) {
		ts.Fatalf("%s: %s is %g, want at most %g", args[0], args[1], x, limit)
	}
}

func cmdWeights(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "weights FILE DIM...")
	d, n := capture.Decl{DTypeName: "F32"}, 1
	for _, a := range args[1:] {
		d.Shape = append(d.Shape, int64(atoi(ts, a)))
		n *= atoi(ts, a)
	}
	var data []byte
	for i := range n {
		x := float32(1 + 10*math.Pow(math.Sin(float64(i)/7), 8))
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	w, err := capture.NewNpyWriter(f, d)
	ts.Check(err)
	ts.Check(w.WriteAt("", 0, data))
	ts.Check(w.Close())
	ts.Check(f.Close())
}

func cmdClean(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 1, "clean DIR")
	list, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".tmp") && strings.Contains(e.Name(), "kvist-") {
			ts.Fatalf("%s was left behind", e.Name())
		}
	}
}
