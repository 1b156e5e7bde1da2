// SPDX-License-Identifier: Apache-2.0

package kvfile

import "github.com/kvist-project/kvist/engine/internal/memo"

// Memo keeps what Compress measured of one capture, to compress it again with other settings. The
// cost of an error in each head does not depend on the rate, the menus or the importance; weights and
// the costs of levels do not depend on the rate. The file is the same with and without a Memo, but
// Result.Predicted is not rehearsed. A Memo belongs to one capture and one backend. It is safe for
// concurrent use. It holds some 10 bytes a token and KV head for each weighting.
type Memo = memo.Memo
