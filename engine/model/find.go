// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/kvist-project/kvist/quant"
)

// DefaultFile is the name of the model that tests and benchmarks run, as fetch-model.sh stores it.
const DefaultFile = "SmolLM2-135M-Instruct.Q4_1.gguf"

// Environment variables with the paths of the test models.
const (
	EnvFile  = "KVIST_MODEL" // the file itself
	EnvGemma = "KVIST_GEMMA" // the file of Gemma
	EnvCache = "KVIST_CACHE" // the folder of DefaultFile and GemmaFile, where those are not set
)

// GemmaFile is the name of the second model of tests and benchmarks, as fetch-gemma.sh stores it.
const GemmaFile = "gemma-3-270m-q4_k_m.gguf"

// Find returns the path of the model for tests and benchmarks: KVIST_MODEL if it is set, otherwise
// DefaultFile in the folder KVIST_CACHE or ~/.cache/kvist. It downloads nothing.
//
// Errors: ErrUnavailable if the file does not exist; the message says how to get it.
func Find() (path string, err error) { return find(EnvFile, DefaultFile, "make model") }

// FindGemma is Find for Gemma 3 270M: KVIST_GEMMA, or GemmaFile in the same folder.
//
// Errors: those of Find.
func FindGemma() (path string, err error) { return find(EnvGemma, GemmaFile, "make model-gemma") }

func find(env, file, target string) (path string, err error) {
	const op = "kvist/model: find model"
	path = os.Getenv(env)
	hint := env + " names it"
	if path == "" {
		hint = "run " + target
		dir := os.Getenv(EnvCache)
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("%s: no home folder: %w: %w", op, err, quant.ErrUnavailable)
			}
			dir = filepath.Join(home, ".cache", "kvist")
		}
		path = filepath.Join(dir, file)
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s: %s: %w: %w", op, hint, err, quant.ErrUnavailable)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s: %s: not a regular file: %w", op, path, quant.ErrUnavailable)
	}
	return path, nil
}
