// SPDX-License-Identifier: Apache-2.0
//
// What a linear prediction from the rows before leaves of a row: the part of surprise where no row
// waits for another. Compiled without contraction; sums have the order of the plain twin.
#include "params.cuh"

// Energies of one row and its residual. grid: rows; block: 32; shared: 64 doubles.
extern "C" __global__ void __launch_bounds__(32, 1) kvist_residual(const ResidualParams p) {
  KVIST_SHARED(double, sums);
  const int lane = threadIdx.x;
  const int64_t row = blockIdx.x;
  const float* x = ptr<const float>(p.x) + (row + p.order) * p.dim;
  const double* w = ptr<const double>(p.weights) + row * p.order;
  double left = 0, own = 0;
  for (int d = lane; d < p.dim; d += 32) {
    const double v = x[d];
    double r = v;
    for (int i = 0; i < p.order; i++) r -= w[i] * static_cast<double>(x[d - (i + 1) * static_cast<int64_t>(p.dim)]);
    left += r * r;
    own += v * v;
  }
  sums[lane] = left;
  sums[32 + lane] = own;
  for (int step = 16; step; step /= 2) {
    __syncwarp();
    if (lane < step) {
      sums[lane] += sums[lane + step];
      sums[32 + lane] += sums[32 + lane + step];
    }
  }
  __syncwarp();
  if (lane < 2) ptr<double>(p.out)[2 * row + lane] = sums[32 * lane];
}
