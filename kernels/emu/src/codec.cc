// SPDX-License-Identifier: Apache-2.0
#include "../../src/codec.cu"

KVIST_REGISTER(CodecParams, kvist_encode)
KVIST_REGISTER(CodecParams, kvist_scales)
KVIST_REGISTER(CodecParams, kvist_decode)
KVIST_REGISTER(CodecParams, kvist_demote)
KVIST_REGISTER(GatherParams, kvist_gather)
