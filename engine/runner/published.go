// SPDX-License-Identifier: Apache-2.0

package runner

import "time"

// publishedFor is how long what is published is found.
const publishedFor = 24 * time.Hour

// publish puts the first tokens of a conversation into the store. Who asks for an answer has it already: what fails is
// told to the log.
func (r *Runner) publish(c *conversation) {
	if r.o.Store == nil {
		return
	}
	if err := c.seq.Publish(r.ctx, c.salt, time.Now().Add(publishedFor)); err != nil {
		r.log.Warn("kvist: publish the first tokens of a conversation", "tokens", len(c.tokens), "error", err)
	}
}
