// SPDX-License-Identifier: Apache-2.0

package emu

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Library is the file name of the library, the same as that of the real one.
const Library = "libcuda.so.1"

// units are the compiled files; they include the others.
var units = []string{"codec.cc", "attend.cc", "attend_mma.cc", "attend_int8.cc", "surprise.cc", "fiber.cc", "tensor.cc",
	"twins.cc", "driver.cc"}

// flags: no contraction, because the codec rounds every operation; and a trap on an address that is
// not aligned for its type, because a GPU stops there.
var flags = []string{"-std=c++17", "-O2", "-fPIC", "-DKVIST_EMU", "-ffp-contract=off",
	"-fvisibility=hidden", "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"}

// Build returns the path of the stand-in and compiles it if needed. If this machine cannot compile
// it, Build skips the test, or fails it if KVIST_REQUIRE names emu.
func Build(tb testing.TB) string {
	tb.Helper()
	give := func(reason string) {
		for _, w := range strings.Split(os.Getenv("KVIST_REQUIRE"), ",") {
			if strings.TrimSpace(w) == "emu" {
				tb.Fatalf("the stand-in driver is required: %s", reason)
			}
		}
		tb.Skipf("no stand-in driver: %s", reason)
	}
	if runtime.GOOS != "linux" || (runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64") {
		give("it runs on linux, amd64 and arm64, only")
	}
	gxx, err := exec.LookPath("g++")
	if err != nil {
		give("g++ was not found")
	}
	dir, err := sources()
	if err != nil {
		give(err.Error())
	}
	key, err := hash(dir)
	if err != nil {
		tb.Fatalf("reading the sources of the stand-in: %v", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	out := filepath.Join(cache, "kvist-emu", key)
	library := filepath.Join(out, Library)
	if _, err := os.Stat(library); err == nil {
		return library
	}
	if err := compile(gxx, dir, out); err != nil {
		tb.Fatalf("building the stand-in driver: %v", err)
	}
	return library
}

// sources returns the folder of this package's sources. Tests run in the folder of their package,
// within the module.
func sources() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		at := filepath.Join(dir, "kernels", "emu", "src")
		if _, err := os.Stat(filepath.Join(at, "driver.cc")); err == nil {
			return at, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", os.ErrNotExist
		}
		dir = up
	}
}

// hash identifies a build by its sources and flags.
func hash(dir string) (string, error) {
	h := sha256.New()
	h.Write([]byte(strings.Join(flags, " ") + runtime.GOARCH))
	for _, d := range []string{dir, filepath.Join(dir, "..", "..", "src")} {
		entries, err := os.ReadDir(d)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(d, e.Name()))
			if err != nil {
				return "", err
			}
			h.Write([]byte(e.Name()))
			h.Write(text)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// compile builds in a temporary folder and moves the result into place, so that processes can build
// at the same time.
func compile(gxx, dir, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(out, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, len(units))
	var objects []string
	for _, u := range units {
		object := filepath.Join(tmp, u+".o")
		objects = append(objects, object)
		args := append(append([]string{}, flags...), "-I.", "-I../../src", "-c", u, "-o", object)
		go func() {
			cmd := exec.Command(gxx, args...)
			cmd.Dir = dir
			text, err := cmd.CombinedOutput()
			done <- result{text, err}
		}()
	}
	var failed error
	for range units {
		if r := <-done; r.err != nil {
			failed = &buildError{string(r.text), r.err}
		}
	}
	if failed != nil {
		return failed
	}
	made := filepath.Join(tmp, Library)
	args := append([]string{"-shared", "-o", made}, objects...)
	if text, err := exec.Command(gxx, append(args, "-lpthread")...).CombinedOutput(); err != nil {
		return &buildError{string(text), err}
	}
	return os.Rename(made, filepath.Join(out, Library))
}

type buildError struct {
	text string
	err  error
}

func (e *buildError) Error() string { return e.err.Error() + "\n" + e.text }
func (e *buildError) Unwrap() error { return e.err }
