// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"strconv"

	"k8s.io/klog/v2"

	"fairlead/config"
)

// setOOMScore tells the kernel how soon to end the agent when memory runs out.
func setOOMScore(ctx context.Context, s *config.Settings) {
	const file = "/proc/self/oom_score_adj"
	if err := os.WriteFile(file, []byte(strconv.Itoa(s.OOMScoreAdj)), 0); err != nil {
		klog.FromContext(ctx).Info("Warning: when memory runs out, the kernel may end the agent as soon as others; give it CAP_SYS_RESOURCE, or another --oom-score-adj",
			"oomScoreAdj", s.OOMScoreAdj, "reason", err.Error())
	}
}
