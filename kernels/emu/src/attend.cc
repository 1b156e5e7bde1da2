// SPDX-License-Identifier: Apache-2.0
#include "../../src/attend.cu"

KVIST_REGISTER(AttendParams, kvist_attend_h1)
KVIST_REGISTER(AttendParams, kvist_attend_h2)
KVIST_REGISTER(AttendParams, kvist_attend_h4)
KVIST_REGISTER(AttendParams, kvist_attend_h8)
KVIST_REGISTER(AttendParams, kvist_combine)
KVIST_REGISTER(RelevanceParams, kvist_relevance)
