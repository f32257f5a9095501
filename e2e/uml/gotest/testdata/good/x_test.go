// SPDX-License-Identifier: Apache-2.0

package good

import "testing"

func TestGood(t *testing.T) { t.Log("rope") }

func TestSkipped(t *testing.T) { t.Skip("no rope") }
