// SPDX-License-Identifier: Apache-2.0

package source

import (
	"strings"
	"testing"

	"fairlead/proxier/model"
)

func TestBalancing(t *testing.T) {
	for _, tt := range []struct {
		value, refused string
		want           model.Balancing
	}{
		{value: ""},
		{value: "random", want: model.Random},
		{value: "maglev", want: model.Maglev},
		{value: "maglev-port", want: model.MaglevPort},
		{value: "Maglev", refused: `"Maglev": is not one of random, maglev, maglev-port; the default is used`},
	} {
		t.Run(tt.value, func(t *testing.T) {
			svc := webService()
			svc.Annotations = map[string]string{AnnotationBalancing: tt.value}
			s, ok, refused := TranslateService(svc, Policy{})
			if !ok || s.Balancing != tt.want {
				t.Errorf("got %q, %t, want %q", s.Balancing, ok, tt.want)
			}
			if (tt.refused == "") != (len(refused) == 0) || tt.refused != "" && !strings.HasSuffix(refused[0].String(), tt.refused) {
				t.Errorf("refused: %v, want %q", refused, tt.refused)
			}
		})
	}
}
