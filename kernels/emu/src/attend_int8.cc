// SPDX-License-Identifier: Apache-2.0
#include "../../src/attend_int8.cu"

KVIST_REGISTER(AttendParams, kvist_attend_int8_d64)
KVIST_REGISTER(AttendParams, kvist_attend_int8_d128)
