// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"fmt"
	"os/exec"
	"testing"

	"fairlead/e2e/build"
)

// TestAgentTakesArgs: the agent knows each flag that the DaemonSet gives it.
func TestAgentTakesArgs(t *testing.T) {
	agent, err := build.Agent(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	takes := func(args ...string) error {
		out, err := exec.Command(agent, append(args, "--help")...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if takes("--no-such-flag") == nil {
		t.Fatal("the agent takes a flag that there is not")
	}
	for _, v := range variants {
		for _, c := range theDaemonSet(t, chart(t, v.values...)).containers() {
			if err := takes(c.Args...); err != nil {
				t.Errorf("%s: %s: %v", v.name, c.Name, err)
			}
		}
	}
}
