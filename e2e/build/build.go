// SPDX-License-Identifier: Apache-2.0

// Package build has the agent of this tree as a program, for tests that run it.
package build

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// AgentVariable is the environment variable that names an agent that has been built,
// for test binaries that run where nothing can be built.
const AgentVariable = "FAIRLEAD_AGENT_BIN"

// Agent returns the name of the agent's program. It is built in dir, unless it
// has been built before.
func Agent(dir string) (string, error) {
	if built := os.Getenv(AgentVariable); built != "" {
		return built, nil
	}
	binary := filepath.Join(dir, "fairlead")
	cmd := exec.Command("go", "build", "-o", binary, "fairlead/cmd/fairlead")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return binary, nil
}
