// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"
	kubetesting "k8s.io/client-go/testing"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// leakPatience is how long client-go's goroutines may outlast Run: one whose
// list has failed hears of the end only after its pause.
const leakPatience = 20 * time.Second

func TestMain(m *testing.M) {
	code := m.Run()
	end := time.Now().Add(leakPatience)
	err := goleak.Find()
	for err != nil && time.Now().Before(end) { // each Find takes half a second
		err = goleak.Find()
	}
	if code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func translateService(t *testing.T, svc *corev1.Service) *model.Service {
	t.Helper()
	s, ok, refused := source.TranslateService(svc, source.Policy{})
	if !ok {
		t.Fatalf("fixture is refused: %v", refused)
	}
	return s
}

func translate(t *testing.T, slice *discoveryv1.EndpointSlice) *model.EndpointSlice {
	t.Helper()
	s, ok, refused := source.TranslateEndpointSlice(slice)
	if !ok {
		t.Fatalf("fixture is refused: %v", refused)
	}
	return s
}

// once lets a watch reactor react to the first request alone.
func once(react kubetesting.WatchReactionFunc) kubetesting.WatchReactionFunc {
	done := false
	return func(action kubetesting.Action) (bool, watch.Interface, error) {
		if done {
			return false, nil, nil
		}
		done = true
		return react(action)
	}
}
