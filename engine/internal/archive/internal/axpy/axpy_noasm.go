// SPDX-License-Identifier: Apache-2.0

//go:build noasm || !amd64

package axpy

func accumulate(y, m, c []float32) { accumulateGeneric(y, m, c, 0) }

func accumulatePair(_, _, _, _, _ []float32) int { return 0 }

func products(y, m []float32, i int) { productsGeneric(y, m, i, 0) }

func subtract([]float64, []float64, float64) int { return 0 }
