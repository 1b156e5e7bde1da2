// SPDX-License-Identifier: Apache-2.0
#include "../../src/attend_mma.cu"

KVIST_REGISTER(AttendParams, kvist_attend_mma)
