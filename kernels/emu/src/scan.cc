// SPDX-License-Identifier: Apache-2.0
#include "../../src/scan.cu"

KVIST_REGISTER(ScanParams, kvist_scan)
KVIST_REGISTER(TopParams, kvist_top)
