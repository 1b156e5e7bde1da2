// SPDX-License-Identifier: Apache-2.0

package kvfile

import "github.com/kvist-project/kvist/engine/internal/memo"

// Memo keeps what Compress measured of one capture, for compressing the same capture again with
// other settings: what an error costs in each head does not depend on the rate, the menus or the
// importance, and weights and what levels cost do not depend on the rate. The file is the same with
// and without; only what is to be expected of it is not rehearsed. A Memo belongs to one capture and
// one backend; it is safe for concurrent use. It holds some 10 bytes a token and KV head for each
// importance profile.
type Memo = memo.Memo
