// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package slab

import "errors"

const canMap = false

func mapMemory(int) ([]byte, error) { return nil, errors.ErrUnsupported }
func unmapMemory([]byte)            {}
func smallPages([]byte)             {}
func releaseMemory([]byte) bool     { return false }
