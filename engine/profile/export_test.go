// SPDX-License-Identifier: Apache-2.0

package profile

var ParseParams = parseParams
