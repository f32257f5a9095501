// SPDX-License-Identifier: Apache-2.0

package bad

import "testing"

func TestBad(t *testing.T) { t.Error("torn") }
