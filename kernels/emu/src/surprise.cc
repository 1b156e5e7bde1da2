// SPDX-License-Identifier: Apache-2.0
#include "../../src/surprise.cu"

KVIST_REGISTER(ResidualParams, kvist_residual)
