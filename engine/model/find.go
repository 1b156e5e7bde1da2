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

// Environment variables with the path of the test model.
const (
	EnvFile  = "KVIST_MODEL" // the file itself
	EnvCache = "KVIST_CACHE" // the folder of DefaultFile, if KVIST_MODEL is not set
)

// Find returns the path of the model for tests and benchmarks: KVIST_MODEL if it is set, otherwise
// DefaultFile in the folder KVIST_CACHE or ~/.cache/kvist. It downloads nothing.
//
// Errors: ErrUnavailable if the file does not exist; the message says how to get it.
func Find() (path string, err error) {
	const op = "kvist/model: find model"
	path = os.Getenv(EnvFile)
	hint := EnvFile + " names it"
	if path == "" {
		hint = "run make model"
		dir := os.Getenv(EnvCache)
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("%s: no home folder: %w: %w", op, err, quant.ErrUnavailable)
			}
			dir = filepath.Join(home, ".cache", "kvist")
		}
		path = filepath.Join(dir, DefaultFile)
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
