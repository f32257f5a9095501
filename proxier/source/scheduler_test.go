// SPDX-License-Identifier: Apache-2.0

package source

import (
	"strings"
	"testing"

	"fairlead/proxier/model"
)

func TestScheduler(t *testing.T) {
	for _, tt := range []struct {
		value, refused string
		want           model.Scheduler
	}{
		{value: ""},
		{value: "rr", want: model.Scheduler{Name: "rr"}},
		{value: "twos", want: model.Scheduler{Name: "twos"}},
		{value: "mh,mh-port", want: model.Scheduler{Name: "mh", Port: true}},
		{value: "sh,sh-fallback,sh-port", want: model.Scheduler{Name: "sh", Fallback: true, Port: true}},
		{value: "maglev", refused: `"maglev": is not one of rr, `},
		{value: "RR", refused: `"RR": is not one of rr, `},
		{value: "mh,sh-port", refused: `has a flag "sh-port" that mh does not have`},
		{value: "rr,mh-port", refused: `has a flag "mh-port" that rr does not have`},
		{value: ",", refused: "is not one of"},
	} {
		t.Run(tt.value, func(t *testing.T) {
			svc := webService()
			svc.Annotations = map[string]string{AnnotationScheduler: tt.value}
			s, ok, refused := TranslateService(svc, Policy{})
			if !ok || s.Scheduler != tt.want {
				t.Errorf("got %+v, %t, want %+v", s.Scheduler, ok, tt.want)
			}
			if (tt.refused == "") != (len(refused) == 0) {
				t.Fatalf("refused: %v, want %q", refused, tt.refused)
			}
			if tt.refused != "" && (!strings.Contains(refused[0].String(), tt.refused) || !strings.HasSuffix(refused[0].String(), "the default is used")) {
				t.Errorf("refused: %v, want %q", refused, tt.refused)
			}
		})
	}
}
