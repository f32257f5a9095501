// SPDX-License-Identifier: Apache-2.0

package cut

import "testing"

// TestCut passes, but who runs it loses the end.
func TestCut(*testing.T) {}
